"""Position and velocity: critically damped Langevin diffusion (Dockhorn et al. 2022), in a form that loses no digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.dtypes import check_batch
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, Seed, generator, source
from scorefield.sde import SDE
from scorefield.solve.integrate import Field, Solver

Weighting: TypeAlias = Literal["noise", "diffusion", "likelihood"]
WEIGHTINGS: tuple[str, ...] = ("noise", "diffusion", "likelihood")


@dataclass(frozen=True)
class CLD(SDE):
    r"""Critically damped Langevin diffusion of position and velocity (Dockhorn et al. 2022, eq. 5).

    dx = beta M^{-1} v dt,   dv = -beta x dt - beta Gamma M^{-1} v dt + (2 Gamma beta)^{1/2} dw,   Gamma^2 = 4 M

    A state is (B, 2 C, *): position and velocity one after the other along the first dimension of the event. In
    w = v / M^{1/2} and z = 2 beta t / M^{1/2} the process has no parameters left: dx = w/2 dz, dw = -(x/2 + w) dz + 2^{1/2} dW.
    Its covariance is written with the incomplete gamma function P(3, z), which keeps all digits where the published sums cancel
    (by half in float32 at t = 1e-3).

    Main arguments:
        beta: rate, per unit of time. mass: M. gamma: variance of the velocity at t = 0, in units of M.

    Raises:
        ValueError: an argument that is not positive (gamma may be 0).
    """

    beta: float = 4.0
    mass: float = 0.25
    gamma: float = 0.04

    T: ClassVar[float] = 1.0
    t_min: ClassVar[float] = 1e-3
    tweedie: ClassVar[bool] = True

    def __post_init__(self) -> None:
        finite = math.isfinite(self.beta + self.mass + self.gamma)
        if not (finite and self.beta > 0 and self.mass > 0 and self.gamma >= 0):
            raise ValueError(f"beta={self.beta}, mass={self.mass}, gamma={self.gamma}: give beta, mass > 0, gamma >= 0")

    @property
    def friction(self) -> float:
        """Gamma = 2 M^{1/2}."""
        return 2 * math.sqrt(self.mass)

    def elapsed(self, t: Time) -> Tensor:
        """z = 2 beta t / M^{1/2}, float64."""
        return 2 * self.beta * as_time(t) / math.sqrt(self.mass)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Drift of a state (B, 2 C, *), like it."""
        position, velocity = split(x)
        force = -position - self.friction / self.mass * velocity
        return self.beta * torch.cat([velocity / self.mass, force], 1)

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """0 for the position, (2 Gamma beta)^{1/2} for the velocity, like x."""
        position, velocity = split(x)
        strength = math.sqrt(2 * self.friction * self.beta)
        return torch.cat([torch.zeros_like(position), torch.full_like(velocity, strength)], 1)

    def kernel_matrices(self, t: Time, velocity: bool = False) -> tuple[Tensor, Tensor]:
        """Mean matrix and covariance of (x, v) given x_0, both (..., 2, 2) float64 for t of shape (...).

        The mean is the matrix times (x_0, v_0). v_0 ~ N(0, gamma M) is integrated out, as hybrid score matching wants it
        (Dockhorn et al. 2022, sec. 3.2), or known with `velocity`.
        """
        z = self.elapsed(t)
        h, decay = 0.5 * z, torch.exp(-z)
        gamma = 0.0 if velocity else self.gamma
        xx = torch.special.gammainc(torch.full_like(z, 3.0), z) + gamma * decay * h**2
        xw = decay * (0.5 * z**2 + gamma * h * (1 - h))
        ww = -torch.expm1(-z) + decay * (z - 0.5 * z**2) + gamma * decay * (1 - h) ** 2
        m = math.sqrt(self.mass)
        mean = _matrix(1 + h, h / m, -h * m, 1 - h) * torch.exp(-h)[..., None, None]
        return mean, _matrix(xx, m * xw, m * xw, m**2 * ww)

    def factor(self, t: Time, velocity: bool = False) -> Tensor:
        """Cholesky factor (..., 2, 2) of the covariance of `kernel_matrices`."""
        cov = self.kernel_matrices(t, velocity)[1]
        first = torch.sqrt(cov[..., 0, 0])
        below = torch.where(first > 0, cov[..., 0, 1] / first.clamp_min(1e-300), torch.zeros_like(first))
        rest = torch.sqrt((cov[..., 1, 1] - below**2).clamp_min(0.0))
        return _matrix(first, torch.zeros_like(first), below, rest)

    def prior(self, shape: Sequence[int]) -> PhasePrior:
        """The equilibrium N(0, I) of positions and N(0, M I) of velocities, for states of shape (B, 2 C, *)."""
        return PhasePrior(tuple(shape), self.mass)


