"""Distances between laws: Wasserstein and total variation, in closed form, on a grid, or of samples; errors of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scorefield.analytic import GaussianMixture
from scorefield.dtypes import exact
from scorefield.evaluation.metrics import Estimate
from scorefield.model import ScoreModel


def gaussian_w2(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    r"""2-Wasserstein distance of N(mean_a, cov_a) and N(mean_b, cov_b) (Dowson & Landau 1982), means (D,), covariances (D, D).

    W2^2 = |m_a - m_b|^2 + tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2})
    """
    a, b = exact(cov_a), exact(cov_b)
    values, basis = torch.linalg.eigh(a)
    root = (basis * values.clamp_min(0.0).sqrt()) @ basis.mT
    middle = torch.linalg.eigvalsh(root @ b @ root).clamp_min(0.0).sqrt().sum()
    squared = torch.square(exact(mean_a) - exact(mean_b)).sum()
    return math.sqrt(max(float(squared + a.trace() + b.trace() - 2 * middle), 0.0))


def wasserstein_1d(x: Tensor, y: Tensor, p: float = 2.0) -> float:
    """p-Wasserstein distance of two samples of numbers, (n,) and (m,), by their quantile functions.

    Raises:
        ValueError: samples that are empty or not flat.
    """
    a, b = (exact(v).flatten().sort().values for v in (x, y))
    if len(a) == 0 or len(b) == 0:
        raise ValueError(f"wasserstein_1d of {len(a)} and {len(b)} numbers: give at least one of each")
    edges = (
        torch.cat([torch.arange(len(a) + 1, device="cpu") / len(a), torch.arange(len(b) + 1, device="cpu") / len(b)])
        .double()
        .unique()
    )
    middle, width = 0.5 * (edges[1:] + edges[:-1]), edges.diff()
    qa = a[(middle * len(a)).long().clamp_max(len(a) - 1)]
    qb = b[(middle * len(b)).long().clamp_max(len(b) - 1)]
    return math.pow(float((width * (qa - qb).abs() ** p).sum()), 1 / p)


def sliced_w2(x: Tensor, y: Tensor, directions: int = 100, seed: int = 0, p: float = 2.0) -> float:
    """p-Wasserstein distance of samples (n, *) and (m, *), root mean p-th power over directions (Bonneel et al. 2015)."""
    a, b = exact(x).flatten(1), exact(y).flatten(1)
    draws = torch.Generator().manual_seed(seed)
    units = torch.randn(directions, a.shape[1], generator=draws, dtype=torch.float64, device=draws.device)
    units = units / torch.linalg.vector_norm(units, dim=1, keepdim=True)
    powers = [wasserstein_1d(a @ u, b @ u, p) ** p for u in units]
    return math.pow(sum(powers) / directions, 1 / p)


def tv_on_grid(p: Tensor, q: Tensor, spacing: float) -> float:
    """Total variation of two densities by their values (N,) on an even grid: half the integral of |p - q|."""
    return float(0.5 * (exact(p) - exact(q)).abs().sum() * spacing)


@torch.no_grad()
def score_error(model: ScoreModel, oracle: GaussianMixture, t: float, n: int = 4096, seed: int = 0) -> Estimate:
    """Explicit score matching: E || s - grad log p_t ||^2 against an exact model, over n draws of p_t, with its error."""
    x = oracle.sample(n, t, seed)
    gap = torch.square(model.score(x, t) - oracle.score(x, t)).flatten(1).sum(1)
    return Estimate(float(gap.mean()), float(gap.std()) / math.sqrt(n), n, "standard error of a mean")
