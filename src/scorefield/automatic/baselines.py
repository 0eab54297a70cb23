"""Densities that are fitted in seconds, to compare a score model with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.gaussians import fit_gaussians

Density = Callable[[Tensor], Tensor]
"""log p of rows, (N, D) -> (N,), float64."""
FULL = 3072
"""Entries up to which a Gaussian has a full covariance."""
KERNELS = 5000
"""Items of a kernel density at most."""
LOG_2PI = math.log(2 * math.pi)


def gaussian(x: Tensor) -> Density:
    """A Gaussian with the mean and covariance of x, (N, D), drawn towards the variances where N is not large against D."""
    x = x.double()
    mean, d = x.mean(0), x.shape[1]
    variance = x.var(0, correction=0).clamp(min=1e-12)
    if d > FULL:
        return lambda y: -0.5 * ((y.double() - mean).square() / variance + variance.log() + LOG_2PI).sum(1)
    share = d / (d + len(x))
    cov = (1 - share) * torch.cov(x.T, correction=0).reshape(d, d) + share * torch.diag(variance)
    factor = torch.linalg.cholesky(cov + 1e-9 * variance.mean() * torch.eye(d, dtype=torch.float64))
    return lambda y: _normal(y.double(), mean, factor)


def mixture(x: Tensor, seed: int = 0) -> Density:
    """A Gaussian mixture by expectation maximisation; the number of components by the Bayesian information criterion."""
    x = x.double()
    floor = 1e-3 * float(x.var(0, correction=0).mean())
    best, least = fit_gaussians(x, 1, seed, floor=floor), math.inf
    for k in (1, 2, 4, 8, 16, 32):
        if len(x) < 10 * k:
            break
        found = fit_gaussians(x, k, seed, floor=floor)
        criterion = found.parameters * math.log(len(x)) - 2 * float(found.log_prob(x).sum())
        if criterion < least:
            best, least = found, criterion
        elif k > 2:
            break
    return best.log_prob


def kernel(x: Tensor) -> Density:
    """A Gaussian kernel density whose bandwidth has the greatest likelihood when each item is left out in turn."""
    x = x.double()[:KERNELS]
    n, d = x.shape
    scale = float(x.std(0, correction=0).mean())
    few = torch.cdist(x[:1000], x).square()
    few[torch.arange(len(few)), torch.arange(len(few))] = math.inf
    widths = [scale * 10 ** (e / 8) for e in range(-16, 5)]
    scores = [float((torch.logsumexp(-0.5 * few / h**2, 1) - d * math.log(h)).mean()) for h in widths]
    width = widths[scores.index(max(scores))]
    constant = -math.log(n) - d * (math.log(width) + 0.5 * LOG_2PI)
    return lambda y: torch.logsumexp(-0.5 * torch.cdist(y.double(), x).square() / width**2, 1) + constant


def histograms(raw: Tensor, levels: int) -> Density:
    """log P of integers (N, D) of so many levels, each entry by itself.

    The histogram of an entry is drawn towards that of all entries, as far as is best when each item is left out in turn.
    """
    n, d = raw.shape
    cells = raw.long() + torch.arange(d) * levels
    own = torch.zeros(d * levels, dtype=torch.float64)
    own.index_add_(0, cells.flatten(), torch.ones(n * d, dtype=torch.float64))
    common = own.reshape(d, levels).sum(0)
    shared = ((common + 1) / (common.sum() + levels)).repeat(d)
    few = cells[:1000]
    weights = [n * 10.0 ** (e / 2) for e in range(-6, 5)]
    scores = [float(((own[few] - 1 + w * shared[few]) / (n - 1 + w)).log().mean()) for w in weights]
    weight = weights[scores.index(max(scores))]
    logs = ((own + weight * shared) / (n + weight)).log()
    return lambda y: logs[y.long() + torch.arange(d) * levels].sum(1)


def _normal(y: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    z: Tensor = torch.linalg.solve_triangular(factor, (y - mean).T, upper=False)
    result: Tensor = -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - 0.5 * len(mean) * LOG_2PI
    return result
