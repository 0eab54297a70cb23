"""The reverse SDE with a step size of its own for every sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, expand
from scorefield.randomness import Noise
from scorefield.solve.adaptive import Control, Flow, integrate_adaptive
from scorefield.solve.integrate import Field, Solution, Solver, Span, Tick
from scorefield.solve.reverse import Ancestral


@dataclass(frozen=True, init=False)
class AdaptiveSDE(Solver):
    """Adaptive reverse SDE (Jolicoeur-Martineau et al. 2021, "Gotta Go Fast", Alg. 1); two evaluations a step.

    Euler-Maruyama and stochastic Heun with the same noise: their difference is the error, their mean the next state. A
    rejected step keeps its Brownian path, which is refined by bridges; drawing afresh, as the paper's code does, would
    prefer paths that are easy to follow. With `steps` or `grid` it is stochastic Heun on a fixed grid.

    Main arguments:
        rtol: tolerance relative to the larger of the state and sigma(t): a state near zero is not worth smaller steps, and
            would make them depend on the noise. atol: absolute one, in units of the state; the paper suggests one level
            of 8-bit data, 2 / 256 = 0.0078 for data in [-1, 1].

    Other arguments:
        max_steps, min_step: see `Control`; the step is in units of t.
    """

    control: Control

    order: ClassVar[float] = 1
    default_steps: ClassVar[int] = 200
    adapts: ClassVar[bool] = True

    def __init__(
        self, rtol: float = 0.025, atol: float = 0.004, *, max_steps: int = 10_000, min_step: float = 1e-12
    ) -> None:
        object.__setattr__(self, "control", Control(rtol, atol, "rms", max_steps, min_step))

    def adapted(self, field: Field, x: Tensor, span: Span, noise: Noise, save: bool, tick: Tick | None) -> Solution:
        """From x at span[0] to span[1]; every sample follows its own Brownian path."""
        times = self.saved_times(field.sde, span) if save else None
        begin, sde = span[0], field.sde
        if crossed := not bool(torch.isfinite(sde.f(begin))):
            # At alpha = 0 the drift is infinite; an ancestral step, which is exact there to first order in alpha, leaves it.
            t, s = (
                torch.tensor(v, dtype=torch.float64, device="cpu") for v in (begin, begin - 1e-3 * (begin - span[1]))
            )
            x, begin = Ancestral().step(field, x, t, s, None, noise)[0], float(s)
        flow = ReverseFlow(field, BrownianPath(noise))
        found = integrate_adaptive(self, flow, x, (begin, span[1]), times, tick)
        return replace(found, nfe=found.nfe + 1) if crossed else found

    def attempt(self, flow: Flow, x: Tensor, t: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """One step with error estimate; see `adaptive.Pair`."""
        assert isinstance(flow, ReverseFlow)
        s = t + h
        y, z = self._both(flow, x, t, s, k, flow.path.increment(x, flow.start - t, flow.start - s))
        x_new = 0.5 * (y + z)
        return x_new, 0.5 * (z - y), flow.velocity(x_new, s), 2

    def size(self, flow: Flow, x: Tensor, x_new: Tensor, t: Tensor) -> Tensor:
        """The larger of the state and the noise level."""
        assert isinstance(flow, ReverseFlow)
        return torch.maximum(torch.maximum(x.abs(), x_new.abs()), expand(flow.field.sde.sigma(t), x))

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        flow = ReverseFlow(field, BrownianPath(noise))
        dw = expand(torch.sqrt((t - s).abs()), x) * noise.like(x)
        y, z = self._both(flow, x, t, s, flow.velocity(x, t), dw)
        return 0.5 * (y + z), None

    def _both(self, flow: ReverseFlow, x: Tensor, t: Tensor, s: Tensor, k: Tensor, dw: Tensor) -> tuple[Tensor, Tensor]:
        """Euler-Maruyama with the coefficients at t, and again with those at what it reaches."""
        sde, h = flow.field.sde, expand(s - t, x)
        y = x + h * k + expand(torch.sqrt(sde.g2(t)), x) * dw
        return y, x + h * flow.velocity(y, s) + expand(torch.sqrt(sde.g2(s)), x) * dw


@dataclass
class ReverseFlow:
    """Drift of the reverse SDE, f x - g^2 score, with the Brownian path of every sample."""

    field: Field
    path: BrownianPath

    @property
    def start(self) -> float:
        """The time that the path counts from."""
        return self.field.sde.T

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """Drift at time t, () or (B,)."""
        sde, time = self.field.sde, as_time(t)
        return expand(sde.f(time), x) * x - expand(sde.g2(time), x) * self.field.score(x, t)


@dataclass
class BrownianPath:
    """Brownian paths W(u), one for each sample, known at the knots asked for so far and refined by bridges between them.

    Every request takes one draw of a sample's stream, so a path depends on what was asked of it and on nothing else.
    """

    noise: Noise
    knots: Tensor | None = None
    """(B, K), rising, infinite where unused; on the CPU, as all times are."""
    values: Tensor | None = None
    """(B, K, *)."""

    per_sample: ClassVar[tuple[str, ...]] = ("knots", "values")

    def increment(self, x: Tensor, begin: Tensor, end: Tensor) -> Tensor:
        """W(end) - W(begin), like x, for (B,) times begin < end; begin is where the last accepted step ended.

        What lies before `begin` is forgotten.
        """
        if self.knots is None or self.values is None:
            knots, values = begin.unsqueeze(1), torch.zeros_like(x).unsqueeze(1)
        else:
            knots, values = self.knots, self.values
        rows = torch.arange(len(x), device="cpu")
        knots = torch.where(knots < begin.unsqueeze(1), torch.inf, knots)
        left, before = torch.where(knots <= end.unsqueeze(1), knots, -torch.inf).max(1)
        right, after = torch.where(knots > end.unsqueeze(1), knots, torch.inf).min(1)
        bounded = torch.isfinite(right)
        share = torch.where(bounded, (end - left) / (torch.where(bounded, right, end + 1) - left), 0.0)
        spread = torch.sqrt(((end - left) * (1 - share)).clamp_min(0.0))
        w_left, w_right = _at(values, rows, before), _at(values, rows, after)
        w = w_left + expand(share, x) * (w_right - w_left) + expand(spread, x) * self.noise.like(x)
        now = torch.where(knots == begin.unsqueeze(1), knots, -torch.inf).argmax(1)
        change = w - _at(values, rows, now)
        knots, values = torch.cat([knots, end.unsqueeze(1)], 1), torch.cat([values, w.unsqueeze(1)], 1)
        used = int(torch.isfinite(knots).sum(1).max())
        order = torch.argsort(knots, dim=1)[:, :used]
        self.knots, self.values = knots.gather(1, order), _at(values, rows.unsqueeze(1), order)
        return change


def _at(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """values[rows, columns], by indices on the CPU."""
    return values[rows.to(values.device), columns.to(values.device)]
