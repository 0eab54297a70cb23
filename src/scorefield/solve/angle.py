"""The probability flow in the variables in which it is one and the same equation for every Gaussian SDE."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.sde import GaussianSDE, Time, as_time, expand
from scorefield.solve.integrate import Flow, Solution, Tick, integrate_adaptive
from scorefield.solve.ode import EmbeddedRungeKutta

LONGEST_STEP = 0.2
"""Longest step in radians, at tolerances of 1e-5 and below. From data to noise it is pi/2."""


def integrate_flow(
    solver: EmbeddedRungeKutta,
    flow: Flow,
    sde: GaussianSDE,
    x: Tensor,
    t_start: float,
    t_end: float,
    save: Tensor | None = None,
    tick: Tick | None = None,
    integrals: int = 0,
) -> Solution:
    r"""Adaptive integration of dx/dt = flow.velocity(x, t) from t_start to t_end, by the variable that the solver names.

    That is t, or the angle between data and noise. With x = alpha E[x_0 | x] + sigma E[eps | x], r = sqrt(alpha^2 + sigma^2)
    and tan(theta) = sigma / alpha, the flow of y = x / r is dy/dtheta = cos(theta) E[eps | x] - sin(theta) E[x_0 | x], in
    which alpha and sigma occur no more. So all SDEs take the same steps, and the growth of x under VE, which is known,
    takes none. Tolerances then apply to y.

    No step is longer than `LONGEST_STEP`, times (tolerance / 1e-5)^(1 / order) where the tolerance is looser: over a long
    step the error estimate of a pair can vanish by accident, and the error then be a hundred times the tolerance.

    Main arguments:
        x: state at t_start, (B, *). With `integrals` = K it is (B, D + K), the last K columns being integrals of the
            divergence of the first D, whose rates the velocity has in its last K columns.
        save: times at which to record the path.

    Returns:
        The solution in terms of x and t.
    """
    if solver.variable == "t":
        return integrate_adaptive(solver, flow, x, t_start, t_end, save, tick)
    ends = torch.tensor([t_start, t_end], dtype=torch.float64)
    times = ends if save is None else save
    turned = _Turned(flow, sde, t_start, x.shape[1] - integrals if integrals else None)
    begin, end = _angle(sde, ends).tolist()
    tolerance = max(solver.rtol, solver.atol)
    longest = LONGEST_STEP * max(1.0, tolerance / 1e-5) ** (1 / solver.order)
    y = turned.shrink(x, ends[0])
    result = integrate_adaptive(solver, turned, y, begin, end, _angle(sde, times), tick, longest)
    grown = [turned.grow(y, t) for y, t in zip(result.path, times, strict=True)]
    path = torch.stack(grown) if grown else result.path
    return replace(result, x=turned.grow(result.x, ends[1]), path=path, times=times)


@dataclass
class _Turned:
    """The flow of y by the angle; `dims` is the number of leading columns that are a state, None for all of x."""

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
        x = self.grow(y, t)
        v = self.flow.velocity(x, t)
        if self.dims is None:
            scale = 1 / (speed * torch.sqrt(squared))
            moved = expand(scale, v) * v
            return moved.addcmul_(expand(-scale * growth, x).to(x.device), x)  # in place: as in `ode._combine`
        d = self.dims
        moved = (v[:, :d] - expand(growth, x) * x[:, :d]) * expand(1 / torch.sqrt(squared), x)
        return torch.cat([moved, v[:, d:] - d * expand(growth, x)], 1) * expand(1 / speed, x)

    def rows(self, index: Tensor) -> _Turned:
        """The flow for a subset of the samples."""
        return replace(self, flow=self.flow.rows(index))

    def shrink(self, x: Tensor, t: Tensor) -> Tensor:
        """y from x."""
        r = expand(_radius(self.sde, t), x)
        if self.dims is None:
            return x / r
        return torch.cat([x[:, : self.dims] / r, x[:, self.dims :] - self._log_volume(t, x)], 1)

    def grow(self, y: Tensor, t: Tensor) -> Tensor:
        """x from y."""
        r = expand(_radius(self.sde, t), y)
        if self.dims is None:
            return y if bool((r == 1).all()) else r * y
        return torch.cat([r * y[:, : self.dims], y[:, self.dims :] + self._log_volume(t, y)], 1)

    def _log_volume(self, t: Tensor, x: Tensor) -> Tensor:
        """Integral of the divergence of what r alone does, from t_start to t."""
        assert self.dims is not None
        return self.dims * expand(torch.log(_radius(self.sde, t) / _radius(self.sde, as_time(self.t_start))), x)


def _radius(sde: GaussianSDE, t: Tensor) -> Tensor:
    return torch.sqrt(sde.alpha(t) ** 2 + sde.sigma(t) ** 2)


def _angle(sde: GaussianSDE, t: Tensor) -> Tensor:
    return torch.atan2(sde.sigma(t), sde.alpha(t))
