"""Predictor and corrector from the same evaluation: exponential Adams-Bashforth and Adams-Moulton in log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.randomness import Noise
from scorefield.solve.exponential import History, adams_weights, check_order, data_step, half_log_snr, remember
from scorefield.solve.integrate import Field, Solver

REACH = 1.35
"""Found by trial over grids and problems; with 1.2 or 1.6 the worst case is several times worse."""


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC (Zhao et al. 2023, Alg. 1, in data prediction) for any Gaussian SDE; one evaluation a step.

    The evaluation at t first corrects the state there, by the interpolating polynomial that includes it, and then
    predicts the state at s. The paper's B(h) cancels wherever its linear system has a full set of unknowns; where it has
    not, the paper sets one weight to 1/2, and here it is the polynomial's.

    A step that is longer than `REACH` times the mean of those it would extrapolate from uses fewer of them: that is what
    the paper's rule of lower orders for the last steps is for, and it does not need to know which step is the last.

    Main arguments:
        order: 1, 2 or 3, of the predictor; the corrector is one order higher.
    """

    order: int = 3  # type: ignore[misc]

    grid: ClassVar[str] = "quadratic"
    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_order(self.order)

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        here, there = half_log_snr(sde, t), half_log_snr(sde, s)
        data = field.denoise(x, t)
        past: History = ()
        if state is not None:
            past, before, used = state
            x = self._corrected(x, float(sde.alpha(t)), here, data, past, before, used)
        history = remember(here, data, past, self.order)
        reached = _within_reach(history, there)
        weights = adams_weights([at for at, _ in reached], here, there)
        y = data_step(sde, x, t, s, weights, [d for _, d in reached])
        return y, (history, here, weights)

    def _corrected(
        self, x: Tensor, alpha: float, here: float, data: Tensor, past: History, before: float, used: list[float]
    ) -> Tensor:
        """x plus the difference between the corrector's and the predictor's sums, so that changes made by hooks stay."""
        if not (math.isfinite(here) and math.isfinite(before)):
            return x
        reached = past[: len(used)]
        weights = adams_weights([here, *(at for at, _ in reached)], before, here)
        x = torch.add(x, data, alpha=alpha * weights[0])
        for new, old, (_, value) in zip(weights[1:], used, reached, strict=True):
            x.add_(value, alpha=alpha * (new - old))
        return x


def _within_reach(history: History, there: float) -> History:
    """The evaluations that a step to `there` may extrapolate from."""
    here = history[0][0]
    k = len(history)
    while k > 1 and abs(there - here) * (k - 1) > REACH * abs(here - history[k - 1][0]):
        k -= 1
    return history[:k]
