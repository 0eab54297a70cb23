"""The two loops of the library: fixed grid and adaptive."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.randomness import Noise
from scorefield.rows import take
from scorefield.sde import GaussianSDE, Time, expand

SUCCESS, TOO_MANY_STEPS, STEP_TOO_SMALL, NOT_FINITE = 0, 1, 2, 3
STATUS: dict[int, str] = {
    SUCCESS: "finished",
    TOO_MANY_STEPS: "stopped after max_steps steps",
    STEP_TOO_SMALL: "stopped because the step size fell below min_step",
    NOT_FINITE: "left the finite numbers",
}

Hook: TypeAlias = "Callable[[Tensor, Tensor, Field, Noise], Tensor]"
Tick: TypeAlias = "Callable[[float], None]"


@dataclass(frozen=True)
class Solution:
    """What a solver did.

    Attributes:
        x: final states, (B, *).
        nfe: network evaluations of each sample, (B,).
        status: 0 where the sample finished; see `STATUS` for the rest, (B,).
        path: states along the way, (K, B, *), the first being the start; at most 101 of them, evenly thinned.
        times: the times of `path`, (K,); the last is 0 where a final denoising step was taken.
    """

    x: Tensor
    nfe: Tensor
    status: Tensor
    path: Tensor
    times: Tensor

    def __repr__(self) -> str:
        mean = self.nfe.double().mean().item()
        bad = int((self.status != SUCCESS).sum())
        return f"Solution(x={tuple(self.x.shape)}, nfe={mean:.1f} per sample, unfinished={bad})"


class Flow(Protocol):
    """What the adaptive loop needs: a velocity, and itself for a subset of the samples."""

    def velocity(self, x: Tensor, t: Time) -> Tensor: ...

    def rows(self, index: Tensor) -> Flow: ...


@dataclass
class Field:
    """A model with its condition filled in, which counts evaluations. This is all that a solver sees.

    `cond` entries that are tensors with the batch as first dimension follow the samples when some leave the batch.
    """

    model: ScoreModel
    cond: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    calls: int = 0

    @property
    def sde(self) -> GaussianSDE:
        """The forward process."""
        return self.model.sde

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t]."""
        self.calls += 1
        return self.model.denoise(x, t, **self.cond)

    def noise(self, x: Tensor, t: Time) -> Tensor:
        """E[eps | x_t]."""
        self.calls += 1
        return self.model.noise(x, t, **self.cond)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """grad log p_t."""
        self.calls += 1
        return self.model.score(x, t, **self.cond)

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """dx/dt of the probability flow."""
        self.calls += 1
        return self.model.velocity(x, t, **self.cond)

    def rows(self, index: Tensor) -> Field:
        """The field for a subset of the samples."""
        cond = {k: v[index.to(v.device)] if self.per_sample(v) else v for k, v in self.cond.items()}
        return Field(take(self.model, index), cond, len(index))

    def per_sample(self, value: Any) -> bool:
        """Whether a condition has one row per sample."""
        return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == self.size


class Solver(ABC):
    """One step from time t to time s. It holds no model, no device, no random state and no step index.

    Attributes:
        order: order of convergence (weak order for stochastic solvers).
        grid: name of the grid it works best on.
        steps: default number of steps.
        denoises: whether a final denoising step belongs to the method.
    """

    order: ClassVar[float]
    grid: ClassVar[str] = "uniform"
    default_steps: ClassVar[int] = 500
    denoises: ClassVar[bool] = True

    def stages(self, t: Tensor, s: Tensor) -> Sequence[tuple[Solver, Tensor, Tensor]]:
        """The sub-steps of a step from t to s; hooks run after each."""
        return ((self, t, s),)

    def risen(self, state: Any) -> Any:
        """What is still true of a state after fresh noise was added to x; nothing by default, and the method starts anew."""
        return None

    def prepare(self, field: Field, start: Callable[[int], tuple[Tensor, Noise]], grid: Tensor) -> Solver:
        """The solver with whatever it measures before sampling; `start(n)` draws n states at grid[0]."""
        return self

    @abstractmethod
    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """x at time s from x at time t, and what the next step wants to remember.

        Main arguments:
            x: (B, *). t, s: float64, shape (). state: what the previous step returned, None at the start.
        """


