"""Explicit Runge-Kutta methods on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, expand
from scorefield.randomness import Noise
from scorefield.sde import GaussianSDE
from scorefield.solve.adaptive import Control, Flow, Norm, integrate_adaptive
from scorefield.solve.exponential import DDIM
from scorefield.solve.integrate import Field, Solution, Solver, Span, Tick

Row = tuple[float, ...]

LONGEST_STEP = 0.2
"""Longest step in radians, at tolerances of 1e-5 and below. From data to noise it is pi/2."""


class RungeKutta(Solver):
    """Explicit Runge-Kutta method given by its Butcher tableau.

    Attributes:
        a: lower triangle, one row for each stage after the first. b: weights. c: nodes.
    """

    denoises: ClassVar[bool] = False
    default_steps: ClassVar[int] = 100
    gaussian: ClassVar[bool] = False
    a: ClassVar[tuple[Row, ...]]
    b: ClassVar[Row]
    c: ClassVar[Row]

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        if _at_once(field, t):
            return DDIM().step(field, x, t, s, None, noise)
        h = s - t
        slopes = [field.velocity(x, t)]
        for c, row in zip(self.c[1 : len(self.b)], self.a, strict=False):
            slopes.append(field.velocity(x + expand(h, x) * _combine(row, slopes), t + c * h))
        return x + expand(h, x) * _combine(self.b, slopes), None


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Explicit Euler; one evaluation a step."""

    order = 1
    a, b, c = (), (1.0,), (0.0,)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Explicit trapezoidal rule (Karras et al. 2022, Alg. 1, in t); two evaluations a step."""

    order = 2
    a, b, c = ((1.0,),), (0.5, 0.5), (0.0, 1.0)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical method of order 4; four evaluations a step."""

    order = 4
    a, b, c = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0)


@dataclass(frozen=True, init=False)
class EmbeddedRungeKutta(RungeKutta):
    """Runge-Kutta pair with an error estimate; adaptive, with a step size for every sample, unless steps are given.

    Main arguments:
        rtol, atol: relative and absolute tolerance of a step, in units of x (for variable="angle", of
            x / sqrt(alpha^2 + sigma^2), which near the data is the same).

    Other arguments:
        norm: of the error of a step over one sample: "rms", as usual, lets one entry of D err D^(1/2) times the
            tolerance; "max" holds every entry to it, for about D^(1/10) times the evaluations at order 5.
        variable: "angle" integrates by arctan(sigma / alpha), where the flow is smoothest (see `_Turned`);
            "t" by time, as the paper does, which takes up to twice the evaluations.
        max_steps, min_step: see `Control`; the step is in units of the variable.

    Raises:
        ValueError: a negative tolerance or both 0, or an unknown variable or norm.
    """

    control: Control
    variable: Literal["angle", "t"]

    adapts: ClassVar[bool] = True
    e: ClassVar[Row]
    """Weights of the error estimate."""

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        *,
        norm: Norm = "rms",
        variable: Literal["angle", "t"] = "angle",
        max_steps: int = 10_000,
        min_step: float = 1e-14,
    ) -> None:
        if variable not in ("angle", "t"):
            raise ValueError(f"variable={variable!r} is unknown; choose angle or t")
        object.__setattr__(self, "control", Control(rtol, atol, norm, max_steps, min_step))
        object.__setattr__(self, "variable", variable)

    def adapted(self, field: Field, x: Tensor, span: Span, noise: Noise, save: bool, tick: Tick | None) -> Solution:
        """From x at span[0] to span[1], by the variable.

        By the angle no step is longer than `LONGEST_STEP`, times (tolerance / 1e-5)^(1 / order) where the tolerance is
        looser: over a long step the error estimate of a pair can vanish by accident, and the error then be a hundred times
        the tolerance.
        """
        times = self.saved_times(field.sde, span) if save else torch.zeros(0, dtype=torch.float64, device="cpu")
        if self.variable == "t" or not isinstance(field.sde, GaussianSDE):
            return integrate_adaptive(self, field, x, span, times, tick)
        sde = field.sde
        ends = torch.tensor(span, dtype=torch.float64, device="cpu")
        turned = _Turned(field, sde, span[0], x.shape[1] - field.integrals if field.integrals else None)
        begin, end = _angle(sde, ends).tolist()
        tolerance = max(self.control.rtol, self.control.atol)
        longest = LONGEST_STEP * max(1.0, tolerance / 1e-5) ** (1 / self.order)
        y = turned.shrink(x, ends[0])
        result = integrate_adaptive(self, turned, y, (begin, end), _angle(sde, times), tick, longest)
        grown = [turned.grow(y, t) for y, t in zip(result.path, times, strict=True)]
        path = torch.stack(grown) if grown else result.path
        return replace(result, x=turned.grow(result.x, ends[1]), path=path, times=times)

    def attempt(self, flow: Flow, x: Tensor, t: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """One step with error estimate; see `adaptive.Pair`."""
        slopes = [k]
        for c, row in zip(self.c[1:], self.a, strict=True):
            slopes.append(flow.velocity(_ahead(x, h, row, slopes), t + c * h))
        x_new = _ahead(x, h, self.b, slopes)
        slopes.append(flow.velocity(x_new, t + h))
        return x_new, _combine(self.e, slopes).mul_(expand(h, x)), slopes[-1], len(slopes) - 1

    def size(self, flow: Flow, x: Tensor, x_new: Tensor, t: Tensor) -> Tensor:
        """The state at either end, whichever is larger."""
        return torch.maximum(x.abs(), x_new.abs())


class Bosh3(EmbeddedRungeKutta):
    """Bogacki & Shampine 1989, order 3 with an estimate of order 2; three evaluations a step."""

    order = 3
    a, b, c = ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), (0.0, 1 / 2, 3 / 4)
    e = (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)


