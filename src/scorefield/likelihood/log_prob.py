"""Log-densities by the probability flow, with error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.dtypes import check_finite, check_real, warn_of_units, wide
from scorefield.inputs import as_tensor
from scorefield.likelihood.moments import moments
from scorefield.likelihood.result import LogProb
from scorefield.likelihood.trace import Distribution, Divergence, Linearizer, Mode, TraceMethod, estimator
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.progress import Bar
from scorefield.randomness import NoiseFn, Seed, chunks, source
from scorefield.rows import take
from scorefield.sampling import LIKELIHOOD_T_MIN, Grid, resolve_prior
from scorefield.sde import SDE, GaussianSDE
from scorefield.solve.integrate import NOT_FINITE, SUCCESS, Field, Solution, Solver
from scorefield.solve.ode import Dopri5


def log_prob(
    model: ScoreModel,
    x: Tensor,
    trace: TraceMethod = "hutchinson",
    probes: int = 1,
    *,
    seed: Seed = None,
    noise: NoiseFn | None = None,
    distribution: Distribution = "rademacher",
    mode: Mode = "auto",
    memory: int = 2**30,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid = None,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    prior: PriorLike | Literal["nominal", "exact", "moments"] = "nominal",
    data: Tensor | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    grad: bool = False,
    **cond: Any,
) -> LogProb:
    r"""log p(x) by the instantaneous change of variables (Song et al. 2021, eq. 39).

    log p_{t_min}(x) = log p_T(x_T) + integral from t_min to T of div velocity(x_t, t) dt

    The divergence is exact (one product for each dimension), or unbiased by Skilling and Hutchinson with probes that
    stay fixed along the trajectory (eq. 40). What comes out is the density at t_min, not at 0.

    Main arguments:
        x: data in the model's range, (B, *).
        trace: "hutchinson", "exact" or "hutch++" (three products for each probe).
        probes: random vectors for each sample; their spread gives the standard error. They share the trajectory.
        seed: as in `sample`; the probes of a sample depend on its seed alone, so work may be split over processes by
            giving each its rows with their own seeds.

    Other arguments:
        noise: callable that returns the next probe (B, *), as a standard-normal tensor whose signs are taken for
            Rademacher probes; not with seed.
        distribution: "rademacher", of the least variance, or "gaussian".
        mode: "forward" or "reverse" differentiation; "auto" is forward where the network has only operations with a
            tangent rule, which is faster and keeps no graph, else reverse; "lean" is forward on one half of the batch
            after the other, for half the memory.
        memory: bytes that the exact trace may use for directions in flight.
        solver: Dopri5(1e-5, 1e-5) by default; any Runge-Kutta method, for example RK4().
        steps, grid: fixed steps, as in `sample`.
        prior: "nominal" N(0, sigma(T)^2 I), "exact" p_T where the model knows it, "moments" for the Gaussian with the
            moments of x_T by a sample `data` (N, *) of the data (see `moments`), or an object with `log_prob`.
        t_end: where the flow ends and the prior stands, T by default; before T the prior is an object, the law of x there
            (see `diagnose.fit_prior`).
        batch_size: samples at a time. progress, cond: as in `sample`.
        grad: keep the graph, for gradients of the log-likelihood with respect to x or to parameters.

    Raises:
        ValueError: an argument out of range, or samples that are not finite.

    Warns:
        RuntimeWarning: samples whose trajectory did not arrive; their nats are NaN, and `status` says why.
    """
    x, solver = _check(model, as_tensor(x), solver, batch_size)
    n = x.shape[0]
    span = (t_min, model.sde.T if t_end is None else float(t_end))
    end = _prior(model, prior, data, x, span)
    times = solver.plan(model.sde, span, steps, grid)
    apart = (batch_size or n) < n or times is None or mode == "lean"
    whole = Field.of(model, cond, n, torch.zeros_like(x[:1]) if apart else None)
    parts: list[Solution] = []
    columns = 1
    keep = grad and torch.is_grad_enabled()
    linearizer = Linearizer(mode, keep)
    with torch.inference_mode(False), torch.set_grad_enabled(keep), Bar("likelihood", progress) as bar:
        for rows, draws in chunks(seed, noise, n, batch_size or n):
            part = x[rows]
            divergence = estimator(trace, part, draws, probes, distribution, linearizer, memory)
            columns = divergence.columns
            field = take(whole, torch.arange(n, device="cpu")[rows])
            flow = AugmentedFlow(field, tuple(x.shape[1:]), x.dtype, divergence, linearizer)
            # The state is kept in float64 where there is one: in float32, thousands of nats keep three decimals.
            state = wide(part).flatten(1)
            y = torch.cat([state, state.new_zeros((len(part), columns))], 1)
            # A Runge-Kutta method asks its field for velocities alone, which the augmented flow has.
            part_of = solver.solve(flow, y, span, source(0, len(y)), grid=times, tick=bar.part(rows, n))  # type: ignore[arg-type]
            parts.append(part_of)
    solution = Solution.joined(parts)
    latent = solution.x[:, :-columns].reshape(x.shape)
    values = end.log_prob(latent).unsqueeze(1) + solution.x[:, -columns:]
    lost = (solution.status == SUCCESS) & ~torch.isfinite(values).all(1)
    solution = replace(solution, status=torch.where(lost, NOT_FINITE, solution.status))
    solution.warn()
    found = LogProb.of_draws(values, solution.nfe, solution.status, math.prod(x.shape[1:]), exact=trace == "exact")
    return replace(found, latent=latent.to(x.dtype), levels=model.data_levels, range=model.data_range)


def _check(model: ScoreModel, x: Tensor, solver: Solver | None, batch_size: int | None) -> tuple[Tensor, Solver]:
    """x, and the solver or the default one."""
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; give at least one sample, (B, *)")
    check_real(x)
    check_finite(x)
    warn_of_units(x, *model.sde.range)
    if isinstance(model.sde, SDE):
        model.sde.check(x, "x")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one sample at a time is needed")
    if solver is not None and not isinstance(solver, Solver):
        raise ValueError(f"solver={solver!r}: give a solver object, such as sf.Dopri5()")
    return x, Dopri5() if solver is None else solver


def _prior(
    model: ScoreModel, prior: PriorLike | str, data: Tensor | None, x: Tensor, span: tuple[float, float]
) -> PriorLike:
    start, end = span
    if not 0 <= start < end <= model.sde.T:
        raise ValueError(f"times must obey 0 <= t_min < t_end <= {model.sde.T}, not t_min={start}, t_end={end}")
    if end < model.sde.T and isinstance(prior, str):
        raise ValueError(
            f"t_end={end} is before T={model.sde.T}: give the law there as prior=, such as diagnose.fit_prior(sde, data, t)"
        )
    if prior == "moments":
        if data is None:
            raise ValueError("prior='moments' needs data=, a sample of the data such as some training images")
        if data.shape[1:] != x.shape[1:]:
            raise ValueError(f"data has event shape {tuple(data.shape[1:])}; x has {tuple(x.shape[1:])}")
        return moments(model.sde, data)
    if data is not None:
        raise ValueError("data= is used by prior='moments' alone")
    found = resolve_prior(model, prior, tuple(x.shape), end)
    if not hasattr(found, "log_prob"):
        raise ValueError(f"prior={prior!r} has no log_prob(x), which a likelihood needs; give the density of x_T too")
    return found


@dataclass
class AugmentedFlow:
    """What `log_prob` integrates: the velocity of (x, integral of the divergence): (B, D + K), K columns of the divergence."""

    field: Field
    event: tuple[int, ...]
    dtype: torch.dtype
    divergence: Divergence
    linearizer: Linearizer
    calls: int = 0

    def velocity(self, y: Tensor, t: Time) -> Tensor:
        """The velocity of every part, like y (B, D + K)."""
        self.calls += 1
        if self.linearizer.mode != "lean":
            return self._at(y, t)
        halves = torch.arange(len(y), device="cpu").tensor_split(2)
        return torch.cat(
            [take(self, i)._at(y[i], t[i] if isinstance(t, Tensor) and t.ndim else t) for i in halves if len(i)]
        )

    def _at(self, y: Tensor, t: Time) -> Tensor:
        d = math.prod(self.event)
        x = y[:, :d].reshape(-1, *self.event).to(self.dtype)

        def at(point: Tensor) -> Tensor:
            return self.field.velocity(point, t)

        v, divergence = self.divergence(at, x)
        return torch.cat([wide(v).flatten(1), divergence], 1)

    def _refuse(self, *_: Any) -> Any:
        raise ValueError("solver: the likelihood needs one that uses the velocity alone, such as Dopri5() or RK4()")

    denoise = noise = score = _refuse

    def project(self, y: Tensor) -> Tensor:
        """y with its state where the process lives; a fold has no divergence, being an isometry."""
        d = math.prod(self.event)
        x = self.field.project(y[:, :d].reshape(-1, *self.event))
        return torch.cat([x.flatten(1), y[:, d:]], 1)

    @property
    def sde(self) -> GaussianSDE:
        """The forward process."""
        return self.field.sde

    @property
    def integrals(self) -> int:
        """Columns of the divergence."""
        return self.divergence.columns