@dataclass
class Path:
    """Keeps at most `limit` + 1 states of a trajectory of known length."""

    steps: int
    limit: int = 100
    states: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, i: int, x: Tensor, t: float) -> None:
        """Record the state after step i."""
        kept = min(self.steps, self.limit)
        if i in (0, self.steps) or (i * kept) // self.steps > ((i - 1) * kept) // self.steps:
            self.states.append(x)
            self.times.append(t)


def integrate(
    solver: Solver,
    field: Field,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    hooks: Iterable[Hook] = (),
    path: Path | None = None,
    tick: Tick | None = None,
) -> tuple[Tensor, dict[int, Any]]:
    """Fixed-grid loop: x at grid[0] to x at grid[-1], and what each stage of the solver remembers at the end.

    Where a falling grid rises in between, the sample is noised by the forward transition, which makes resampling
    (RePaint) and Restart a matter of the grid. A grid that ends above its start is followed by the solver itself.
    """
    hooks = tuple(hooks)
    falling = bool(grid[-1] < grid[0])
    states: dict[int, Any] = {}
    risen = False
    for hook in hooks:
        x = hook(x, grid[0], field, noise)
    if path is not None:
        path.add(0, x, float(grid[0]))
    for i in range(len(grid) - 1):
        t, s = grid[i], grid[i + 1]
        rise = falling and bool(s > t)
        if rise:
            mean, std = field.sde.transition(x, t, s)
            x = mean + std * noise.like(x)
        for k, (stage, a, b) in enumerate(() if rise else solver.stages(t, s)):
            state = stage.risen(states.get(k)) if risen else states.get(k)
            x, states[k] = stage.step(field, x, a, b, state, noise)
            for hook in hooks:
                x = hook(x, b, field, noise)
        risen = rise
        if path is not None:
            path.add(i + 1, x, float(s))
        if tick is not None:
            tick((i + 1) / (len(grid) - 1))
    return x, states


