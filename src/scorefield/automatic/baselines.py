"""Densities that are fitted in seconds, to compare a score model with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from scorefield.gaussians import fit_gaussians, fit_principal, fit_stationary, principal_log_prob, stationary_log_prob

Density = Callable[[Tensor], Tensor]
"""log p of rows, (N, D) -> (N,), float64."""
FULL = 3072
"""Entries up to which a Gaussian has a full covariance."""
TRIED = 512
"""Entries up to which several forms of it are tried."""
SHARES = (0.0003, 0.003, 0.03, 0.3, 1.0)
"""Of the variances alone in the covariance of a Gaussian, as they are tried."""
KERNELS = 5000
"""Items of a kernel density at most."""
LOG_2PI = math.log(2 * math.pi)


def gaussian(x: Tensor, shape: Sequence[int] | None = None, seed: int = 0) -> Density:
    """The Gaussian of rows x, (N, D), of the form that a fifth of them likes best under the fit to the rest.

    The forms: covariances drawn towards the variances, by several shares; few directions and one variance in the others
    (see `fit_principal`); of items of `shape` (C, *) one that is the same everywhere (see `fit_stationary`). Beyond `TRIED`
    entries one share is taken, beyond `FULL` the variances alone.
    """
    x = x.double()
    n, d = x.shape
    if d > TRIED:
        return _shrunk(x, 1.0 if d > FULL else d / (d + n))
    fits: list[Callable[[Tensor], Density]] = [partial(_shrunk, share=s) for s in {*SHARES, d / (d + n)}]
    if min(n, d) > 2:
        fits.append(partial(_principal, seed=seed))
    if shape is not None and len(shape) > 1:
        fits.append(partial(_stationary, shape=tuple(shape), seed=seed))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    held, seen = x[order[: max(1, n // 5)]], x[order[max(1, n // 5) :]]
    return max(fits, key=lambda fit: float(fit(seen)(held).mean()))(x)


def _shrunk(x: Tensor, share: float) -> Density:
    """With the covariance of the rows, that share of it their variances alone."""
    mean, variance = x.mean(0), x.var(0, correction=0).clamp(min=1e-12)
    d = x.shape[1]
    if share == 1:
        return lambda y: -0.5 * ((y.double() - mean).square() / variance + variance.log() + LOG_2PI).sum(1)
    cov = (1 - share) * torch.cov(x.T, correction=0).reshape(d, d) + share * torch.diag(variance)
    factor = torch.linalg.cholesky(cov + 1e-9 * variance.mean() * torch.eye(d, dtype=torch.float64, device="cpu"))
    return lambda y: _normal(y.double(), mean, factor)


def _principal(x: Tensor, seed: int) -> Density:
    law, _ = fit_principal(x, x.shape[1] - 1, seed)
    return partial(principal_log_prob, law)


def _stationary(x: Tensor, shape: tuple[int, ...], seed: int) -> Density:
    law, _ = fit_stationary(x.reshape(-1, *shape), seed)
    return lambda y: stationary_log_prob(law, y.reshape(-1, *shape))


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
    few[torch.arange(len(few), device="cpu"), torch.arange(len(few), device="cpu")] = math.inf
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
    cells = raw.long() + torch.arange(d, device="cpu") * levels
    own = torch.zeros(d * levels, dtype=torch.float64, device="cpu")
    own.index_add_(0, cells.flatten(), torch.ones(n * d, dtype=torch.float64, device="cpu"))
    common = own.reshape(d, levels).sum(0)
    shared = ((common + 1) / (common.sum() + levels)).repeat(d)
    few = cells[:1000]
    weights = [n * 10.0 ** (e / 2) for e in range(-6, 5)]
    scores = [float(((own[few] - 1 + w * shared[few]) / (n - 1 + w)).log().mean()) for w in weights]
    weight = weights[scores.index(max(scores))]
    logs = ((own + weight * shared) / (n + weight)).log()
    return lambda y: logs[y.long() + torch.arange(d, device="cpu") * levels].sum(1)


def _normal(y: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    z: Tensor = torch.linalg.solve_triangular(factor, (y - mean).T, upper=False)
    result: Tensor = -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - 0.5 * len(mean) * LOG_2PI
    return result
