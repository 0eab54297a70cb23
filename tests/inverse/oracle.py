"""Posteriors in closed form: Gaussian data, and mixtures, under a linear measurement with Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

import scorefield as sf


def rotated(d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian: non-zero, rotated, with variances from 0.05 to 3."""
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    mean = 0.5 * torch.randn(d, generator=g, dtype=torch.float64)
    return mean, basis @ torch.diag(torch.logspace(-1.3, 0.5, d, dtype=torch.float64)) @ basis.T


def gaussian(mean: Tensor, cov: Tensor, sde: sf.GaussianSDE) -> sf.GaussianMixture:
    return sf.GaussianMixture(mean.unsqueeze(0), (0.5 * (cov + cov.T)).unsqueeze(0), None, sde)


def condition(mean: Tensor, cov: Tensor, h: Tensor, y: Tensor, noise: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, covariance) given y = h x + noise z, and the log-evidence of y."""
    spread = h @ cov @ h.T + torch.diag(torch.as_tensor(noise, dtype=torch.float64).expand(len(h)) ** 2)
    gain = cov @ h.T @ torch.linalg.inv(spread)
    evidence = torch.distributions.MultivariateNormal(h @ mean, spread).log_prob(y)
    return mean + gain @ (y - h @ mean), cov - gain @ h @ cov, evidence


def condition_mixture(mixture: sf.GaussianMixture, means, covs, weights, h, y, noise) -> sf.GaussianMixture:
    """The posterior of a mixture, which is again one."""
    parts = [condition(m, c, h, y, noise) for m, c in zip(means, covs, strict=True)]
    log_w = torch.log(torch.as_tensor(weights).double()) + torch.stack([p[2] for p in parts])
    return sf.GaussianMixture(
        torch.stack([p[0] for p in parts]),
        torch.stack([0.5 * (p[1] + p[1].T) for p in parts]),
        torch.softmax(log_w, 0),
        mixture.sde,
    )


def flow_moments(model: sf.ScoreModel, d: int, solver: sf.Solver | None = None, **rest) -> tuple[Tensor, Tensor]:
    """(mean, covariance) of a deterministic sampler whose map is affine, from the images of 0 and of the unit vectors."""
    x_init = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()
    x = sf.sample(model, d + 1, solver, x_init=x_init, **rest)
    linear = (x[1:] - x[0]).T
    return x[0], float(model.sde.sigma(model.sde.T)) ** 2 * linear @ linear.T
