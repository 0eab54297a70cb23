"""Exact likelihoods by the probability flow, with error bars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.noise import NoiseFn, Seed, chunks, source
from scorefield.progress import Bar
from scorefield.sample import LIKELIHOOD_T_MIN, PriorLike, _join, _portion, _resolve_prior, _warn
from scorefield.sde import Time
from scorefield.solve.integrate import Field, Solution, Solver, integrate, integrate_adaptive
from scorefield.solve.ode import Dopri5, EmbeddedRungeKutta
from scorefield.times import sampling_grid

TraceMethod = Literal["hutchinson", "exact"]


@dataclass(frozen=True)
class LogProb:
    """Log-likelihoods of a batch.

    Attributes:
        nats: log p(x) of each sample, averaged over probes, (B,), float64.
        stderr: standard error over probes, (B,); 0 for the exact trace, NaN for a single probe.
        nfe: network evaluations, (B,).
        latent: the state at T, like x.
        probes: log p(x) by each probe, (B, K).
        status: 0 where the solver finished, (B,).
    """

    nats: Tensor
    stderr: Tensor
    nfe: Tensor
    latent: Tensor
    probes: Tensor
    status: Tensor

    def bits_per_dim(self, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Bits per dimension of discrete data with `levels` values that were dequantised to fill [low, high]: (B,).

        A density that is uniform on the range gives log2(levels) (Theis et al. 2016; 8 bits for 256 levels).

        Raises:
            ValueError: fewer than one level, or an empty range.
        """
        width = math.log2(levels_width(levels, low, high))
        return width - self.nats / (self._dims * math.log(2))

    def bits_stderr(self) -> Tensor:
        """Standard error of `bits_per_dim` over probes, (B,)."""
        return self.stderr / (self._dims * math.log(2))

    @property
    def _dims(self) -> int:
        return math.prod(self.latent.shape[1:])


def levels_width(levels: int, low: float, high: float) -> float:
    """Number of levels per unit of the data's range."""
    if levels < 1 or not low < high:
        raise ValueError(f"levels={levels}, low={low}, high={high}: at least one level and low < high are needed")
    return levels / (high - low)


def dequantize(x: Tensor, levels: int = 256, low: float = -1.0, high: float = 1.0, seed: Seed = None) -> Tensor:
    """Integer levels 0 .. levels - 1 to the range [low, high] with uniform noise of one level's width (Theis et al. 2016).

    Main arguments:
        x: integers of any dtype, (B, *). seed: as in `sample`.

    Returns:
        float32, like x.

    Raises:
        ValueError: a value outside 0 .. levels - 1.
    """
    if not x.is_meta and bool(((x < 0) | (x >= levels)).any()):
        raise ValueError(f"x has values outside 0 .. {levels - 1}: these are not the levels of quantised data")
    wide = x.double()
    noise = source(seed, x.shape[0])
    filled: Tensor = low + (wide + torch.special.ndtr(noise.like(wide))) / levels_width(levels, low, high)
    return filled.float()


