"""The loop with a step size of its own for every sample, and what controls it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scorefield.coefficients import Time, expand
from scorefield.rows import take
from scorefield.solve.integrate import NOT_FINITE, STEP_TOO_SMALL, SUCCESS, TOO_MANY_STEPS, Solution, Tick

Norm = Literal["rms", "max"]


@dataclass(frozen=True)
class Control:
    """When a step is good enough and how long the next one is (Hairer, Norsett & Wanner, II.4).

    The error norm is taken of error / (atol + rtol size) over one sample; a step is accepted where it is at most 1, and
    the next step is 0.9 norm^(-1 / order) times as long.

    Attributes:
        rtol, atol: relative and absolute tolerance of a step.
        norm: root mean square over a sample, or the largest entry.
        max_steps: attempted steps after which a sample is given up (status 1).
        min_step: step size below which a sample is given up (status 2).

    Raises:
        ValueError: a negative tolerance or both 0, or an unknown norm.
    """

    rtol: float
    atol: float
    norm: Norm = "rms"
    max_steps: int = 10_000
    min_step: float = 1e-14

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(f"rtol={self.rtol}, atol={self.atol}: tolerances are not negative, and not both 0")
        if self.norm not in ("rms", "max"):
            raise ValueError(f"norm={self.norm!r} is unknown; choose rms or max")

    def error(self, error: Tensor, size: Tensor) -> Tensor:
        """The error norm of each sample, (B,), on the CPU; overwrites `size`."""
        scale = size.mul_(self.rtol).add_(self.atol)
        ratio = torch.div(error, scale, out=scale)
        return _rms(ratio) if self.norm == "rms" else ratio.abs_().flatten(1).amax(1).cpu().double()

    def first_step(self, flow: Flow, x: Tensor, t: Tensor, k: Tensor, span: float, order: float) -> Tensor:
        """Starting step size, (B,), in the direction of the sign of span; costs one evaluation."""
        sign, length = math.copysign(1.0, span), abs(span)
        scale = self.atol + self.rtol * x.abs()
        d0, d1 = _rms(x / scale), _rms(k / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp_max(length)
        ahead = flow.velocity(x + expand(sign * h0, x) * k, t + sign * h0)
        d2 = _rms((ahead - k) / scale) / h0
        steepest = torch.maximum(d1, d2)
        h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp_min(1e-6), (0.01 / steepest) ** (1 / order))
        return torch.minimum(100 * h0, h1).clamp_max(length)

    def growth(self, norm: Tensor, rejected: Tensor, order: float) -> Tensor:
        """Factor on the step size after a step of the given error norm; none grows after a rejection."""
        safe = torch.where(torch.isfinite(norm), norm, 1e10).clamp_min(1e-10)
        grow = (0.9 * safe ** (-1 / order)).clamp(0.2, 10.0)
        return torch.where(rejected | ~(norm <= 1), grow.clamp_max(1.0), grow)


class Flow(Protocol):
    """What the adaptive loop needs: a velocity; samples that finish leave it by `scorefield.rows.take`."""

    def velocity(self, x: Tensor, t: Time) -> Tensor: ...


class Pair(Protocol):
    """An explicit Runge-Kutta pair whose last stage is the first of the next step."""

    @property
    def order(self) -> float: ...
    @property
    def control(self) -> Control: ...

    def attempt(self, flow: Flow, x: Tensor, t: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """(x at t + h, error estimate, velocity there, evaluations) from the velocity k at t; t and h are (B,)."""
        ...

    def size(self, flow: Flow, x: Tensor, x_new: Tensor, t: Tensor) -> Tensor:
        """What rtol is relative to in a step from x at t to x_new: a tensor of its own, like x."""
        ...


def integrate_adaptive(
    pair: Pair,
    flow: Flow,
    x: Tensor,
    span: tuple[float, float],
    save: Tensor | None = None,
    tick: Tick | None = None,
    longest: float = math.inf,
) -> Solution:
    """From x at span[0] to span[1], in either direction, with a step size of its own for every sample.

    Times, step sizes and decisions are on the CPU, whatever the device of x: one transfer of the error norms a step.
    Finished samples leave the batch, and are folded where there are walls.

    Other arguments:
        save: times at which to record the path, by cubic Hermite interpolation.
        longest: longest step allowed.
    """
    control, n, end = pair.control, x.shape[0], span[1]
    sign = 1.0 if end > span[0] else -1.0
    save = torch.zeros(0, dtype=torch.float64, device="cpu") if save is None else save
    result, path = x.clone(), [x.clone() for _ in save]
    project = getattr(flow, "project", lambda x: x)  # in between, the velocity is that of the mirrored density
    nfe, status = torch.zeros(n, dtype=torch.long, device="cpu"), torch.full((n,), TOO_MANY_STEPS, device="cpu")
    live, t = torch.arange(n, device="cpu"), torch.full((n,), span[0], dtype=torch.float64, device="cpu")
    if n:
        k = flow.velocity(x, t)
        with torch.no_grad():
            h = control.first_step(flow, x.detach(), t, k.detach(), end - span[0], pair.order)
        nfe += 2
        rejected = torch.zeros(n, dtype=torch.bool, device="cpu")
    for attempt in range(control.max_steps if n else 0):
        left = (end - t).abs()
        h = h.clamp_max(longest)
        last = h >= left * (1 - 1e-12)
        h = torch.where(last, left, h)
        x_new, error, k_new, cost = pair.attempt(flow, x, t, sign * h, k)
        nfe[live] += cost
        # Step sizes are no part of the function to be differentiated: their slopes are noise, and infinite at error 0.
        norm = control.error(error.detach(), pair.size(flow, x.detach(), x_new.detach(), t))
        accept = norm <= 1
        t_new = torch.where(last, end, t + sign * h)
        for j, point in enumerate(save.tolist()):
            inside = accept & (sign * (point - t) > 0) & (sign * (point - t_new) <= 0)
            _record(path[j], live, inside, (x, x_new, k, k_new), (t, t_new), point)
        x, k, t = _where(accept, (x_new, k_new, t_new), (x, k, t))
        h = h * control.growth(norm, rejected, pair.order)
        rejected = ~accept
        done = accept & last
        small = ~done & ~(h >= control.min_step)  # also where h is NaN, as it is when the start was not finite
        stop = done | small if attempt < control.max_steps - 1 else torch.ones_like(done)
        status[live[done]] = SUCCESS
        status[live[small]] = torch.where(torch.isfinite(norm[small]), STEP_TOO_SMALL, NOT_FINITE)
        if bool(stop.any()):
            result = result.index_put((live[stop].to(x.device),), x[stop.to(x.device)])
            keep = torch.nonzero(~stop).squeeze(1)
            there = keep.to(x.device)
            live, t, h, rejected = live[keep], t[keep], h[keep], rejected[keep]
            x, k, flow = x[there], k[there], take(flow, keep)
        if tick is not None:  # of the way, averaged over samples: they finish nearly together
            tick(1 - float((end - t).abs().sum()) / (n * abs(end - span[0])))
        if len(live) == 0:
            break
    result, path = project(result), [project(state) for state in path]
    states = torch.stack(path) if path else x.new_empty(0, *result.shape)
    return Solution(result, nfe.to(x.device), status.to(x.device), states, save)


def _record(
    state: Tensor, live: Tensor, inside: Tensor, ends: Sequence[Tensor], times: tuple[Tensor, Tensor], t: float
) -> None:
    """Write the states at t of the samples whose step went over it."""
    if bool(inside.any()):
        there = inside.to(state.device)
        parts = [end[there] for end in ends]
        state[live[inside].to(state.device)] = _hermite(parts, times[0][inside], times[1][inside], t)


def _where(accept: Tensor, new: Sequence[Tensor], old: Sequence[Tensor]) -> list[Tensor]:
    """The new state where the step is accepted."""
    if bool(accept.all()):
        return list(new)
    return [
        torch.where(accept.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, old, strict=True)
    ]


def _rms(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    length: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return length.cpu().double() / math.sqrt(flat.shape[1])


def _hermite(ends: Sequence[Tensor], t0: Tensor, t1: Tensor, t: float) -> Tensor:
    """Cubic through both ends of a step, x0 and x1, with the velocities there, k0 and k1."""
    x0, x1, k0, k1 = ends
    h = t1 - t0
    u = (t - t0) / h
    a, b = expand((1 + 2 * u) * (1 - u) ** 2, x0), expand(u**2 * (3 - 2 * u), x0)
    c, d = expand(h * u * (1 - u) ** 2, x0), expand(h * u**2 * (u - 1), x0)
    return a * x0 + b * x1 + c * k0 + d * k1