def split(u: Tensor) -> tuple[Tensor, Tensor]:
    """Position and velocity of a state (B, 2 C, *), each (B, C, *).

    Raises:
        ValueError: an odd number of channels.
    """
    if u.ndim < 2 or u.shape[1] % 2:
        raise ValueError(f"a state of position and velocity has an even second dimension, not shape {tuple(u.shape)}")
    position, velocity = u.chunk(2, 1)
    return position, velocity


@dataclass(frozen=True)
class PhasePrior:
    """N(0, I) for positions and N(0, M I) for velocities, over states (B, 2 C, *)."""

    shape: tuple[int, ...]
    mass: float

    def sample(self, seed: Seed = None) -> Tensor:
        """A draw of shape `shape`, float32."""
        return self.draw(source(seed, self.shape[0]), torch.float32, torch.device("cpu"))

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A draw from a running source of noise, one row for each of its samples."""
        position, velocity = split(noise.normal((noise.size, *self.shape[1:]), dtype, device))
        return torch.cat([position, math.sqrt(self.mass) * velocity], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each state in nats, (B,)."""
        position, velocity = split(x)
        whitened = torch.cat([position, velocity / math.sqrt(self.mass)], 1).flatten(1)
        d = position[0].numel()
        return -0.5 * torch.square(whitened).sum(1) - d * math.log(2 * math.pi) - 0.5 * d * math.log(self.mass)