def log_prob(
    model: ScoreModel,
    x: Tensor,
    trace: TraceMethod = "hutchinson",
    probes: int = 1,
    *,
    seed: Seed = None,
    noise: NoiseFn | None = None,
    distribution: Literal["rademacher", "gaussian"] = "rademacher",
    solver: Solver | None = None,
    t_min: float = LIKELIHOOD_T_MIN,
    prior: PriorLike | Literal["nominal", "exact"] = "nominal",
    batch_size: int | None = None,
    progress: bool | None = None,
    grad: bool = False,
    **cond: Any,
) -> LogProb:
    r"""log p(x) by the instantaneous change of variables (Song et al. 2021, eq. 39).

    log p_{t_min}(x) = log p_T(x_T) + integral from t_min to T of div velocity(x_t, t) dt

    The divergence is exact (one reverse pass for each dimension), or unbiased by Skilling and Hutchinson with probes
    that stay fixed along the trajectory (eq. 40). What comes out is the density at t_min, not at 0.

    Main arguments:
        x: data in the model's range, (B, *).
        trace: "hutchinson" or "exact".
        probes: random vectors for each sample; their spread gives the standard error.
        seed: as in `sample`; the probes of a sample depend on its seed alone.

    Other arguments:
        noise: callable that returns the next probe (B, *), as a standard-normal tensor whose signs are taken for
            Rademacher probes; not with seed.
        distribution: "rademacher", of the least variance, or "gaussian".
        solver: Dopri5(1e-5, 1e-5) by default; any deterministic solver, for example RK4().
        prior: "nominal" N(0, sigma(T)^2 I), "exact" p_T where the model knows it, or an object with `log_prob`.
        batch_size: samples at a time. progress, cond: as in `sample`.
        grad: keep the graph, for gradients of the log-likelihood with respect to x or to parameters.

    Raises:
        ValueError: an argument out of range.
    """
    if trace not in ("hutchinson", "exact"):
        raise ValueError(f"trace={trace!r} is unknown; choose hutchinson or exact")
    if distribution not in ("rademacher", "gaussian"):
        raise ValueError(f"distribution={distribution!r} is unknown; choose rademacher or gaussian")
    if probes < 1:
        raise ValueError(f"probes={probes}: at least one probe is needed")
    n = x.shape[0]
    solver = Dopri5() if solver is None else solver
    end = _resolve_prior(model, prior, tuple(x.shape))
    whole = Field(model, cond, n)
    parts: list[Solution] = []
    columns = 1 if trace == "exact" else probes
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()), Bar("likelihood", progress) as bar:
        for rows, draws in chunks(seed, noise, n, batch_size or n):
            part = x[rows]
            directions = None
            if trace == "hutchinson":
                draw = draws.rademacher if distribution == "rademacher" else draws.like
                directions = torch.stack([draw(part) for _ in range(probes)])
            flow = _Augmented(whole.rows(torch.arange(n)[rows]), tuple(x.shape[1:]), x.dtype, directions, grad)
            # The state is kept in float64: thousands of nats would lose digits in float32.
            y = torch.cat([part.double().flatten(1), part.new_zeros((len(part), columns), dtype=torch.float64)], 1)
            parts.append(_solve(solver, flow, y, model, t_min, _portion(bar, rows, n)))
    solution = _join(parts)
    _warn(solution.status)
    latent = solution.x[:, :-columns].reshape(x.shape)
    values = end.log_prob(latent).unsqueeze(1) + solution.x[:, -columns:]
    spread = values.std(1) if columns > 1 else torch.full_like(values[:, 0], math.nan if trace == "hutchinson" else 0.0)
    stderr = spread / math.sqrt(columns)
    return LogProb(values.mean(1), stderr, solution.nfe, latent.to(x.dtype), values, solution.status)


@dataclass
class _Augmented:
    """Velocity of (x, integral of the divergence): (B, D + K), K probes or 1 for the exact trace."""

    field: Field
    event: tuple[int, ...]
    dtype: torch.dtype
    probes: Tensor | None
    grad: bool

    def velocity(self, y: Tensor, t: Time) -> Tensor:
        d = math.prod(self.event)
        with torch.enable_grad():
            x = y[:, :d].reshape(-1, *self.event).to(self.dtype)
            x = x if self.grad else x.detach().requires_grad_()
            v = self.field.velocity(x, t)
            divergence = self._exact(v, x) if self.probes is None else self._hutchinson(v, x, self.probes)
        moved = torch.cat([v.double().flatten(1), divergence.double()], 1)
        return moved if self.grad else moved.detach()

    def rows(self, index: Tensor) -> _Augmented:
        """The flow for a subset of the samples."""
        probes = None if self.probes is None else self.probes[:, index]
        return _Augmented(self.field.rows(index), self.event, self.dtype, probes, self.grad)

    def _hutchinson(self, v: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        columns = []
        for k, e in enumerate(probes):
            keep = self.grad or k + 1 < len(probes)
            (back,) = torch.autograd.grad(v, x, e, retain_graph=keep, create_graph=self.grad)
            columns.append((back.double() * e.double()).flatten(1).sum(1))
        return torch.stack(columns, 1)

    def _exact(self, v: Tensor, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x), dtype=torch.float64)
        flat = v.flatten(1)
        d = flat.shape[1]
        for start in range(0, d, 64):
            index = torch.arange(start, min(start + 64, d), device=x.device)
            basis = torch.nn.functional.one_hot(index, d).to(flat.dtype)
            sides = basis.unsqueeze(1).expand(len(index), len(x), d)
            (back,) = torch.autograd.grad(
                flat, x, sides, retain_graph=self.grad or start + 64 < d, create_graph=self.grad, is_grads_batched=True
            )
            total = total + back.flatten(2).double().gather(2, index.reshape(-1, 1, 1).expand(-1, len(x), 1)).sum(
                (0, 2)
            )
        return total.unsqueeze(1)


def _solve(solver: Solver, flow: _Augmented, y: Tensor, model: ScoreModel, t_min: float, tick: Any) -> Solution:
    if isinstance(solver, EmbeddedRungeKutta):
        return integrate_adaptive(solver, flow, y, t_min, model.sde.T, tick=tick)
    times = sampling_grid(model.sde, solver.default_steps, model.sde.T, t_min, solver.grid).flip(0)  # type: ignore[arg-type]
    x = integrate(solver, flow, y, times, None, path=None, tick=tick)  # type: ignore[arg-type]
    size = len(y)
    nfe = torch.full((size,), flow.field.calls, device=y.device)
    return Solution(x, nfe, torch.zeros_like(nfe), x.unsqueeze(0), times[-1:])
