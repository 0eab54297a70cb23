"""Solvers of jump processes: one step each. Whether to jump is drawn first, in float64 on the CPU, then where to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.discrete.model import JumpModel
from scorefield.discrete.process import JumpProcess
from scorefield.randomness import Noise
from scorefield.rows import take
from scorefield.solve.integrate import Field, Solver

FIRST = 3e-3
"""Integrated rate at which the geometric grid makes its last step, to 0."""
NEVER = 12.0
"""Integrated rate from which on nothing is left of the data, where the geometric grid begins."""


def jump_grid(process: JumpProcess, steps: int, t_start: float, t_min: float) -> Tensor:
    """steps + 1 falling times: uniform where states are masked, else geometric in the integrated rate B(t).

    A rate that is not reversed from a mask brings most of its news at small times: with uniform times the error of a
    step is several times larger.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
    if process.mask is not None:
        return t_start + u * (t_min - t_start)
    schedule = process.schedule
    high = min(float(schedule.total(t_start)), NEVER)
    low = float(schedule.total(t_min))
    count = steps if low > 0 else steps - 1  # the last step of all goes from FIRST to 0
    low = low if low > 0 else min(FIRST, 0.1 * high)
    inside = high * (low / high) ** (torch.arange(count + 1, dtype=torch.float64, device="cpu") / max(count, 1))
    times = schedule.time_of(-torch.expm1(-inside))
    times = times if len(times) == steps + 1 else torch.cat([times, times.new_zeros(1)])
    times[0], times[-1] = t_start, t_min
    return times


class JumpSolver(Solver, ABC):
    """A solver for `JumpModel`. At t_min = 0, its last step draws each position from p(x_0 | x)."""

    order: ClassVar[float] = 1
    grid: ClassVar[Any] = staticmethod(jump_grid)
    default_steps: ClassVar[int] = 128
    denoises: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False


