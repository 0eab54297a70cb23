"""Posterior sampling by weighted particles, exact as their number grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.inverse.linear import Measurement, parts, real_rows
from scorefield.model import ScoreModel
from scorefield.noise import Noise, Seed, source
from scorefield.sde import expand
from scorefield.solve.integrate import Field, Solver, integrate
from scorefield.times import GridFn, GridName, sampling_grid


@dataclass(frozen=True)
class Particles:
    """Weighted samples of a posterior.

    Attributes:
        x: states, (P, *).
        weights: their probabilities, (P,) float64, of sum 1.
        ess: effective sample size 1 / sum(weights^2) before each possible resampling, (steps + 1,): where it is a small
            share of P, so are the effective particles, and more of them are needed.
        log_evidence: estimate of log p(y), in nats.
    """

    x: Tensor
    weights: Tensor
    ess: Tensor
    log_evidence: float

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n equally weighted samples, (n, *), drawn from the particles with replacement."""
        g = torch.Generator().manual_seed(seed)
        return self.x[torch.multinomial(self.weights.cpu(), n, replacement=True, generator=g).to(self.x.device)]

    def mean(self) -> Tensor:
        """Posterior mean, (*)."""
        mean: Tensor = torch.tensordot(self.weights.to(self.x), self.x, 1)
        return mean

    def std(self) -> Tensor:
        """Posterior standard deviation of each entry, (*)."""
        return torch.sqrt(torch.tensordot(self.weights.to(self.x), torch.square(self.x - self.mean()), 1))


def twisted_smc(
    model: ScoreModel,
    operator: Measurement,
    y: Tensor,
    noise: float = 0.01,
    *,
    particles: int = 256,
    steps: int = 100,
    grid: GridName | GridFn = "log_snr",
    resample_below: float = 0.5,
    seed: Seed = 0,
    **cond: Any,
) -> Particles:
    r"""Twisted sequential Monte Carlo (Wu et al. 2023, Alg. 1), for any differentiable measurement with Gaussian noise.

    Particles move by an ancestral step with the score of a guess of p(y | x_t), N(y; A D, noise^2 + sigma^2 / (alpha^2 +
    sigma^2)), and are weighted by p(x_s | x_t) guess(x_s) / (guess(x_t) proposal(x_s | x_t)). Whatever the guess, the
    weighted particles tend to the posterior of the sampler itself as their number grows; that of the model, as the
    steps do too. The ancestral step has the best isotropic variance (Bao et al. 2022, Theorem 1), estimated from the
    particles by one random probe each, so that few steps suffice.

    Main arguments:
        operator: A, linear or not. y: one measurement, (1, *). noise: its standard deviation.
        particles: number of particles; memory goes with it.
        steps: ancestral steps.

    Other arguments:
        grid: as in `sample`. resample_below: share of effective particles under which they are resampled.
        seed: as in `sample`. cond: passed to the network.

    Raises:
        ValueError: more than one measurement, fewer than two particles, or noise that is not positive.
    """
    if y.shape[0] != 1:
        raise ValueError(f"y has {y.shape[0]} rows; all particles belong to one measurement (1, *)")
    if particles < 2:
        raise ValueError(f"particles={particles}: at least two are needed")
    if not noise > 0:
        raise ValueError(f"noise={noise}: the measurement noise is positive")
    if model.shape is None:
        raise ValueError("the model does not know its event shape; build it with shape=")
    sde = model.sde
    times = sampling_grid(sde, steps, sde.T, sde.t_min, grid)
    flow = Field(model, cond, particles)
    draws = source(seed, particles)
    with torch.no_grad():
        x = sde.prior((particles, *model.shape)).draw(draws, model.dtype, model.device)
        cloud = _Cloud(torch.zeros(particles, dtype=torch.float64, device=x.device))
        integrate(_Twisted(operator, y, noise, resample_below, float(times[-1]), cloud), flow, x, times, draws)
    assert cloud.data is not None
    weights = torch.softmax(cloud.log_weights, 0)
    evidence = cloud.log_evidence + float(_log_mean(cloud.log_weights))
    return Particles(cloud.data, weights, torch.stack(cloud.ess), evidence)


