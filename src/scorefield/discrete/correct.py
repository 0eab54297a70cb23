"""Correctors of jump processes: moves that leave p_t as it is, for `PC`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefield.discrete.solve import JumpSolver, _pick, jump_model, known, leap
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field

KINDS = ("both", "barker", "root")


@dataclass(frozen=True)
class Gibbs(JumpSolver):
    """Draws one position of each sample from its law given the others, `steps` times: exact for p_t (Sun et al. 2023).

    Main arguments:
        steps: positions that are drawn anew, one after the other, at each level.

    Other arguments:
        below: corrects only at times up to this one.
    """

    steps: int = 1
    below: float = float("inf")

    order: ClassVar[float] = 0

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """Corrections at time s; t is the other end of the grid step they belong to."""
        model = jump_model(field)
        if _idle(field, s, self.below):
            return x, None
        for _ in range(self.steps):
            u = noise.uniform((len(x), 2))
            flat = x.flatten(1)
            position = (u[:, :1] * flat.shape[1]).long().clamp_max(flat.shape[1] - 1)
            field.calls += 1
            own = flat.gather(1, position.to(x.device)).squeeze(1)
            law = known(field, model.marginal_at(x, s, position.squeeze(1).to(x.device), **field.cond), own)
            everywhere = torch.ones(len(x), dtype=torch.bool, device="cpu")
            new = _pick(law, x.new_zeros(len(x)), everywhere, u[:, 1] * law.sum(-1).cpu().double())
            x = flat.scatter(1, position.to(x.device), new.unsqueeze(1)).reshape(x.shape)
        return x, None


@dataclass(frozen=True)
class RateCorrector(JumpSolver):
    """Leaps along rates that have p_t as their stationary law, with r = ratio(y) and h the step of the grid.

    kind "both": beta (R[x, y] + R[y, x] r), forward and reverse together (Campbell et al. 2022, Prop. 4);
    "barker": r / (1 + r) between any two states; "root": sqrt(r) between any two states (Sun et al. 2023).

    Main arguments:
        scale: length of a leap, h times it for "both", itself for the others, whose rates are numbers of order 1 / S.
        steps: leaps at each level.

    Other arguments:
        below: corrects only at times up to this one.

    Raises:
        ValueError: an unknown kind, a scale that is not positive; or, with a mask, another kind than "both", since the
            ratio between two data states is not known there.
    """

    kind: Literal["both", "barker", "root"] = "both"
    scale: float = 1.0
    steps: int = 1
    below: float = float("inf")

    order: ClassVar[float] = 0

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale}: the length of a leap must be positive")

    def rates(self, field: Field, x: Tensor, t: Tensor) -> Tensor:
        """Rates from x to every other state of each position, (B, *, S)."""
        model = jump_model(field)
        process = model.process
        if process.mask is not None and self.kind != "both":
            raise ValueError(
                f"kind={self.kind!r} needs ratios between data states, which a mask hides; use kind='both'"
            )
        field.calls += 1
        ratio = model.ratio(x, t, **field.cond)
        if self.kind == "both":
            both = process.out(x, ratio.dtype) + process.into(x, ratio.dtype) * ratio
            rates = float(process.schedule.rate(t)) * both
        else:
            rates = (ratio / (1 + ratio) if self.kind == "barker" else torch.sqrt(ratio)) / process.S
        return rates.scatter(-1, x.long().unsqueeze(-1), 0.0)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """Corrections at time s; t is the other end of the grid step they belong to."""
        if _idle(field, s, self.below):
            return x, None
        length = self.scale * (float((t - s).abs()) if self.kind == "both" else 1.0)
        for _ in range(self.steps):
            rates = known(field, self.rates(field, x, s), x, 0.0)
            x = leap(length * rates, x, noise, jump_model(field).process.ordinal)
        return x, None


def _idle(field: Field, s: Tensor, below: float) -> bool:
    """Whether nothing is to be corrected: at 0, where a network says nothing of other data; or above the given time."""
    schedule = jump_model(field).process.schedule
    return float(s) > below or float(schedule.total(s)) == 0 or not bool(torch.isfinite(schedule.rate(s)))


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps={steps}: the number of corrections is not negative")