class Pair(Protocol):
    """An explicit Runge-Kutta pair whose last stage is the first of the next step."""

    @property
    def order(self) -> float: ...
    @property
    def rtol(self) -> float: ...
    @property
    def atol(self) -> float: ...
    @property
    def norm(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def min_step(self) -> float: ...

    def attempt(self, flow: Flow, x: Tensor, t: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """(x at t + h, error estimate, velocity there, evaluations) from the velocity k at t; t and h are (B,)."""
        ...

    def size(self, flow: Flow, x: Tensor, x_new: Tensor, t: Tensor) -> Tensor:
        """What rtol is relative to in a step from x at t to x_new: a tensor of its own, like x."""
        ...


def integrate_adaptive(
    solver: Pair,
    flow: Flow,
    x: Tensor,
    t_start: float,
    t_end: float,
    save: Tensor | None = None,
    tick: Tick | None = None,
    longest: float = math.inf,
) -> Solution:
    """Adaptive loop from t_start to t_end, in either direction, with a step size of its own for every sample.

    The error norm is the root mean square (or the largest) of error / (atol + rtol solver.size) over one sample; a step
    is accepted where it is at most 1, and the next step is 0.9 norm^(-1 / order) times as long (Hairer, Norsett &
    Wanner, II.4). Finished samples leave the batch.

    Other arguments:
        save: times at which to record the path, by cubic Hermite interpolation.
        longest: longest step allowed.
    """
    n, sign = x.shape[0], 1.0 if t_end > t_start else -1.0
    save = torch.tensor([t_start, t_end], dtype=torch.float64) if save is None else save
    result = x.clone()
    nfe = torch.zeros(n, dtype=torch.long, device=x.device)
    status = torch.zeros(n, dtype=torch.long, device=x.device)
    path = [x.clone() for _ in save]
    live = torch.arange(n, device=x.device)
    t = torch.full((n,), t_start, dtype=torch.float64, device=x.device)
    if n == 0:
        return Solution(result, nfe, status, result.new_empty(len(save), *result.shape), save)
    k = flow.velocity(x, t)
    with torch.no_grad():
        h = _first_step(solver, flow, x.detach(), t, k.detach(), abs(t_end - t_start), sign)
    nfe += 2
    rejected = torch.zeros_like(h, dtype=torch.bool)
    for attempt in range(solver.max_steps):
        left = (t_end - t).abs()
        h = h.clamp_max(longest)
        last = h >= left * (1 - 1e-12)
        h = torch.where(last, left, h)
        x_new, error, k_new, cost = solver.attempt(flow, x, t, sign * h, k)
        nfe[live] += cost
        # Step sizes are no part of the function to be differentiated: their slopes are noise, and infinite at error 0.
        scale = solver.size(flow, x.detach(), x_new.detach(), t).mul_(solver.rtol).add_(solver.atol)
        ratio = torch.div(error.detach(), scale, out=scale)
        norm = _rms(ratio) if solver.norm == "rms" else ratio.abs_().flatten(1).amax(1).double()
        finite = torch.isfinite(norm)
        accept = norm <= 1
        safe = torch.where(finite, norm, 1e10).clamp_min(1e-10)
        grow = (0.9 * safe ** (-1 / solver.order)).clamp(0.2, 10.0)
        grow = torch.where(rejected | ~accept, grow.clamp_max(1.0), grow)
        t_new = torch.where(last, torch.full_like(t, t_end), t + sign * h)
        for j, point in enumerate(save.tolist()):
            inside = accept & (sign * (point - t) > 0) & (sign * (point - t_new) <= 0)
            if bool(inside.any()):
                path[j][live[inside]] = _hermite(
                    x[inside], x_new[inside], k[inside], k_new[inside], t[inside], t_new[inside], point
                )
        if bool(accept.all()):
            x, k, t = x_new, k_new, t_new
        else:
            wide = accept.reshape(-1, *[1] * (x.ndim - 1))
            x, k, t = torch.where(wide, x_new, x), torch.where(wide, k_new, k), torch.where(accept, t_new, t)
        rejected = ~accept
        h = h * grow
        done = accept & last
        small = ~done & ~(h >= solver.min_step)  # also where h is NaN, as it is when the start was not finite
        lost = small & ~finite
        stop = done | small
        if attempt == solver.max_steps - 1:
            small, stop = small & ~lost, torch.ones_like(stop)
            status[live[~done]] = TOO_MANY_STEPS
        status[live[small]] = STEP_TOO_SMALL
        status[live[lost]] = NOT_FINITE
        if bool(stop.any()):
            result = result.index_put((live[stop],), x[stop])
            keep = torch.nonzero(~stop).squeeze(1)
            live, x, k, t, h = live[keep], x[keep], k[keep], t[keep], h[keep]
            rejected, flow = rejected[keep], flow.rows(keep)
            if tick is not None:
                tick(1 - len(live) / n)
        if len(live) == 0:
            break
    return Solution(result, nfe, status, torch.stack(path) if path else x.new_empty(0, *result.shape), save)


def _first_step(solver: Pair, flow: Flow, x: Tensor, t: Tensor, k: Tensor, span: float, sign: float) -> Tensor:
    """Starting step size (Hairer, Norsett & Wanner, II.4), one for each sample; costs one evaluation."""
    scale = solver.atol + solver.rtol * x.abs()
    d0, d1 = _rms(x / scale), _rms(k / scale)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp_max(span)
    ahead = flow.velocity(x + expand(sign * h0, x) * k, t + sign * h0)
    d2 = _rms((ahead - k) / scale) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / solver.order))
    return torch.minimum(100 * h0, h1).clamp_max(span)


def _rms(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return length.double() / math.sqrt(flat.shape[1])


def _hermite(x0: Tensor, x1: Tensor, k0: Tensor, k1: Tensor, t0: Tensor, t1: Tensor, t: float) -> Tensor:
    """Cubic through both ends of a step with the velocities there."""
    h = t1 - t0
    u = (t - t0) / h
    a, b = expand((1 + 2 * u) * (1 - u) ** 2, x0), expand(u**2 * (3 - 2 * u), x0)
    c, d = expand(h * u * (1 - u) ** 2, x0), expand(h * u**2 * (u - 1), x0)
    return a * x0 + b * x1 + c * k0 + d * k1
