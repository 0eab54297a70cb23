"""Data with walls: diffusion reflected at the sides of a box (Lou & Ermon 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.dtypes import check_real
from scorefield.randomness import Noise, Seed, source
from scorefield.sde import SDE

IMAGES = 3
"""Mirror images on either side that the kernel sums below `SWITCH`; ten of them agree to 1e-13 there."""
SWITCH = 0.5
"""Noise, in widths of the box, from which on the kernel is a sum of eigenfunctions."""
EIGENFUNCTIONS = 6
"""Cosines of that sum: the next is below 1e-19."""

Bound = float | tuple[float, ...]


@dataclass(frozen=True)
class ReflectedVE(SDE):
    r"""Brownian motion between walls, dx = g(t) dw + dL, with the noise of VE (Lou & Ermon 2023, eq. 5 and sec. 4).

    x_t is x_0 + sigma(t) z folded back into the box as often as it leaves it, sigma(t) = sigma_min (sigma_max / sigma_min)^t;
    from about two widths of the box on it is uniform. There is no Tweedie formula: E[x_0 | x_t] does not follow from the score,
    so solvers that need it are refused. Every solver's states are folded by `project`.

    Main arguments:
        sigma_min, sigma_max: noise at t = 0 and 1, in units of the data.
        low, high: the walls, numbers or one for each entry of the first dimension of an item; infinite on both sides for an
            entry without walls.

    Raises:
        ValueError: noise levels or walls that are not in order, or one wall alone.
    """

    sigma_min: float = 0.01
    sigma_max: float = 2.0
    low: Bound = 0.0
    high: Bound = 1.0

    T: ClassVar[float] = 1.0
    t_min: ClassVar[float] = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"ReflectedVE needs 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}")
        low, high = torch.broadcast_tensors(torch.tensor(self.low, device="cpu"), torch.tensor(self.high, device="cpu"))
        for a, b in zip(low.flatten().tolist(), high.flatten().tolist(), strict=True):
            if not a < b or math.isinf(a) != math.isinf(b):
                raise ValueError(f"walls at {a} and {b}: give low < high, both finite or both infinite")

    @property
    def range(self) -> tuple[float, float]:  # type: ignore[override]
        """Interval in which data is expected."""
        return float(torch.tensor(self.low, device="cpu").min()), float(torch.tensor(self.high, device="cpu").max())

    def alpha(self, t: Time) -> Tensor:
        """1, of the shape of t."""
        return torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Noise before folding, float64, of the shape of t."""
        return self.sigma_min * torch.exp(as_time(t) * self._log_ratio)

    def log_snr(self, t: Time) -> Tensor:
        """-2 log sigma: the noise level that a log of training names."""
        return -2 * torch.log(self.sigma(t))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        """The time of a value of `log_snr`; of its shape, float64."""
        return (-0.5 * as_time(log_snr) - math.log(self.sigma_min)) / self._log_ratio

    def g2(self, t: Time) -> Tensor:
        """Squared diffusion coefficient."""
        return 2 * self._log_ratio * self.sigma(t) ** 2

    def transition_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """(a, v) of the step from s to t before it is folded, a x_s + sqrt(v) z: a = 1, v = sigma_t^2 - sigma_s^2."""
        v = torch.square(self.sigma(t)) - torch.square(self.sigma(s))
        return torch.ones_like(v), v.clamp_min(0.0)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """0: the walls are no part of the drift."""
        return torch.zeros_like(x)

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        """g(t), () or (B,)."""
        return torch.sqrt(self.g2(batch_time(t, x)))

    def divergence(self, x: Tensor, t: Time) -> Tensor:
        """0: the diffusion is the same everywhere."""
        return torch.zeros_like(x)

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t from standard-normal noise, like x0; t is a float or (B,).

        Raises:
            ValueError: data outside the box.
        """
        self.check(x0)
        return self.fold(x0 + expand(self.sigma(batch_time(t, x0)), x0) * noise)

    def noised(self, x_s: Tensor, s: Time, t: Time, noise: Noise) -> Tensor:
        """A draw from p(x_t | x_s), s < t, like x_s."""
        v = self.transition_coefficients(s, t)[1]
        return self.fold(x_s + expand(v.sqrt(), x_s) * noise.like(x_s))

    def check(self, x: Tensor, name: str = "data") -> None:
        """Refuse what lies outside the box by more than rounding.

        Raises:
            ValueError: an entry outside, or not a number.
        """
        check_real(x, name)
        low, high, walls = self._box(x)
        slack = 1e-6 * torch.where(walls, high - low, torch.ones_like(high))
        outside = walls & ~((x >= low - slack) & (x <= high + slack))
        if not x.is_meta and bool(outside.any()):
            worst = float(x[outside].flatten()[0])
            raise ValueError(
                f"{name} has a value {worst:.4g} outside its box [{self.low}, {self.high}]; scale or clip it"
            )

    def project(self, x: Tensor) -> Tensor:
        """x folded back into the box, like x."""
        return self.fold(x)

    def fold(self, x: Tensor) -> Tensor:
        """x reflected at the walls as often as it lies beyond one, like x."""
        return self.mirror(x)[0]

    def mirror(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x folded, and the slope of that, 1 or -1, both like x.

        A score at x beyond a wall is that of the mirrored density: the slope times the score at the folded x.
        """
        low, high, walls = self._box(x)
        width = torch.where(walls, high - low, torch.ones_like(high))
        origin = torch.where(walls, low, torch.zeros_like(low))
        unit = (x - origin) / width
        turns = torch.floor(unit) * (
            unit != 1.0
        )  # without a tangent: every branch is linear, and both walls are inside
        back = torch.remainder(turns, 2.0) == 1
        rest = unit - turns
        folded = torch.where(walls, origin + width * torch.where(back, 1 - rest, rest), x)
        return folded, torch.where(walls & back, -1.0, 1.0).to(low)

    def gate(self, x: Tensor, t: Time) -> Tensor:
        """A factor that falls from 1 to 0 towards each wall within sigma(t), as the score does there, like x inside the box.

        A network's score times this is one of a density that the walls reflect: nothing pushes its flow through them.
        """
        low, high, walls = self._box(x)
        reach = torch.minimum(expand(self.sigma(batch_time(t, x)), x), 0.25 * (high - low))
        return torch.where(walls, torch.tanh((x - low) / reach) * torch.tanh((high - x) / reach), torch.ones_like(x))

    def kernel_score(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        r"""grad log p(x_t | x_0), like x; t is a float or (B,).

        Per entry, in widths of the box, p is the sum over k of N(x; x_0 + 2 k, s^2) + N(x; -x_0 + 2 k, s^2), which is
        1 + 2 sum over n of exp(-n^2 pi^2 s^2 / 2) cos(n pi x_0) cos(n pi x) (Lou & Ermon 2023, sec. 4.1). The first, a sum of
        positive terms taken in logarithms, is accurate everywhere; the second loses the tails where s is small.
        """
        check_real(x)
        check_real(x0, "x0")
        low, high, walls = self._box(x)
        width = torch.where(walls, high - low, torch.ones_like(high))
        origin = torch.where(walls, low, torch.zeros_like(low))
        unit, start = (x - origin) / width, (x0 - origin) / width
        spread = expand(self.sigma(batch_time(t, x)), x) / width
        near = _images(unit, start, spread.clamp_max(SWITCH))
        far = _cosines(unit, start, spread.clamp_min(SWITCH))
        inside = torch.where(spread <= SWITCH, near, far) / width
        return torch.where(walls, inside, (x0 - x) / torch.square(expand(self.sigma(batch_time(t, x)), x)))

    def prior(self, shape: Sequence[int]) -> BoxPrior:
        """Uniform between walls, N(0, sigma_max^2) without, for a batch of shape (B, *)."""
        return BoxPrior(tuple(shape), self)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def _box(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Walls and where there are any, broadcasting with x (B, *)."""
        low, high = torch.broadcast_tensors(torch.tensor(self.low, device="cpu"), torch.tensor(self.high, device="cpu"))
        low, high = low.to(x), high.to(x)
        if low.ndim:
            if x.ndim < 2 or len(low) != x.shape[1]:
                raise ValueError(f"the box has walls for {len(low)} entries; x has shape {tuple(x.shape)}")
            low, high = (v.reshape(1, -1, *[1] * (x.ndim - 2)) for v in (low, high))
        return low, high, torch.isfinite(low)


def _images(x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
    """The score by mirror images, in logarithms."""
    shifts = 2.0 * torch.arange(-IMAGES, IMAGES + 1, dtype=x.dtype, device=x.device)
    centres = torch.cat([x0.unsqueeze(-1) + shifts, -x0.unsqueeze(-1) + shifts], -1)
    away = (centres - x.unsqueeze(-1)) / s.unsqueeze(-1)
    return (torch.softmax(-0.5 * torch.square(away), -1) * away).sum(-1) / s


def _cosines(x: Tensor, x0: Tensor, s: Tensor) -> Tensor:
    """The score by eigenfunctions."""
    n = math.pi * torch.arange(1, EIGENFUNCTIONS + 1, dtype=x.dtype, device=x.device)
    weight = 2 * torch.exp(-0.5 * torch.square(n * s.unsqueeze(-1))) * torch.cos(n * x0.unsqueeze(-1))
    value = 1 + (weight * torch.cos(n * x.unsqueeze(-1))).sum(-1)
    slope = -(weight * n * torch.sin(n * x.unsqueeze(-1))).sum(-1)
    return slope / value


@dataclass(frozen=True)
class Clamped(ReflectedVE):
    """The same process, sampled with its states cut to the box in place of reflected: the biased comparison.

    A state that would leave lands on the wall and stays in reach of it, so that samples have atoms there: 0.63 % of them at 200
    steps of Euler-Maruyama, 4.2 % at 20 (tests/rooms/test_reflected.py). For thresholding as others do it, not for use.
    """

    def project(self, x: Tensor) -> Tensor:
        """x cut to the box, like x."""
        low, high, walls = self._box(x)
        return torch.where(walls, torch.minimum(torch.maximum(x, low), high), x)


@dataclass(frozen=True)
class BoxPrior:
    """Uniform between walls and N(0, sigma_max^2) where there are none, over batches of shape (B, *)."""

    shape: tuple[int, ...]
    sde: ReflectedVE

    def sample(self, seed: Seed = None) -> Tensor:
        """A draw of shape `shape`, float32."""
        return self.draw(source(seed, self.shape[0]), torch.float32, torch.device("cpu"))

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A draw from a running source of noise, one row for each of its samples."""
        z = noise.normal((noise.size, *self.shape[1:]), dtype, device)
        low, high, walls = self.sde._box(z)
        inside = low + (high - low) * torch.special.ndtr(z)
        return torch.where(walls, inside, self.sde.sigma_max * z)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, (B,); -inf beyond a hundredth of the box outside of it, which no solver's error explains."""
        check_real(x)
        low, high, walls = self.sde._box(x)
        width = torch.where(walls, high - low, torch.ones_like(high))
        excess = torch.maximum(low - x, x - high) / width
        s = self.sde.sigma_max
        free = -0.5 * torch.square(x / s) - math.log(s) - 0.5 * math.log(2 * math.pi)
        bounded = torch.where(excess <= 0.01, -torch.log(width).expand_as(x), -math.inf)
        return torch.where(walls, bounded, free).flatten(1).sum(1)


# Simplices


def simplex_to_cube(p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K) as a point of the cube (B, K - 1) by breaking a stick, and log |det| of the map, (B,).

    u_i = p_i / (1 - p_1 - ... - p_{i - 1}) (Lou & Ermon 2023, sec. 5.2, in the other order).

    Raises:
        ValueError: rows that are not probabilities.
    """
    if p.ndim != 2 or bool((p < 0).any()) or not torch.allclose(p.sum(1), torch.ones_like(p[:, 0]), atol=1e-5):
        raise ValueError(f"p has shape {tuple(p.shape)}; give rows (B, K) of probabilities that sum to 1")
    left = (1 - torch.cumsum(p, 1) + p)[:, :-1].clamp_min(torch.finfo(p.dtype).tiny)
    return (p[:, :-1] / left).clamp(0, 1), -torch.log(left).sum(1)


def cube_to_simplex(u: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `simplex_to_cube`: probabilities (B, K) from (B, K - 1), and log |det| of this map, (B,)."""
    left = torch.cat([torch.ones_like(u[:, :1]), torch.cumprod(1 - u, 1)], 1)
    p = torch.cat([left[:, :-1] * u, left[:, -1:]], 1)
    return p, torch.log(left[:, :-1].clamp_min(torch.finfo(u.dtype).tiny)).sum(1)


@dataclass(frozen=True)
class CosineSeries:
    r"""The oracle of reflected diffusion: p_0 = prod_i (1 + sum_n a_n cos(n pi x_i)) on the unit box, exactly at every time.

    Reflection multiplies a_n by exp(-n^2 pi^2 sigma^2 / 2); the flow keeps the distribution function of every entry.

    Main arguments:
        a: coefficients of n = 1, 2, ...; the density must be positive. sde: with walls at 0 and 1.
    """

    a: tuple[float, ...]
    sde: ReflectedVE

    def score(self, x: Tensor, t: Time) -> Tensor:
        """grad log p_t(x), like x."""
        c, n = self._series(x, t)
        value = 1 + (c * torch.cos(n * x.unsqueeze(-1))).sum(-1)
        return -(c * n * torch.sin(n * x.unsqueeze(-1))).sum(-1) / value

    def log_prob(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """log p_t(x) in nats, (B,); at t = 0 that of the data, without the noise sigma_min."""
        c, n = self._series(x, t)
        return torch.log(1 + (c * torch.cos(n * x.unsqueeze(-1))).sum(-1)).flatten(1).sum(1)

    def cdf(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """The distribution function of every entry at time t, like x; that of the data at t = 0."""
        c, n = self._series(x, t)
        return x + (c * torch.sin(n * x.unsqueeze(-1)) / n).sum(-1)

    def _series(self, x: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        time = batch_time(t, x)
        variance = torch.where(time > 0, self.sde.sigma(time) ** 2, torch.zeros_like(time))
        n = math.pi * torch.arange(1, len(self.a) + 1, dtype=x.dtype, device=x.device)
        decay = torch.exp(-0.5 * expand(variance, x).unsqueeze(-1) * n**2)
        return torch.tensor(self.a, dtype=x.dtype, device=x.device) * decay, n
