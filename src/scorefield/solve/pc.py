"""Predictor-corrector sampling (Song et al. 2021, Alg. 1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import wide
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field, Solver, Task, Tick, integrate
from scorefield.solve.reverse import ReverseDiffusion

CONCENTRATED = 256
"""Dimensions from which on |score|^2 of one sample is within sqrt(2 / d) < 9 % of its mean."""


@dataclass(frozen=True)
class Identity(Solver):
    """Does nothing: the predictor of corrector-only sampling, and the corrector of predictor-only sampling."""

    order: ClassVar[float] = 0

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return x, None


@dataclass(frozen=True)
class Langevin(Solver):
    r"""Langevin corrector whose step size keeps a signal-to-noise ratio (Song et al. 2021, Alg. 4 and 5).

    x <- x + e score + sqrt(2 e) z,   e = 2 a (snr |z| / |score|)^2,   a = (alpha_t / alpha_s)^2 of the grid step

    Main arguments:
        snr: r of the paper (Table 5): 0.16 for VE and 0.01 for VP at 1000 steps.
        steps: corrections at each noise level.
        norm: which norm of the score sets the step.
            "expected": root mean square over the sampler's own path, which couples no samples and is not heavy-tailed.
                From 256 dimensions on, the norm of a single sample is within a few percent of it and is used. Below, it is
                measured on the trajectories that `sample(..., pilots=)` grants (N numbers in all know it to sqrt(2 / N));
                without pilots it is d^(1/2) / sigma, its upper bound, which makes the smaller steps of `AnnealedLangevin`.
            "batch": the paper's mean over the batch, which makes samples depend on their batch-mates.
            "sample": each sample's own; 1 / |score|^2 is heavy-tailed in few dimensions, and the samples come out wrong
                (40 % too much covariance in 3 dimensions).
    """

    snr: float = 0.16
    steps: int = 1
    norm: Literal["expected", "batch", "sample"] = "expected"
    expected: Mapping[tuple[float, float], Tensor] | None = field(default=None, repr=False, compare=False)

    order: ClassVar[float] = 0

    def __post_init__(self) -> None:
        if self.norm not in ("expected", "batch", "sample"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose expected, batch or sample")
        _check(self.snr, self.steps)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """Corrections at time s; t is the other end of the grid step they belong to."""
        shrink = _shrink(field, t, s)
        for i in range(self.steps):
            score, z = field.score(x, s), noise.like(x)
            x = self.correct(x, score, z, shrink, self.ratio(field, score, z, t, s, i))
        return x, None

    def correct(self, x: Tensor, score: Tensor, z: Tensor, shrink: Tensor, ratio: Tensor) -> Tensor:
        """One correction, with ratio = (|z| / |score|)^2."""
        e = (
            2 * float(shrink) * self.snr**2 * ratio
        )  # a number: two tensors of shape () would make float64 where ratio is
        return x + expand(e, x) * score + expand(torch.sqrt(2 * e), x) * z

    def ratio(self, field: Field, score: Tensor, z: Tensor, t: Tensor, s: Tensor, i: int) -> Tensor:
        """(|z| / |score|)^2 for the i-th correction at s, of shape () or (B,)."""
        d = math.prod(score.shape[1:])
        squared = torch.square(wide(score)).flatten(1).sum(1)
        if self.norm == "batch":
            lengths = torch.linalg.vector_norm(wide(z).flatten(1), dim=1)
            return torch.square(lengths.mean() / torch.sqrt(squared).mean())
        if self.norm == "expected" and d < CONCENTRATED:
            if self.expected is None:
                return torch.square(field.sde.sigma(s))
            return d / self.expected[float(t), float(s)][i]
        # A score of exactly 0 sets no step size; the bound stands in for it.
        return torch.where(squared > 0, d / squared, float(field.sde.sigma(s)) ** 2)


@dataclass(frozen=True)
class _Measuring(Langevin):
    """The same corrector on the pilot ensemble, whose mean it takes; its state is [(grid step, norms), ...]."""

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        shrink, norms = _shrink(field, t, s), []
        for _ in range(self.steps):
            score, z = field.score(x, s), noise.like(x)
            norms.append(torch.square(wide(score)).flatten(1).sum(1).mean())
            x = self.correct(x, score, z, shrink, math.prod(x.shape[1:]) / norms[-1])
        return x, [*(state or ()), ((float(t), float(s)), norms)]

    def risen(self, state: Any) -> Any:
        return state


def _table(seen: Sequence[tuple[tuple[float, float], list[Tensor]]]) -> dict[tuple[float, float], Tensor]:
    """Mean-square score norms (steps,) by grid step, averaged where a grid passes several times."""
    table: dict[tuple[float, float], list[Tensor]] = {}
    for key, norms in seen:
        table.setdefault(key, []).extend(norms)
    return {key: torch.stack(norms).reshape(-1, len(seen[0][1])).mean(0) for key, norms in table.items()}


@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """Langevin corrector with the step size of SMLD, e = 2 a (snr sigma)^2 (Song & Ermon 2019, Alg. 1)."""

    snr: float = 0.16
    steps: int = 1

    order: ClassVar[float] = 0

    def __post_init__(self) -> None:
        _check(self.snr, self.steps)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """Corrections at time s; t is the other end of the grid step they belong to."""
        e = 2 * _shrink(field, t, s) * torch.square(self.snr * field.sde.sigma(s))
        for _ in range(self.steps):
            x = x + expand(e, x) * field.score(x, s) + expand(torch.sqrt(2 * e), x) * noise.like(x)
        return x, None


@dataclass(frozen=True)
class PC(Solver):
    """Predictor-corrector sampler (Song et al. 2021, Alg. 1).

    Special cases: SMLD is `PC(Identity(), AnnealedLangevin())`, DDPM is `Ancestral(variance="transition")` alone.

    Main arguments:
        predictor: a step of the reverse SDE or of the probability flow.
        corrector: `Langevin` or `AnnealedLangevin`.

    Other arguments:
        correct_first: correct at t, then predict, as the paper's code does, instead of predicting first as its text does.
    """

    predictor: Solver = field(default_factory=ReverseDiffusion)
    corrector: Solver = field(default_factory=Langevin)
    correct_first: bool = False

    order: ClassVar[float] = 1
    default_steps: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        for name in ("predictor", "corrector"):
            part = getattr(self, name)
            if not isinstance(part, Solver):
                raise ValueError(f"{name}={part!r}: give a solver object, such as sf.ReverseDiffusion()")

    @property
    def grid(self) -> Any:  # type: ignore[override]
        """That of the predictor."""
        return self.predictor.grid

    def stages(self, t: Tensor, s: Tensor) -> Sequence[tuple[Solver, Tensor, Tensor]]:
        """Prediction from t to s, and the corrections at s (or, corrected first, at t)."""
        predict = tuple(self.predictor.stages(t, s))
        if self.correct_first:
            return ((self.corrector, s, t), *predict)
        return (*predict, (self.corrector, t, s))

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """All stages at once, for callers without hooks."""
        states = dict(state or {})
        for k, (stage, a, b) in enumerate(self.stages(t, s)):
            x, states[k] = stage.step(field, x, a, b, states.get(k), noise)
        return x, states

    def prepare(self, task: Task, tick: Tick | None = None) -> Solver:
        """Measure the corrector's expected score norms on a pilot ensemble where `Langevin` wants them."""
        corrector, grid = self.corrector, task.times(self)
        if task.pilots is None:
            return self
        if not isinstance(corrector, Langevin) or corrector.norm != "expected" or corrector.steps == 0 or grid is None:
            return super().prepare(task)
        if not task.shared:
            raise ValueError(
                f"pilots={task.pilots}: no pilot can stand for samples with conditions or starts of their own; leave it out"
            )
        if math.prod(task.shape) >= CONCENTRATED:
            return self
        field, x, noise = task.ensemble()
        pilot = replace(self, corrector=_Measuring(corrector.snr, corrector.steps))
        _, states = integrate(pilot, field, x, grid, noise, tick=tick)
        seen = states[0 if self.correct_first else max(states)]  # corrected first, it is the first stage, else the last
        return replace(self, corrector=replace(corrector, expected=_table(seen)))


def _check(snr: float, steps: int) -> None:
    if not snr > 0:
        raise ValueError(f"snr={snr}: the signal-to-noise ratio must be positive")
    if steps < 0:
        raise ValueError(f"steps={steps}: the number of corrections is not negative")


def _shrink(field: Field, t: Tensor, s: Tensor) -> Tensor:
    late, early = torch.maximum(t, s), torch.minimum(t, s)
    return torch.square(field.sde.alpha(late) / field.sde.alpha(early))
