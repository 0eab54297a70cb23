"""Which neighbouring noise levels a consistency map is trained on, and with which weights: the published curricula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from scorefield.inputs import positive, whole
from scorefield.sde import GaussianSDE

Weighting: TypeAlias = Literal["uniform", "snr", "snr+1", "truncated-snr", "karras"]


def weigh(rho: Tensor, name: Weighting, sigma_data: float = 0.5) -> Tensor:
    """Weight of a noise level rho = sigma / alpha, by its signal-to-noise ratio 1 / rho^2, like rho.

    "uniform" 1, "snr", "snr+1" and "truncated-snr" (at least 1) of Salimans & Ho 2022 (sec. 4), "karras" of Karras et al. 2022
    (Table 1): 1 / rho^2 + 1 / sigma_data^2.

    Raises:
        ValueError: an unknown name.
    """
    snr = 1 / torch.square(rho)
    match name:
        case "uniform":
            return torch.ones_like(rho)
        case "snr":
            return snr
        case "snr+1":
            return snr + 1
        case "truncated-snr":
            return snr.clamp_min(1)
        case "karras":
            return snr + 1 / sigma_data**2
    raise ValueError(f"weighting={name!r} is unknown; choose one of {', '.join(get_args(Weighting))}")


class Pairs(Protocol):
    """Draws neighbouring noise levels: u (B,) in (0, 1) -> rho early, rho late and weights, (B,) float64 each."""

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Karras:
    """Neighbours on the grid of Karras et al. 2022 (eq. 5) with n levels (Song et al. 2023, sec. 6.1).

    Main arguments:
        n: levels. weighting: of the noisier of the two (see `weigh`). sigma_data: standard deviation of the data, for "karras".
        mean, std: of the log of the levels that are drawn (Song & Dhariwal 2024, sec. 3.5); all alike unless mean is given.

    Raises:
        ValueError: fewer than two levels, or an unknown weighting.
    """

    n: int = 18
    exponent: float = 7.0
    weighting: Weighting = "uniform"
    sigma_data: float = 0.5
    mean: float | None = None
    std: float = 2.0

    def __post_init__(self) -> None:
        if whole(self.n, "n", "the number of noise levels") < 2:
            raise ValueError(f"n={self.n}: a grid of noise levels has at least 2")
        positive(exponent=self.exponent, sigma_data=self.sigma_data, std=self.std)
        if self.mean is not None:
            _finite(mean=self.mean)
        weigh(torch.ones(1, device="cpu"), self.weighting)

    def levels(self, sde: GaussianSDE, end: float) -> Tensor:
        """rho = sigma / alpha, rising from `end` to the largest, (n,)."""
        return _levels(sde, end, self.n, self.exponent)

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rho = self.levels(sde, end)
        if self.mean is None:
            i = (u * (self.n - 1)).long().clamp(0, self.n - 2)
        else:
            i = _drawn(u, log_normal(rho, self.mean, self.std))
        return rho[i], rho[i + 1], weigh(rho[i + 1], self.weighting, self.sigma_data)


@dataclass(frozen=True)
class Progressive:
    """More and more levels, and a target that follows faster the more there are (Song et al. 2023, App. C, Table 3).

    N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1 points at step k of K, and
    mu(k) = exp(s_0 log mu_0 / (N(k) - 1)), as the authors' code has it; the paper divides by N(k).

    Main arguments:
        start, stop: s_0 and s_1. total: training steps. decay: mu_0, of the running average that is the target.
    """

    start: int = 2
    stop: int = 150
    total: int = 800_000
    decay: float = 0.95
    exponent: float = 7.0

    def __post_init__(self) -> None:
        if not 2 <= self.start <= self.stop or self.total < 1:
            raise ValueError(
                f"start={self.start}, stop={self.stop}, total={self.total}: give 2 <= start <= stop, total >= 1"
            )
        positive(exponent=self.exponent)
        if not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay} is impossible; expected a number between 0 and 1")

    def count(self, step: int) -> int:
        """Number of levels at a training step."""
        done = min(step / self.total, 1.0)
        return math.ceil(math.sqrt(done * ((self.stop + 1) ** 2 - self.start**2) + self.start**2) - 1) + 1

    def target_decay(self, step: int) -> float:
        """Of the running average of weights that serves as `target`, at a training step."""
        return math.exp(self.start * math.log(self.decay) / (self.count(step) - 1))

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        return Karras(self.count(step), self.exponent)(u, sde, end, step)


@dataclass(frozen=True)
class Curriculum:
    """Twice as many levels every so often, drawn log-normally, weighted by 1 / (rho_late - rho_early) (Song & Dhariwal 2024).

    Main arguments:
        start, stop: numbers of steps between levels at the beginning and at most. total: training steps.
        mean, std: of the log of the noise levels (Table 1 there).
    """

    start: int = 10
    stop: int = 1280
    total: int = 400_000
    mean: float = -1.1
    std: float = 2.0
    exponent: float = 7.0

    def __post_init__(self) -> None:
        if not 1 <= self.start <= self.stop or not self.total >= 1:
            raise ValueError(
                f"start={self.start}, stop={self.stop}, total={self.total}: give 1 <= start <= stop, total >= 1"
            )
        positive(exponent=self.exponent, std=self.std)
        _finite(mean=self.mean)

    def count(self, step: int) -> int:
        """Number of levels at a training step (Song & Dhariwal 2024, eq. 6)."""
        stage = max(1, math.floor(self.total / (math.floor(math.log2(self.stop // self.start)) + 1)))
        return min(self.start << (step // stage), self.stop) + 1

    def probabilities(self, rho: Tensor) -> Tensor:
        """Of the pairs (rho_i, rho_{i + 1}), by the log-normal law between them, (n - 1,)."""
        return log_normal(rho, self.mean, self.std)

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rho = _levels(sde, end, self.count(step), self.exponent)
        i = _drawn(u, self.probabilities(rho))
        return rho[i], rho[i + 1], 1 / (rho[i + 1] - rho[i])


@dataclass(frozen=True)
class Easy:
    """Log-normal levels and an early one that comes nearer by stages (Geng et al. 2024, eq. 14).

    r = max(end, t (1 - n(t) / q^(stage + 1))), n(t) = 1 + 8 sigmoid(-t), weighted by 1 / (t - r).

    Main arguments:
        q: factor between stages. stage: training steps of each.
    """

    q: float = 2.0
    stage: int = 10_000
    mean: float = -1.1
    std: float = 2.0

    def __post_init__(self) -> None:
        whole(self.stage, "stage", "the number of training steps of a stage")
        if not 1 < self.q < math.inf:
            raise ValueError(f"q={self.q} is impossible; expected a factor above 1")
        positive(std=self.std)
        _finite(mean=self.mean)

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        least, most = (float(v) for v in ends(sde, end))
        late = torch.exp(self.mean + self.std * torch.special.ndtri(u)).clamp(least * (1 + 1e-3), most)
        share = 1 - (1 + 8 * torch.sigmoid(-late)) / self.q ** (step // self.stage + 1)
        early = (late * share).clamp_min(least)
        return early, late, 1 / (late - early)


def ends(sde: GaussianSDE, end: float) -> tuple[Tensor, Tensor]:
    """Least and greatest sigma / alpha between `end` and T, float64; where alpha(T) is 0 it counts as 1e-3."""
    least, most = sde.sigma(end) / sde.alpha(end), sde.sigma(sde.T) / sde.alpha(sde.T).clamp_min(1e-3)
    return least, most


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value!r} is impossible; expected a number")


def _levels(sde: GaussianSDE, end: float, n: int, exponent: float) -> Tensor:
    """n values of rho, evenly spaced in rho^{1 / exponent}."""
    least, most = (float(v) ** (1 / exponent) for v in ends(sde, end))
    return torch.linspace(least, most, n, dtype=torch.float64, device="cpu") ** exponent


def log_normal(rho: Tensor, mean: float, std: float) -> Tensor:
    """Masses of a log-normal law between neighbouring levels, summing to 1, (n - 1,) (Song & Dhariwal 2024, eq. 8)."""
    edge = torch.erf((rho.log() - mean) / (math.sqrt(2) * std))
    return edge.diff() / (edge[-1] - edge[0])


def _drawn(u: Tensor, masses: Tensor) -> Tensor:
    """Indices drawn with those masses, from u in (0, 1)."""
    return torch.searchsorted(torch.cumsum(masses, 0), u.contiguous()).clamp_max(len(masses) - 1)
