"""Exponential integrators for the reverse SDE, at any strength of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.randomness import Noise
from scorefield.sde import expand
from scorefield.solve.exponential import adams_weights, check_order, half_log_snr, remember
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True)
class ExponentialSDE(Solver):
    r"""Exponential Adams-Bashforth for dx = [f x - (1 + c^2)/2 g^2 score] dt + c g dw; one evaluation a step.

    x_s = (sigma_s / sigma_t) e^{-c^2 h} x_t + alpha_s integral of (1 + c^2) e^{(1 + c^2)(l - lambda_s)} D(l) dl
          + sigma_s sqrt(1 - e^{-2 c^2 h}) z,   h = lambda_s - lambda_t

    Every strength c has the same marginals (Song et al. 2021, App. D.1); it is tau of SA-Solver (Xue et al. 2023, eq. 13).
    c = 0 is the probability flow, c = 1 the reverse SDE: SDE-DPM-Solver++ (Lu et al. 2022b, App. A) is order 1 or 2 at
    c = 1, and order 1 at c = 1 is ancestral sampling. Noise costs evaluations and repairs errors of the score.

    Main arguments:
        strength: c, not negative.
        order: 1, 2 or 3, of the extrapolation of D. With c = 0 it is the order of convergence; with noise, D moves with the
            path, the weak order is 1, and more points lower the error's constant.
    """

    strength: float = 1.0
    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        check_order(self.order)
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength={self.strength}: the strength of the noise is a number from 0 up")

    @property
    def flow(self) -> bool:
        return self.strength == 0

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde, c2 = field.sde, self.strength**2
        here, there = half_log_snr(sde, t), half_log_snr(sde, s)
        history = remember(here, field.denoise(x, t), state, self.order)
        weights = adams_weights([at for at, _ in history], here, there, 1 + c2)
        h, alpha = there - here, float(sde.alpha(s))
        moved = expand(sde.sigma(s) / sde.sigma(t) * (math.exp(-c2 * h) if c2 else 1.0), x) * x
        for w, (_, data) in zip(weights, history, strict=True):
            moved = torch.add(moved, data, alpha=alpha * w)
        if c2 and h > 0:
            spread = sde.sigma(s) * math.sqrt(-math.expm1(-2 * c2 * h))
            moved = moved + expand(spread, x) * noise.like(x)
        return moved, history
