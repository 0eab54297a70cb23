"""Gaussians of few directions, and mixtures of Gaussians, fitted to rows."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["full", "tied", "diag"]
"""Covariances of the components: one each, one for all, or variances alone."""


class Mixture(NamedTuple):
    """Weights (K,), means (K, D) and covariances (K, D, D), or of "diag" (K, D), float64."""

    means: Tensor
    covs: Tensor
    weights: Tensor

    def logs(self, y: Tensor) -> Tensor:
        """log of weight times density of each component at rows y (N, D), (N, K)."""
        away = y.double() - self.means[:, None]
        if self.covs.ndim == 2:
            white, log_det = away / self.covs.sqrt()[:, None], 0.5 * self.covs.log().sum(1)
        else:
            factors = torch.linalg.cholesky(self.covs)
            white = torch.linalg.solve_triangular(factors, away.mT, upper=False).mT
            log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        constant = self.weights.log() - log_det - 0.5 * y.shape[1] * math.log(2 * math.pi)
        return (constant[:, None] - 0.5 * white.square().sum(2)).T

    def log_prob(self, y: Tensor) -> Tensor:
        """log-density of rows y (N, D), (N,)."""
        return torch.logsumexp(self.logs(y), 1)

    @property
    def parameters(self) -> int:
        """Free numbers of a mixture whose components have covariances of their own."""
        k, d = self.means.shape
        return k * (1 + d + (d if self.covs.ndim == 2 else d * (d + 1) // 2)) - 1


def fit_gaussians(
    x: Tensor, k: int, seed: int, kind: Kind = "full", *, floor: float = 0.0, settled: float = 1e-3, sweeps: int = 200
) -> Mixture:
    """The mixture of k components to which rows x (N, D) climb from centres spread as by k-means++ (Dempster et al. 1977).

    Main arguments:
        seed: of the first centres. kind: of the covariances.

    Other arguments:
        floor: least eigenvalue of every covariance, which keeps components off single rows.
        settled: gain in nats a row below which it stops. sweeps: at most so many.
    """
    x = x.double()
    means = _centres(x, k, torch.Generator().manual_seed(seed))
    shares = torch.nn.functional.one_hot(torch.cdist(x, means).argmin(1), k).double()
    last = -math.inf
    for _ in range(sweeps):
        found = _maximised(x, shares, kind, floor)
        logs = found.logs(x)
        level, shares = float(torch.logsumexp(logs, 1).mean()), torch.softmax(logs, 1)
        if level - last < settled:
            break
        last = level
    return found


def _maximised(x: Tensor, shares: Tensor, kind: Kind, floor: float) -> Mixture:
    count = shares.sum(0).clamp_min(1e-9)
    means = shares.T @ x / count[:, None]
    weights = count / count.sum()
    if kind == "diag":
        squares = shares.T @ x.square() / count[:, None] - means.square()
        return Mixture(means, squares.clamp_min(max(floor, 1e-12)), weights)
    away = (x - means[:, None]) * shares.T.sqrt()[:, :, None]
    if kind == "tied":
        flat = away.flatten(0, 1)
        return Mixture(means, _at_least(flat.T @ flat / len(x), floor).expand(len(means), -1, -1), weights)
    return Mixture(means, _at_least(away.mT @ away / count[:, None, None], floor), weights)


def _at_least(covs: Tensor, floor: float) -> Tensor:
    """Symmetric matrices (..., D, D) with no eigenvalue below floor."""
    floor = max(floor, 1e-12)
    lowered = covs - floor * torch.eye(covs.shape[-1], dtype=covs.dtype, device="cpu")
    if not bool(torch.linalg.cholesky_ex(lowered).info.any()):
        return covs
    values, basis = torch.linalg.eigh(covs)
    raised: Tensor = (basis * values.clamp_min(floor).unsqueeze(-2)) @ basis.mT
    return raised


def _centres(x: Tensor, k: int, draws: torch.Generator) -> Tensor:
    """Rows of x far from each other (k-means++; Arthur & Vassilvitskii 2007)."""
    picked = [int(torch.randint(len(x), (), generator=draws, device=draws.device))]
    for _ in range(k - 1):
        nearest = torch.square(torch.cdist(x, x[picked])).amin(1)
        picked.append(int(torch.multinomial(nearest.clamp_min(1e-30), 1, generator=draws)))
    return x[picked].clone()


class Principal(NamedTuple):
    """A Gaussian of mean (D,), variances (k,) along the columns of a basis (D, k), and one variance in all other directions."""

    mean: Tensor
    basis: Tensor
    spectrum: Tensor
    rest: Tensor


class Stationary(NamedTuple):
    """A Gaussian the same everywhere on a periodic grid: mean () and variances (C, *) of unitary Fourier coefficients."""

    mean: Tensor
    spectrum: Tensor


def fit_stationary(x: Tensor, seed: int, *, floor: float = 1e-8) -> tuple[Stationary, float]:
    """The stationary Gaussian of items x (N, C, *), channels apart, and what half of them gives the other half in nats.

    Its spectrum is the mean periodogram. Nats leave out D / 2 log(2 pi), as in `fit_principal`.
    """
    x = x.double()
    mean = x.mean()
    power = torch.fft.fftn(x - mean, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square()
    least = floor * float((x - mean).square().mean())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed), device="cpu")
    seen, other = order[: len(x) // 2], order[len(x) // 2 :]
    half = power[seen].mean(0).clamp_min(least)
    nats = -0.5 * (power[other].mean(0) / half + half.log()).sum()
    return Stationary(mean, power.mean(0).clamp_min(least)), float(nats)


def fit_principal(x: Tensor, most: int, seed: int, *, floor: float = 1e-8) -> tuple[Principal, float]:
    """Probabilistic principal components (Tipping & Bishop 1999, sec. 3) of rows x (N, D).

    Also returned are the nats that half of the rows gives the other half, without D / 2 log(2 pi). The number of directions is
    the least under which a random half of the rows is as probable to the fit of the other half
    as under any, but for a standard error.

    Main arguments:
        most: directions at most. seed: of the halves.

    Other arguments:
        floor: least variance, as a share of the mean variance of an entry.
    """
    x = x.double()
    n, d = x.shape
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), device="cpu")
    seen, other = x[order[: n // 2]], x[order[n // 2 :]]
    mean, basis, spectrum = _directions(seen, most)
    least = floor * float((x - x.mean(0)).square().mean())
    total = float((seen - mean).square().sum()) / len(seen)
    along = (other - mean) @ basis
    left = (other - mean).square().sum(1, keepdim=True) - along.square().cumsum(1)
    counts = torch.arange(1, len(spectrum) + 1, device="cpu")
    rest = ((total - spectrum.cumsum(0)).clamp_min(0) / (d - counts).clamp_min(1)).clamp_min(least)
    inside = (along.square() / spectrum.clamp_min(least)).cumsum(1) + spectrum.clamp_min(least).log().cumsum(0)
    nats = -0.5 * (inside + left.clamp_min(0) / rest + (d - counts) * rest.log())
    behind = nats[:, [int(nats.mean(0).argmax())]] - nats
    k = 1 + int((behind.mean(0) <= behind.std(0) / len(other) ** 0.5 + 1e-6 * d).nonzero()[0])
    held_out = float(nats[:, k - 1].mean())
    mean, basis, spectrum = _directions(x, k)
    total = float((x - mean).square().sum()) / n
    rest = torch.tensor(max((total - float(spectrum.sum())) / max(d - k, 1), least), dtype=x.dtype, device="cpu")
    return Principal(mean, basis, spectrum.clamp_min(least), rest), held_out


def principal_log_prob(law: Principal, x: Tensor) -> Tensor:
    """log-density of rows x (N, D), (N,), float64."""
    away = x.double() - law.mean
    along, left = away @ law.basis, away.shape[1] - len(law.spectrum)
    inside = (along.square() / law.spectrum + law.spectrum.log()).sum(1)
    outside = (away.square().sum(1) - along.square().sum(1)).clamp_min(0) / law.rest + left * law.rest.log()
    return -0.5 * (inside + outside + away.shape[1] * math.log(2 * math.pi))


def stationary_log_prob(law: Stationary, x: Tensor) -> Tensor:
    """log-density of items x (N, C, *), (N,), float64."""
    power = torch.fft.fftn(x.double() - law.mean, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square()
    nats: Tensor = -0.5 * (power / law.spectrum + law.spectrum.log() + math.log(2 * math.pi)).flatten(1).sum(1)
    return nats


def _directions(x: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), leading eigenvectors (D, k) and eigenvalues (k,) of the covariance of rows x (N, D), k at most `most`."""
    mean = x.mean(0)
    away = (x - mean) / math.sqrt(len(x))
    few = len(x) < x.shape[1]
    values, vectors = torch.linalg.eigh(away @ away.T if few else away.T @ away)
    k = min(most, *x.shape, len(x) - 1)
    values, vectors = values.flip(0)[:k].clamp_min(0), vectors.flip(1)[:, :k]
    if few:  # of the smaller matrix of products of rows; where the eigenvalue is next to nothing the direction is noise
        vectors = torch.linalg.qr(away.T @ vectors).Q
    return mean, vectors, values
