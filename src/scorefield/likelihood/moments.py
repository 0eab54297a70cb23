"""Gaussian approximations of p_T."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.randomness import Noise, Seed, source
from scorefield.sde import GaussianSDE

_FULL_LIMIT = 4096


@dataclass(frozen=True)
class GaussianPrior:
    """N(mean, L L^T) over samples of shape (*).

    Attributes:
        mean: (*), float64. factor: standard deviations (*), or the lower triangular L (D, D), D = prod(shape).
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
        """One draw for each sample of a running source of noise."""
        z = noise.normal((noise.size, *self.mean.shape), torch.float64, device)
        factor = self.factor.to(device)
        moved = (z.flatten(1) @ factor.mT).reshape(z.shape) if self._full else z * factor
        return (self.mean.to(device) + moved).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats: (B, *) -> (B,), float64."""
        centred = (x.double() - self.mean.to(x.device)).flatten(1)
        factor = self.factor.to(x.device)
        if self._full:
            white = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
            log_det = torch.log(factor.diagonal()).sum()
        else:
            white, log_det = centred / factor.flatten(), torch.log(factor).sum()
        return -0.5 * torch.square(white).sum(1) - log_det - 0.5 * centred.shape[1] * math.log(2 * math.pi)


def moments(
    sde: GaussianSDE, data: Tensor | None = None, *, mean: Tensor | None = None, cov: Tensor | float | None = None
) -> GaussianPrior:
    """The Gaussian with the mean and covariance of x_T: N(alpha_T m, alpha_T^2 S + sigma_T^2 I).

    It removes most of the bias of the nominal prior, which takes p_T for N(0, sigma_T^2 I).

    Main arguments:
        data: a sample (N, *) of the data, from which mean and covariance are taken: the full covariance where
            N > D and D <= 4096, the variances otherwise. Not the samples whose likelihood is wanted.
        mean: (*). cov: (D, D), variances (*), or one variance; in place of data.

    Raises:
        ValueError: neither data nor both moments are given, or their shapes do not fit.
    """
    if (data is None) == (mean is None) or (mean is None) != (cov is None):
        raise ValueError("moments: give either data= or both mean= and cov=")
    if data is not None:
        if len(data) < 2:
            raise ValueError(f"moments: data has {len(data)} samples; at least 2 are needed for a variance")
        wide = data.double()
        mean, flat = wide.mean(0), wide.flatten(1)
        full = flat.shape[1] <= min(_FULL_LIMIT, len(flat) - 1)
        spread = torch.cov(flat.T).reshape(flat.shape[1], -1) if full else wide.var(0)
    else:
        assert mean is not None
        mean = torch.as_tensor(mean).double()
        spread = torch.as_tensor(cov, dtype=torch.float64, device=mean.device)
        spread = spread.expand(mean.shape) if spread.ndim == 0 else spread
    alpha, sigma = (c.to(mean.device) for c in (sde.alpha(sde.T), sde.sigma(sde.T)))
    d = mean.numel()
    if spread.shape == mean.shape:
        return GaussianPrior(alpha * mean, torch.sqrt(alpha**2 * spread + sigma**2))
    if spread.shape != (d, d):
        raise ValueError(
            f"moments: cov has shape {tuple(spread.shape)}; give ({d}, {d}), {tuple(mean.shape)} or one number"
        )
    eye = torch.eye(d, dtype=torch.float64, device=mean.device)
    return GaussianPrior(alpha * mean, torch.linalg.cholesky(alpha**2 * spread + sigma**2 * eye))
