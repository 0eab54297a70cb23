"""Distributions of x_T: what sampling starts from, and what a likelihood ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from scorefield.dtypes import check_real, onto, wide
from scorefield.randomness import Noise, Seed, source


class PriorLike(Protocol):
    """Anything that draws x_T: `sde.prior(shape)`, `mixture.marginal(T)`, or an object of the user's own."""

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplePrior:
    """The law of x_T by a sample of it (N, *), such as a long simulation; draws are its rows, with replacement."""

    points: Tensor

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One row for each sample of a running source of noise."""
        u = torch.special.ndtr(noise.normal((noise.size, 1), torch.float64, torch.device("cpu")))[:, 0]
        index = (u * len(self.points)).long().clamp_max(len(self.points) - 1)
        return self.points[index.to(self.points.device)].to(dtype).to(device)

    def log_prob(self, x: Tensor) -> Tensor:
        """A sample has no density.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "prior is a sample, which has no density: give an object with log_prob, such as a GaussianMixture"
        )


@dataclass(frozen=True)
class Prior:
    """Isotropic Gaussian N(0, std^2 I) over batches of shape (B, *)."""

    shape: tuple[int, ...]
    std: float

    def sample(
        self, seed: Seed = None, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """A draw of shape `shape`; `seed` as in `scorefield.sample`.

        Raises:
            ValueError: a dtype that is not a real floating-point one.
        """
        return self.draw(source(seed, self.shape[0]), dtype, torch.device(device))

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A draw from a running source of noise, one row for each of its samples."""
        check_real(torch.empty(0, dtype=dtype, device="cpu"), "the state")
        return self.std * noise.normal((noise.size, *self.shape[1:]), dtype, device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each sample in nats: (B, *) -> (B,), float64 (float32 on a device other than the CPU)."""
        check_real(x)
        flat = wide(x).flatten(1)
        log_norm = flat.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * torch.square(flat / self.std).sum(1) - log_norm


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, L L^T) over samples of shape (*).

    Attributes:
        mean: (*), float64 on the CPU. factor: standard deviations (*), or the lower triangular L (D, D), D = prod(shape).
    """

    mean: Tensor
    factor: Tensor

    @property
    def _full(self) -> bool:
        return self.factor.shape != self.mean.shape

    def sample(self, n: int, seed: Seed = None, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """n draws, (n, *)."""
        return self.draw(source(seed, n), dtype, self.mean.device)

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One draw for each sample of a running source of noise; in float64 on the CPU, then moved."""
        z = noise.normal((noise.size, *self.mean.shape), torch.float64, self.mean.device)
        moved = (z.flatten(1) @ self.factor.mT).reshape(z.shape) if self._full else z * self.factor
        return (self.mean + moved).to(dtype).to(device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats: (B, *) -> (B,), float64 (float32 on a device other than the CPU)."""
        check_real(x)
        state = wide(x)
        centred, factor = (state - onto(self.mean, state)).flatten(1), onto(self.factor, state)
        if self._full:
            white = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
            log_det = torch.log(factor.diagonal()).sum()
        else:
            white, log_det = centred / factor.flatten(), torch.log(factor).sum()
        return -0.5 * torch.square(white).sum(1) - log_det - 0.5 * centred.shape[1] * math.log(2 * math.pi)