class PhaseModel(ScoreModel):
    r"""A network read through `CLD`: only the score of the velocity is needed, and every view follows from it.

    The network predicts the noise of the velocity, eps_v with grad_v log p = -ell eps_v, ell = 1 / L_22 the inverse of the last
    entry of the Cholesky factor (Dockhorn et al. 2022, sec. 3.2); with `mixed`, what is left after that of a Gaussian
    velocity, v / (ell S_vv) (sec. 3.3 there). E[x_0 | x_t, v_t] follows exactly.

    Main arguments:
        net: called as net(u, t, **cond) with the state u (B, 2 C, *); returns eps_v (B, C, *), or a tensor like u whose second
            half is taken.
        sde: the process. shape: event shape of the data, (C, *).
    """

    partial_score = True

    def __init__(
        self, net: Callable[..., Tensor], sde: CLD, *, shape: Sequence[int] | None = None, mixed: bool = True
    ) -> None:
        state = None if shape is None else (2 * shape[0], *shape[1:])
        super().__init__(net, sde, "noise", shape=state)
        self.process = sde
        self.mixed = mixed

    def velocity_noise(self, u: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[eps_v | x_t, v_t], (B, C, *)."""
        _, velocity = split(u)
        time = batch_time(t, u)
        dtype = self.dtype if any(True for _ in self.parameters()) else u.dtype
        clock = time.to(device=u.device, dtype=dtype).expand(len(u))
        y: Tensor = self.net(u.to(dtype), clock, **cond).to(u.dtype)
        if y.shape == u.shape:
            y = split(y)[1]
        if y.shape != velocity.shape:
            raise ValueError(f"the network returned shape {tuple(y.shape)} for a state of shape {tuple(u.shape)}")
        if not self.mixed:
            return y
        return (
            y
            + expand(self.process.factor(time)[..., 1, 1] / self.process.kernel_matrices(time)[1][..., 1, 1], u)
            * velocity
        )

    def view(self, name: str, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """ "score" and "velocity" of the state, like it (the score of the position, which nothing needs, is 0); "denoise",
        E[x_0 | x_t, v_t] (B, C, *); "noise", of both, like the state."""
        eps = self.velocity_noise(x, t, **cond)
        time = batch_time(t, x)
        low = self.process.factor(time)
        if name in ("score", "velocity"):
            slope = -expand(1 / low[..., 1, 1], x) * eps
            score = torch.cat([torch.zeros_like(slope), slope], 1)
            return score if name == "score" else self.process.velocity(x, time, score)
        position, velocity = split(x)
        mean = self.process.kernel_matrices(time)[0][..., 0]
        ratio = low[..., 1, 0] / low[..., 0, 0]
        rest = velocity - expand(low[..., 1, 1], x) * eps - expand(ratio, x) * position
        data = expand(1 / (mean[..., 1] - mean[..., 0] * ratio), x) * rest
        if name == "denoise":
            return data
        first = expand(1 / low[..., 0, 0], x) * (position - expand(mean[..., 0], x) * data)
        return torch.cat([first, eps], 1)


def hsm_loss(
    model: PhaseModel,
    x0: Tensor,
    *,
    hybrid: bool = True,
    weighting: Weighting = "noise",
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    velocity: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    r"""Hybrid score matching || eps_v(u_t, t) - eps_v ||^2, u_t = mean + L eps (Dockhorn et al. 2022, eq. 8), summed: (B,).

    Main arguments:
        x0: data (B, C, *), in floating point.
        hybrid: integrate the first velocity out; otherwise denoising score matching with a drawn one (eq. 7 there).
        weighting: "noise" as above; "diffusion" times beta Gamma; "likelihood" times beta Gamma ell^2, the bound.
        seed: an int or a generator for times and noise.

    Other arguments:
        t: times, a float or (B,); by default half uniform in [1e-5, 1] and half log-uniform. noise: eps (B, 2 C, *).
        velocity: v_0 (B, C, *), where it is not integrated out.

    Raises:
        ValueError: an unknown weighting, or data that is not in floating point.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r} is unknown; choose one of {', '.join(WEIGHTINGS)}")
    check_batch(x0, "x0")
    sde, draws = model.process, generator(seed)
    n, both = len(x0), (len(x0), 2 * x0.shape[1], *x0.shape[2:])
    if t is None:
        u = torch.rand(n, generator=draws, dtype=torch.float64, device=draws.device)
        even = torch.arange(n, device="cpu") % 2 == 0
        t = torch.where(even, 1e-5 + u * (sde.T - 1e-5), 1e-5 ** (1 - u))
    if velocity is None:
        std = 0.0 if hybrid else math.sqrt(sde.gamma * sde.mass)
        velocity = std * torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
    eps = (
        torch.randn(both, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    time = batch_time(t, x0)
    mean, low = sde.kernel_matrices(time, not hybrid)[0], sde.factor(time, not hybrid)
    first, second = split(eps)
    position = (
        expand(mean[..., 0, 0], x0) * x0 + expand(mean[..., 0, 1], x0) * velocity + expand(low[..., 0, 0], x0) * first
    )
    moved = expand(mean[..., 1, 0], x0) * x0 + expand(mean[..., 1, 1], x0) * velocity
    moved = moved + expand(low[..., 1, 0], x0) * first + expand(low[..., 1, 1], x0) * second
    predicted = model.velocity_noise(torch.cat([position, moved], 1), time, **cond)
    own, used = sde.factor(time)[..., 1, 1], low[..., 1, 1]
    # The model speaks of the hybrid kernel; for the other one its score is read on that one's scale.
    error = torch.square(expand(used / own, x0) * predicted - second).flatten(1).sum(1)
    rate = sde.beta * sde.friction
    scale = {"noise": torch.ones_like(used), "diffusion": rate * torch.ones_like(used), "likelihood": rate / used**2}
    return error * scale[weighting].to(error)


@dataclass(frozen=True)
class SSCS(Solver):
    r"""Symmetric splitting of the reverse process (Dockhorn et al. 2022, Alg. 1): its Ornstein-Uhlenbeck half exactly, around
    a step of the score; one evaluation a step at order 1.

    Order 1 is the published scheme, whose score step is Euler's at the time where the step starts. Order 2 reads the score at
    the middle and integrates the part that is linear in the velocity, -v / S_vv, by its exponential: two evaluations a step.

    Main arguments:
        order: 1 or 2.

    Raises:
        ValueError: another order.
    """

    order: int = 1  # type: ignore[misc]

    grid: ClassVar[str] = "quadratic"
    default_steps: ClassVar[int] = 150
    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order}: choose 1 or 2")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde: Any = field.sde
        dz = float(sde.elapsed(t) - sde.elapsed(s))
        x = _half(sde, x, 0.25 * dz, noise)
        x = self._score_step(field, x, t, s, dz)
        return _half(sde, x, 0.25 * dz, noise), None

    def _score_step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, dz: float) -> Tensor:
        """dw = 2 (w + s_w) dz, in units of v."""
        sde: Any = field.sde
        position, velocity = split(x)
        if self.order == 1:
            slope = velocity + sde.mass * split(field.score(x, t))[1]
            return torch.cat([position, velocity + 2 * dz * slope], 1)
        middle = 0.5 * (t + s)
        spread = float(sde.kernel_matrices(middle)[1][1, 1]) / sde.mass
        rate = 2 * (1 - 1 / spread)

        def ahead(v: Tensor, share: float) -> Tensor:
            rest = 2 * (sde.mass * split(field.score(torch.cat([position, v], 1), middle))[1] + v / spread)
            grown = math.expm1(rate * share * dz)
            moved: Tensor = math.exp(rate * share * dz) * velocity + (grown / rate if rate else share * dz) * rest
            return moved

        moved: Tensor = ahead(ahead(velocity, 0.5), 1.0)
        return torch.cat([position, moved], 1)