class Independent(JumpSolver):
    """A step that draws every position by itself, from `law`."""

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return draw(known(field, self.law(field, x, t, s), x), x, noise), None

    @abstractmethod
    def law(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Probabilities of the states at time s, (B, *, S), not negative; their sum does not matter."""


@dataclass(frozen=True)
class Euler(Independent):
    """Each position jumps to y with probability h beta(t) R[y, x] ratio(y) (Lou et al. 2024, eq. 17).

    Where the rate is infinite, as at T with alpha(T) = 0, and in the last step to 0, the step is that of `Tweedie`.
    """

    def law(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if _singular(field, t, s):
            return Tweedie().law(field, x, t, s)
        off = (t - s).float() * reverse_rates(field, x, t)
        return with_rest(off, x)


@dataclass(frozen=True)
class Tweedie(Independent):
    """Each position by its own law at s given the states of all at t (Lou et al. 2024, eq. 19; Sun et al. 2023).

    p(x_s = y | x_t = x) = (K_h^-T ratio)(y) K_h[y, x], K_h the transition from s to t. Exact in one dimension.
    """

    def law(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        model = jump_model(field)
        field.calls += 1
        before = model.staggered(x, t, s, **field.cond)
        law = before * model.process.column(x, model.process.between(s, t), before.dtype)
        return _data_only(law, model.process, s)


@dataclass(frozen=True)
class TauLeaping(JumpSolver):
    """The rates of a step held fixed, their jumps counted by Poisson numbers (Campbell et al. 2022, Alg. 1).

    Where states have an order, the jumps of a position add up and the sum is cut to the range. Where they have none, a
    position that would jump more than once in a step stays.

    Other arguments:
        ordinal: whether states have an order; what the process says by default.
    """

    ordinal: bool | None = None

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        if _singular(field, t, s):
            return Tweedie().step(field, x, t, s, state, noise)
        mean = known(field, (t - s).float() * reverse_rates(field, x, t), x, 0.0)
        ordinal = jump_model(field).process.ordinal if self.ordinal is None else self.ordinal
        return leap(mean, x, noise, ordinal), None


@dataclass(frozen=True)
class Ancestral(JumpSolver):
    """Masked diffusion: a masked position is unmasked with probability (alpha_s - alpha_t) / (1 - alpha_t), by p(x_0 | x).

    The same law as `Tweedie` (Sahoo et al. 2024, eq. 7). Which positions are unmasked is drawn before the network is
    asked, which is called only for samples that change.

    Raises:
        ValueError: the process has no mask.
    """

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        process, mask = _masked(field, "Ancestral")
        early, late = process.schedule.jumped(s), process.schedule.jumped(t)
        chance = (late - early) / late
        u = noise.uniform(x.shape)
        chosen = (u < chance) & (x == mask).cpu()
        return _reveal(field, x, t.expand(len(x)), chosen, u / chance), None


@dataclass(frozen=True)
class FirstHitting(JumpSolver):
    """Masked diffusion without a step error: positions are unmasked one at a time, at the times of the exact reverse process.

    A masked position's time has 1 - alpha uniform below that of t (Zheng et al. 2025, sec. 4). Every grid gives the same
    law; between two times of the grid the network is called once for each position that a sample unmasks.

    Raises:
        ValueError: the process has no mask.
    """

    default_steps: ClassVar[int] = 16

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        process, mask = _masked(field, "FirstHitting")
        size, schedule = len(x), process.schedule
        level = noise.uniform(x.shape).reshape(size, -1) * schedule.jumped(t)
        token = noise.uniform(x.shape)
        hits = (level > schedule.jumped(s)) & (x == mask).cpu().reshape(size, -1)
        level, order = torch.where(hits, level, -1.0).sort(1, descending=True)
        for k in range(int(hits.sum(1).max()) if size else 0):
            chosen = torch.zeros_like(hits).scatter_(1, order[:, k : k + 1], level[:, k : k + 1] >= 0)
            times = schedule.time_of(level[:, k].clamp_min(0))
            x = _reveal(field, x, times, chosen.reshape(x.shape), token)
        return x, None


def jump_model(field: Field) -> JumpModel:
    """The model of a field.

    Raises:
        ValueError: it is no jump model.
    """
    if not isinstance(field.model, JumpModel):
        raise ValueError(
            "solvers of sf.discrete are for a JumpModel; this model has a score, so choose one of sf.solve"
        )
    return field.model


def reverse_rates(field: Field, x: Tensor, t: Tensor) -> Tensor:
    """beta(t) R[y, x] p_t(y) / p_t(x) for every y but x itself, where it is 0: (B, *, S), per unit of time."""
    model = jump_model(field)
    field.calls += 1
    ratio = model.ratio(x, t, **field.cond)
    rates = float(model.process.schedule.rate(t)) * model.process.into(x, ratio.dtype) * ratio
    return rates.scatter(-1, x.long().unsqueeze(-1), 0.0)


def known(field: Field, law: Tensor, x: Tensor, stay: float = 1.0) -> Tensor:
    """Laws or rates (B, *, S) of the next states; samples in which one is no number stay where they are, and count as lost.

    Main arguments:
        stay: weight of the present state of those.
    """
    lost = ~torch.isfinite(law.flatten(1)).all(1)
    if not bool(lost.any()):
        return law
    field.lose(lost)
    here = torch.zeros_like(law).scatter_(-1, x.long().unsqueeze(-1), stay)
    return torch.where(expand(lost, law).bool(), here, law)


def draw(law: Tensor, x: Tensor, noise: Noise) -> Tensor:
    """New states, like x, from probabilities (B, *, S) that need not be normalised, by one uniform number a position.

    The chance to jump is the sum of the others over all, so that neither a rare jump is lost in the rounding of 1, nor a
    certain one missed.
    """
    u = noise.uniform(x.shape)
    own = x.long().unsqueeze(-1)
    stay = law.gather(-1, own).squeeze(-1).cpu().double()
    others = law.scatter(-1, own, 0.0)
    jump = others.sum(-1).cpu().double()
    u = u * (jump + stay)
    return _pick(others, x, u < jump, u)


def leap(mean: Tensor, x: Tensor, noise: Noise, ordinal: bool) -> Tensor:
    """States after jumps with Poisson numbers of the given means (B, *, S)."""
    if not ordinal:  # exactly one jump, with the chance of that
        return draw(with_rest(mean * torch.exp(-mean.sum(-1, keepdim=True)), x), x, noise)
    shape = (noise.size, math.prod(x.shape[1:]) * mean.shape[-1])
    counts = poisson(mean.cpu().double(), noise.uniform(shape).reshape(mean.shape))
    return add_jumps(counts, x)


def add_jumps(counts: Tensor, x: Tensor) -> Tensor:
    """x plus the sum of its jumps, (B, *, S) numbers of jumps to each state, cut to the range; like x."""
    states = torch.arange(counts.shape[-1], device="cpu")
    here = x.long().cpu()
    moved = (counts * (states - here.unsqueeze(-1))).sum(-1).round().long()
    return (here + moved).clamp(0, counts.shape[-1] - 1).to(x.device)


def poisson(mean: Tensor, u: Tensor) -> Tensor:
    """Poisson numbers by inversion of their distribution function; mean and u alike, float64."""
    count, term = torch.zeros_like(mean), torch.exp(-mean)
    below = term.clone()
    largest = float(mean.max()) if mean.numel() else 0.0
    for n in range(1, int(largest + 12 * math.sqrt(largest)) + 30):
        beyond = u > below
        if not bool(beyond.any()):
            break
        count += beyond
        term = term * mean / n
        below = below + term
    return count


def _reveal(field: Field, x: Tensor, times: Tensor, chosen: Tensor, u: Tensor) -> Tensor:
    """x with the chosen positions, like x, drawn from p(x_0 | x) at times (B,), by numbers u; asks only for these samples."""
    rows = chosen.reshape(len(x), -1).any(1).nonzero().squeeze(1)
    if not len(rows):
        return x
    part = take(field, rows) if len(rows) < len(x) else field
    field.calls += 1
    there = rows.to(x.device)
    posterior = jump_model(part).posterior(x[there], times[rows], **part.cond)
    posterior = known(part, posterior, x[there])
    if part is not field and part.lost is not None:
        field.lose(torch.zeros(len(x), dtype=torch.bool, device="cpu").scatter_(0, rows, part.lost))
    x = x.clone()
    x[there] = _pick(posterior, x[there], chosen[rows], u[rows] * posterior.sum(-1).cpu().double())
    return x


def _pick(weights: Tensor, x: Tensor, where: Tensor, u: Tensor) -> Tensor:
    """x with states drawn anew `where`, by weights (B, *, S) and u in (0, their sum); only these rows go to the CPU."""
    if not bool(where.any()):
        return x
    at = where.to(weights.device)
    edges = weights[at].cpu().double().cumsum(-1)
    # Sums in another order and precision differ in the last digits: the last state of positive weight is never passed.
    level = torch.minimum(u[where].unsqueeze(-1), edges[:, -1:] * (1 - 1e-15))
    new = torch.searchsorted(edges, level, right=True).squeeze(-1)
    x = x.clone()
    x[at.to(x.device)] = new.to(x)
    return x


def with_rest(off: Tensor, x: Tensor) -> Tensor:
    """Jump probabilities with what is left of 1, if anything, on the present state."""
    rest = (1 - off.sum(-1, keepdim=True)).clamp_min(0)
    return off.scatter(-1, x.long().unsqueeze(-1), rest)


def _data_only(law: Tensor, process: JumpProcess, s: Tensor) -> Tensor:
    """At time 0 nothing is masked, whatever a network says of it."""
    if process.mask is None or float(process.schedule.total(s)) > 0:
        return law
    return law * (torch.arange(law.shape[-1], device=law.device) != process.mask)


def _singular(field: Field, t: Tensor, s: Tensor) -> bool:
    schedule = jump_model(field).process.schedule
    return not bool(torch.isfinite(schedule.rate(t))) or float(schedule.total(s)) == 0


def _masked(field: Field, name: str) -> tuple[JumpProcess, int]:
    process = jump_model(field).process
    if process.mask is None:
        raise ValueError(
            f"{name} unmasks positions and {type(process).__name__} has no mask; use Tweedie(), or Absorbing"
        )
    return process, process.mask
