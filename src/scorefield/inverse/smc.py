"""Posterior sampling by weighted particles, exact as their number grows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.differentiate import differentiation
from scorefield.dtypes import exact, onto, wide
from scorefield.inverse.local_gaussian import Local, local, log_normal
from scorefield.inverse.measurement import (
    Measurement,
    dot,
    from_real_rows,
    in_rows,
    linearize,
    parts,
    read_measurement,
    real_rows,
    warn_of_foreign_units,
)
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, Seed, SeedRows, source
from scorefield.rows import take
from scorefield.solve.integrate import Field, Solver, integrate
from scorefield.times import GridFn, GridName, sampling_grid
from scorefield.tweedie import tweedie

Covariance: TypeAlias = Literal["auto", "full", "isotropic"]
CPU = torch.device("cpu")
FULL = 64
"""Largest number of dimensions whose covariances are computed in full unless asked for otherwise."""


@dataclass(frozen=True, repr=False)
class Particles:
    """Weighted samples of a posterior, or of one for each of M measurements.

    Attributes:
        x: states, (P, *), or (M, P, *) of several measurements; likewise an axis of M before all that follows.
        weights: their probabilities, (P,) float64 on the CPU, of sum 1.
        ess: effective sample size 1 / sum(weights^2) before each possible resampling, (steps + 1,): where it is a small
            share of P, so are the effective particles, and more of them are needed.
        log_evidence: estimate of log p(y), in nats, () float64.
    """

    x: Tensor
    weights: Tensor
    ess: Tensor
    log_evidence: Tensor

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """n equally weighted samples, (n, *), drawn from the particles with replacement."""
        g = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=g).to(self.x.device)
        if index.ndim == 1:
            return self.x[index]
        return self.x[torch.arange(len(index), device=index.device).unsqueeze(1), index]

    def mean(self) -> Tensor:
        """Posterior mean, (*)."""
        return self._average(self.x)

    def std(self) -> Tensor:
        """Posterior standard deviation of each entry, (*)."""
        return torch.sqrt(self._average(torch.square(self.x - self.mean().unsqueeze(self.weights.ndim - 1))))

    def __repr__(self) -> str:
        shape, least = tuple(self.x.shape), float(self.ess.min())
        return f"Particles(x={shape}, fewest effective {least:.3g}, log evidence {self.log_evidence.tolist()})"

    def _average(self, value: Tensor) -> Tensor:
        weights = onto(self.weights, value)
        mean: Tensor = torch.einsum("...p,...pd->...d", weights, value.flatten(weights.ndim))
        return mean.reshape(*value.shape[: weights.ndim - 1], *value.shape[weights.ndim :])


def twisted_smc(
    model: ScoreModel,
    operator: Measurement,
    y: Tensor,
    noise: float = 0.01,
    *,
    particles: int = 256,
    steps: int = 100,
    grid: GridName | GridFn | None = None,
    covariance: Covariance = "auto",
    resample_below: float = 0.5,
    seed: Seed = 0,
    **cond: Any,
) -> Particles:
    r"""Twisted sequential Monte Carlo (Wu et al. 2023, Alg. 1), for any differentiable measurement with Gaussian noise.

    Particles are weighted by p(x_s | x_t) guess(x_s) / (guess(x_t) proposal(x_s | x_t)), with a guess of p(y | x_t). Whatever
    the guess, the weighted particles tend to the posterior of the sampler itself as their number grows; that of the model,
    as the steps do too.

    With the full covariance C of x_0 given x_t (`Local`), p(x_s | x_t) has the exact first two moments, the guess is
    N(y; A D, noise^2 + A C A^T) and the proposal is the best there is; on Gaussian data all weights are equal and the
    particles are exact in any number of steps. With an isotropic one, for many dimensions, C is its mean variance, which a
    random probe of each particle finds (Bao et al. 2022, Theorem 1), and the proposal moves by the guess's score.

    Main arguments:
        operator: A, linear or not. y: one measurement, (1, *) or of the shape of one, or M of them, (M, *), which are taken
            in turn. noise: its standard deviation.
        particles: number of particles for each measurement; memory goes with it.
        steps: ancestral steps.

    Other arguments:
        covariance: "full" costs a network product for each dimension and (particles, d, d) numbers; "isotropic" three
            products in all; "auto" is full up to 64 dimensions.
        grid: as in `sample`; uniform with the full covariance, which needs no small steps but where modes part, and
            "log_snr" with an isotropic one. resample_below: share of
            effective particles under which they are resampled.
        seed: as in `sample`; under an int, particle j of measurement i is sample i * particles + j of that seed.
        cond: passed to the network.

    Raises:
        ValueError: a measurement of another shape, or that is not finite, fewer than two particles, noise that is not positive.
    """
    shape = _check(model, particles, noise, covariance)
    y = in_rows(operator, read_measurement(y), shape)
    warn_of_foreign_units(operator, y, shape, model.sde.range)
    sde = model.sde
    full = covariance == "full" or (covariance == "auto" and math.prod(shape) <= FULL)
    times = sampling_grid(sde, steps, sde.T, sde.t_min, grid or ("uniform" if full else "log_snr"))
    kind = _Full if full else _Isotropic
    found = []
    for i, row in enumerate(y.unsqueeze(1)):
        part = take(operator, torch.tensor([i]), 1 + len(shape)) if len(y) > 1 else operator
        numbers = range(i * particles, (i + 1) * particles)
        draws = source(SeedRows(seed, numbers) if isinstance(seed, int) else seed, particles)
        with torch.no_grad():
            x = sde.prior((particles, *shape)).draw(draws, model.dtype, model.device)
            solver = kind(part, row, noise, resample_below, float(times[-1]))
            _, states = integrate(solver, Field(model, cond, particles), x, times, draws)
        cloud: _Cloud = states[0][1]
        found.append(cloud.particles())
    if len(found) == 1:
        return found[0]
    return Particles(*(torch.stack([getattr(each, name) for each in found]) for name in Particles.__dataclass_fields__))


def _check(model: ScoreModel, particles: int, noise: float, covariance: str) -> tuple[int, ...]:
    """The event shape of a model that can be followed so."""
    if particles < 2:
        raise ValueError(f"particles={particles}: at least two are needed")
    if not 0 < noise < math.inf:
        raise ValueError(f"noise={noise}: the measurement noise is positive")
    if covariance not in ("auto", "full", "isotropic"):
        raise ValueError(f"covariance={covariance!r} is unknown; choose auto, full or isotropic")
    if model.shape is None:
        raise ValueError("the model does not know its event shape; build it with shape=")
    return model.shape


@dataclass(frozen=True)
class _Cloud:
    """What is known of the particles besides x and the law there: a part of the solvers' state.

    Attributes:
        log_weights: (P,). ess: effective sample sizes so far. data: draws of x_0, at the end.
    """

    log_weights: Tensor
    ess: tuple[Tensor, ...]
    log_evidence: float = 0.0
    data: Tensor | None = None

    @classmethod
    def of(cls, guess: Tensor) -> _Cloud:
        """The first weights: the particles come from the prior."""
        return cls(guess, (_ess(guess),))

    def resampled(self, below: float, noise: Noise) -> tuple[_Cloud, Tensor | None]:
        """Indices of the particles that go on, where the weights have become too uneven."""
        if float(self.ess[-1]) >= below * len(self.log_weights):
            return self, None
        index = _systematic(self.log_weights, noise)
        evidence = self.log_evidence + float(_log_mean(self.log_weights))
        return replace(self, log_weights=torch.zeros_like(self.log_weights), log_evidence=evidence), index

    def particles(self) -> Particles:
        """What is known at the end."""
        assert self.data is not None
        evidence = (self.log_evidence + _log_mean(self.log_weights)).cpu().double()
        return Particles(self.data, torch.softmax(self.log_weights, 0), torch.stack(self.ess), evidence)

    def weighed(self, log_ratio: Tensor, data: Tensor | None) -> _Cloud:
        """The cloud after a step."""
        log_weights = self.log_weights + log_ratio
        return replace(self, log_weights=log_weights, ess=(*self.ess, _ess(log_weights)), data=data)


@dataclass(frozen=True, eq=False)
class _Twisted(Solver):
    """A step of all particles; the samples of the batch interact, which is why these solvers are not public."""

    operator: Measurement
    y: Tensor
    noise: float
    resample_below: float
    end: float

    order: ClassVar[float] = 1


class _Full(_Twisted):
    """Steps with the full covariance."""

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        if state is None:
            first_law = local(field, x, t, self.operator, self.y, self.noise)
            state = first_law, _Cloud.of(first_law.guess)
        here: Local = state[0]
        cloud, index = state[1].resampled(self.resample_below, noise)
        if index is not None:
            x, here = x[index], take(here, index)
        a, v = sde.transition_coefficients(s, t)
        shrink = float(torch.square(sde.sigma(s) / sde.sigma(t)))
        gain, base = float(sde.alpha(s) * v / sde.sigma(t) ** 2), float(v) * shrink
        z = noise.normal((len(x), 2 * here.data.shape[1] + here.residual.shape[1]), torch.float64, CPU)
        d = here.data.shape[1]
        first, fresh, misfit = z[:, :d], z[:, d : 2 * d], z[:, 2 * d :]
        drawn = here.condition(_colour(here, first), misfit, self.noise)
        away = gain * drawn + math.sqrt(base) * fresh
        x = onto((float(a) * shrink * exact(x).flatten(1) + gain * here.data + away).reshape(x.shape), x)
        # What the law at t says of y once x_s is known; the law at s replaces it.
        known = base + gain**2 * here.spread
        residual = here.residual - here.measured(here.turn(gain * here.spread / known, away))
        expected = log_normal(residual, here.covariance_factor(base * here.spread / known, self.noise))
        there = local(field, x, s, self.operator, self.y, self.noise)
        ratio = there.guess - expected
        data = None
        if float(s) == self.end:
            change, data = self._finish(there, x, noise)
            ratio = ratio + change
        return x, (there, cloud.weighed(ratio, data))

    def _finish(self, there: Local, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """What the curvature of the operator makes of the weights, (P,), and draws of x_0 from the last law."""
        z = noise.normal((len(x), there.data.shape[1] + there.residual.shape[1]), torch.float64, CPU)
        first, misfit = z[:, : there.data.shape[1]], z[:, there.data.shape[1] :]
        drawn = there.condition(_colour(there, first), misfit, self.noise)
        data = onto((there.data + drawn).reshape(x.shape), x)
        call, adjoint = parts(self.operator)
        if adjoint is not None:
            return torch.zeros_like(there.guess), data
        straight = there.residual - there.measured(drawn)
        curved = exact(real_rows(self.y)) - exact(real_rows(call(data)))
        change: Tensor = (torch.square(straight) - torch.square(curved)).sum(1) / (2 * self.noise**2)
        return change, data


def _colour(law: Local, z: Tensor) -> Tensor:
    """U diag(l)^(1/2) z."""
    return (law.basis @ (torch.sqrt(law.spread) * z).unsqueeze(2)).squeeze(2)


class _Isotropic(_Twisted):
    """Steps with one variance for all directions and particles."""

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        if state is None:
            view = self._guess(field, x, t, noise)
            state = view, _Cloud.of(view[1])
        data, guess, pull, spread = state[0]
        cloud, index = state[1].resampled(self.resample_below, noise)
        if index is not None:
            x, data, guess, pull = x[index], data[index], guess[index], pull[index]
        a, v = sde.transition_coefficients(s, t)
        shrink = torch.square(sde.sigma(s) / sde.sigma(t))
        gain = sde.alpha(s) * v / sde.sigma(t) ** 2
        std = expand(torch.sqrt(v * shrink + gain**2 * spread), x)
        plain = expand(a * shrink, x) * x + expand(gain, x) * data
        moved = expand(sde.alpha(s) * v / sde.alpha(t), x) * pull
        z = noise.like(x)
        x = plain + moved + std * z
        drift = moved / std
        ratio = -exact(wide((0.5 * torch.square(drift) + drift * z).flatten(1)).sum(1))
        view = self._guess(field, x, s, noise)
        return x, (view, cloud.weighed(ratio + view[1] - guess, view[0]))

    def _guess(self, field: Field, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(D, log of the guess of p(y | x_t) (P,), its gradient like x, mean variance of x_0 given x_t).

        At the end the guess is the likelihood itself.
        """
        law = tweedie(lambda point: field.denoise(point, t), field.sde, x, t, keep=False)
        with differentiation():
            a = linearize(self.operator, law.data)
            residual = real_rows(self.y.to(device=a.value.device, dtype=a.value.dtype) - a.value).detach()
            known = exact(law.mean_variance(noise.rademacher(x)).mean()).clamp_min(0.0)
            signs = from_real_rows(noise.rademacher(residual), a.value)
            # M = A C A^T has the mean eigenvalue tr M / m, but tr M^2 / tr M is nearer to the largest: with less, the particles
            # would overshoot along it.
            turned = a.forward(law.covariance(a.adjoint(signs)))
            seen = dot(turned, turned).sum() / dot(signs, turned).sum().clamp_min(1e-30)
            last = float(t) == self.end
            variance = self.noise**2 + (0.0 if last else float(seen.clamp_min(0.0)))
            pull = a.adjoint(from_real_rows(residual, a.value) / variance)
            (slope,) = torch.autograd.grad(law.data, law.x, pull)
        misfit = exact(wide(torch.square(residual)).sum(1)) / (2 * variance)
        size = residual.shape[1] * 0.5 * math.log(2 * math.pi * variance)
        return law.mean, -misfit - size, slope, known


def _ess(log_weights: Tensor) -> Tensor:
    w = torch.softmax(log_weights, 0)
    return 1 / torch.square(w).sum()


def _log_mean(log_weights: Tensor) -> Tensor:
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def _systematic(log_weights: Tensor, noise: Noise) -> Tensor:
    """Indices (P,) in proportion to the weights, with one random number (Kitagawa 1996)."""
    n = len(log_weights)
    u = torch.special.ndtr(noise.normal((n, 1), torch.float64, CPU)[0])
    points = (torch.arange(n, dtype=torch.float64) + u) / n
    edges = torch.cumsum(torch.softmax(log_weights, 0), 0)
    return torch.searchsorted(edges, points).clamp_max(n - 1)