class Dopri5(EmbeddedRungeKutta):
    """Dormand & Prince 1980, order 5 with an estimate of order 4 (the paper's RK45, sec. 4.3); six evaluations a step."""

    order = 5
    a = (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    )
    b = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
    c = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
    e = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Tsit5(EmbeddedRungeKutta):
    """Tsitouras 2011, order 5 with an estimate of order 4; six evaluations a step."""

    order = 5
    a = (
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
    )
    b = (
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    )
    c = (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0)
    e = (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        0.015151515151515152,
    )


def _at_once(field: Field, t: Tensor) -> bool:
    """Whether the flow is infinitely fast at t, as where alpha leaves 0 like a root; a step of DDIM then crosses it."""
    sde = field.sde
    if not isinstance(sde, GaussianSDE) or float(t) < sde.T or float(sde.alpha(t)) != 0.0:
        return False
    return not all(bool(torch.isfinite(rate)) for rate in sde.derivatives(t))


def _combine(weights: Row, slopes: list[Tensor]) -> Tensor:
    total: Tensor | None = None
    for w, k in zip(weights, slopes, strict=True):
        if w != 0.0:
            # in place on a tensor of its own: fresh memory costs more than the sum
            total = w * k if total is None else total.add_(k, alpha=w)
    assert total is not None
    return total


def _ahead(x: Tensor, h: Tensor, weights: Row, slopes: list[Tensor]) -> Tensor:
    """x plus h, (B,), times the weighted sum of the slopes; in place but for the first, as in `_combine`."""
    terms = [(expand(w * h, k), k) for w, k in zip(weights, slopes, strict=True) if w != 0.0]
    moved = torch.addcmul(x, *terms[0])
    for c, k in terms[1:]:
        moved.addcmul_(c, k)
    return moved


@dataclass
class _Turned:
    r"""The probability flow by the angle between data and noise, in which it is one equation for every Gaussian SDE.

    With x = alpha E[x_0 | x] + sigma E[eps | x], r = sqrt(alpha^2 + sigma^2) and tan(theta) = sigma / alpha, the flow of
    y = x / r is dy/dtheta = cos(theta) E[eps | x] - sin(theta) E[x_0 | x], in which alpha and sigma occur no more. So all
    SDEs take the same steps, and the growth of x under VE, which is known, takes none. Tolerances then apply to y.

    Attributes:
        dims: number of leading columns that are a state, None for all of x; the rest are integrals of the divergence of
            those, whose rates the velocity has in the same columns.
    """

    flow: Flow
    sde: GaussianSDE
    t_start: float
    dims: int | None

    def velocity(self, y: Tensor, theta: Time) -> Tensor:
        t = self.sde.inverse_log_snr(-2 * torch.log(torch.tan(as_time(theta)))).clamp(0.0, self.sde.T)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        d_alpha, d_sigma = self.sde.derivatives(t)
        squared = alpha**2 + sigma**2
        growth = (alpha * d_alpha + sigma * d_sigma) / squared
        speed = (alpha * d_sigma - sigma * d_alpha) / squared
        radius = torch.sqrt(squared)
        x = self.grow(y, t, radius)
        v = self.flow.velocity(x, t)
        if self.dims is None:
            scale = 1 / (speed * radius)
            moved = expand(scale, v) * v
            return moved.addcmul_(expand(-scale * growth, x).to(x.device), x)  # in place: as in `_combine`
        d = self.dims
        moved = (v[:, :d] - expand(growth, x) * x[:, :d]) * expand(1 / radius, x)
        return torch.cat([moved, v[:, d:] - d * expand(growth, x)], 1) * expand(1 / speed, x)

    def shrink(self, x: Tensor, t: Tensor) -> Tensor:
        """y from x."""
        r = expand(_radius(self.sde, t), x)
        if self.dims is None:
            return x / r
        return torch.cat([x[:, : self.dims] / r, x[:, self.dims :] - self._log_volume(t, x)], 1)

    def grow(self, y: Tensor, t: Tensor, radius: Tensor | None = None) -> Tensor:
        """x from y; `radius` is sqrt(alpha^2 + sigma^2) at t, where it is known."""
        radius = _radius(self.sde, t) if radius is None else radius
        if self.dims is None and bool((radius.to(y.dtype) == 1).all()):  # asked on the CPU
            return y
        r = expand(radius, y)
        if self.dims is None:
            return r * y
        return torch.cat([r * y[:, : self.dims], y[:, self.dims :] + self._log_volume(t, y)], 1)

    def _log_volume(self, t: Tensor, x: Tensor) -> Tensor:
        """Integral of the divergence of what r alone does, from t_start to t."""
        assert self.dims is not None
        return self.dims * expand(torch.log(_radius(self.sde, t) / _radius(self.sde, as_time(self.t_start))), x)


def _radius(sde: GaussianSDE, t: Tensor) -> Tensor:
    return torch.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)


def _angle(sde: GaussianSDE, t: Tensor) -> Tensor:
    return torch.atan2(sde.sigma(t), sde.alpha(t))