@dataclass
class _Cloud:
    """What is known of the particles besides their states."""

    log_weights: Tensor
    log_evidence: float = 0.0
    ess: list[Tensor] = field(default_factory=list)
    data: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Twisted(Solver):
    """A step of all particles; the samples of the batch interact, which is why this solver is not public."""

    operator: Measurement
    y: Tensor
    noise: float
    resample_below: float
    end: float
    cloud: _Cloud

    order: ClassVar[float] = 1

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        cloud, sde = self.cloud, field.sde
        if state is None:
            state = self._guess(field, x, t, noise)
            cloud.log_weights = state[1]
            cloud.ess.append(_ess(cloud.log_weights))
        data, guess, pull, spread = state
        if float(cloud.ess[-1]) < self.resample_below * len(x):
            chosen = _systematic(cloud.log_weights, noise)
            x, data, guess, pull = x[chosen], data[chosen], guess[chosen], pull[chosen]
            cloud.log_evidence += float(_log_mean(cloud.log_weights))
            cloud.log_weights = torch.zeros_like(cloud.log_weights)
        a, v = sde.transition_coefficients(s, t)
        shrink = torch.square(sde.sigma(s) / sde.sigma(t))
        gain = sde.alpha(s) * v / sde.sigma(t) ** 2
        std = expand(torch.sqrt(v * shrink + gain**2 * spread), x)
        plain = expand(a * shrink, x) * x + expand(gain, x) * data
        moved = expand(sde.alpha(s) * v / sde.alpha(t), x) * pull
        z = noise.like(x)
        x = plain + moved + std * z
        drift = moved / std
        ratio = -(0.5 * torch.square(drift) + drift * z).flatten(1).double().sum(1)
        state = self._guess(field, x, s, noise)
        cloud.log_weights = cloud.log_weights + ratio + state[1] - guess
        cloud.ess.append(_ess(cloud.log_weights))
        cloud.data = state[0]
        return x, state

    def _guess(self, field: Field, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(D, log of the guess of p(y | x_t) (P,), its gradient like x, mean variance of x_0 given x_t).

        At the end the guess is the likelihood itself.
        """
        sde = field.sde
        spread = 0.0 if float(t) == self.end else float(1 / (1 + torch.exp(sde.log_snr(t))))
        with torch.enable_grad():
            live = x.detach().requires_grad_()
            data = field.denoise(live, t)
            a = parts(self.operator)[0](data)
            residual = real_rows(self.y.to(device=a.device, dtype=a.dtype) - a)
            variance = self.noise**2 + spread
            misfit = torch.square(residual).double().sum(1) / (2 * variance)
            (slope,) = torch.autograd.grad(misfit.sum(), live, retain_graph=True)
            probe = noise.rademacher(x)
            (back,) = torch.autograd.grad(data, live, probe)
        trace = (back.double() * probe.double()).mean()
        known = (sde.sigma(t) ** 2 / sde.alpha(t)).to(trace.device) * trace
        size = residual.shape[1] * 0.5 * math.log(2 * math.pi * variance)
        return data.detach(), -misfit.detach() - size, -slope, known.clamp_min(0.0)


def _ess(log_weights: Tensor) -> Tensor:
    w = torch.softmax(log_weights, 0)
    return 1 / torch.square(w).sum()


def _log_mean(log_weights: Tensor) -> Tensor:
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def _systematic(log_weights: Tensor, noise: Noise) -> Tensor:
    """Indices (P,) in proportion to the weights, with one random number (Kitagawa 1996)."""
    n = len(log_weights)
    u = torch.special.ndtr(noise.normal((n, 1), torch.float64, log_weights.device)[0])
    points = (torch.arange(n, dtype=torch.float64, device=log_weights.device) + u) / n
    edges = torch.cumsum(torch.softmax(log_weights, 0), 0)
    return torch.searchsorted(edges, points).clamp_max(n - 1)