def _half(sde: CLD, u: Tensor, h: float, noise: Noise) -> Tensor:
    """dx = -w/2 dz, dw = (x/2 - w) dz + 2^{1/2} dW over z = 2 h, exactly."""
    z, m = 2 * h, math.sqrt(sde.mass)
    position, velocity = split(u)
    decay = math.exp(-h)
    first, second = split(noise.like(u))
    # The covariance is that of the forward process from a point, with the sign of the velocity turned.
    z_ = torch.tensor(z, dtype=torch.float64, device="cpu")
    xx = float(torch.special.gammainc(torch.tensor(3.0, dtype=torch.float64, device="cpu"), z_))
    xw, ww = -math.exp(-z) * 0.5 * z**2, -math.expm1(-z) + math.exp(-z) * (z - 0.5 * z**2)
    l11 = math.sqrt(xx)
    l21 = xw / l11 if l11 else 0.0
    l22 = math.sqrt(max(ww - l21**2, 0.0))
    x = decay * ((1 + h) * position - h / m * velocity) + l11 * first
    v = decay * (h * m * position + (1 - h) * velocity) + m * (l21 * first + l22 * second)
    return torch.cat([x, v], 1)


def log_prob_bound(
    model: PhaseModel, x: Tensor, *, draws: int = 1, seed: int = 0, **options: Any
) -> tuple[Tensor, Tensor]:
    r"""Lower bound on log p(x) in nats, (B,), and its standard error over draws of the velocity.

    log p(x) >= E[log p(x, v_0)] + H(v_0), v_0 ~ N(0, gamma M I) (Dockhorn et al. 2022, App. B.5), log p(x, v) by the flow.

    Main arguments:
        x: data (B, C, *). draws: velocities for each item. options: of `log_prob`.

    Raises:
        ValueError: fewer than one draw, or gamma = 0.
    """
    from scorefield.likelihood import log_prob

    sde = model.process
    check_batch(x)
    if draws < 1 or not sde.gamma > 0:
        raise ValueError(
            f"draws={draws}, gamma={sde.gamma}: the bound needs a draw of a velocity with positive variance"
        )
    variance, d = sde.gamma * sde.mass, math.prod(x.shape[1:])
    entropy = 0.5 * d * math.log(2 * math.pi * math.e * variance)
    noise, found = source(seed, len(x)), []
    for _ in range(draws):
        u = torch.cat([x, math.sqrt(variance) * noise.like(x)], 1)
        found.append(log_prob(model, u, **options).nats + entropy)
    values = torch.stack(found)
    spread = values.std(0) / math.sqrt(draws) if draws > 1 else torch.full_like(values[0], math.nan)
    return values.mean(0), spread


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b], -1), torch.stack([c, d], -1)], -2)
