"""The mixture underneath: its kind and size by cross-validation, and the mean of what every fold fits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Fitted
from torch import Tensor

from scorefield.analytic import GaussianMixture
from scorefield.density.columns import Array, Columns
from scorefield.sde import GaussianSDE

Parts: TypeAlias = "tuple[Tensor, Tensor, Tensor]"

KINDS = (("full", True), ("tied", True), ("diag", False))
"""Covariances, and whether they are fitted to decorrelated columns."""
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RIDGE = 1e-3
"""Added to every variance, in units of the columns' own."""


BANDWIDTHS = np.geomspace(0.02, 2.0, 25)
SHARES = np.linspace(0.0, 1.0, 21)[1:]
KERNEL_ENTRIES = 50_000
"""Entries of covariances up to which kernels are tried: each row is a component."""


@dataclass(frozen=True)
class Chosen:
    """A mixture in the space of its columns.

    Attributes:
        with_kernels: the same with a kernel on every row, in the share and of the width that held-out rows like best.
        kernel_gain: the mean held-out nats that these gain.
    """

    mixture: GaussianMixture
    columns: Columns
    with_kernels: GaussianMixture
    kernel_gain: float


def choose(x: Array, folds: Sequence[Array], sde: GaussianSDE, seed: int, seconds: float) -> Chosen:
    """The best of all kinds and sizes on rows x (N, D), fold by fold (index arrays) held out; sizes grow while that helps.

    What is returned is the mean density of the fits of all folds: it is never worse than they are on average, since the
    logarithm is concave, and less noisy than one fit to everything. After `seconds` no further size is tried.
    """
    begin, best = time.monotonic(), -np.inf
    fits: list[Fitted] = []
    shrinkage = LedoitWolf().fit((x - x.mean(0)) / x.std(0)).shrinkage_
    rest = [np.setdiff1d(np.arange(len(x)), fold) for fold in folds]
    for kind, decorrelated in KINDS:
        columns = Columns.fit(x, shrinkage if decorrelated else None)
        z, stretch = columns.forward(x)
        top, behind = -np.inf, 0
        for size in SIZES:
            if 4 * size > min(map(len, rest)) or behind == 2 or (fits and time.monotonic() - begin > seconds):
                break
            tried = [_fit(z[rows], size, kind, seed + i) for i, rows in enumerate(rest)]
            held_out = float(np.mean([f.score(z[fold]) for f, fold in zip(tried, folds, strict=True)]) + stretch.mean())
            top, behind = (held_out, 0) if held_out > top else (top, behind + 1)
            if held_out > best:
                best, fits, chosen, space = held_out, tried, kind, columns
    z, parts = space.forward(x)[0], _joined(fits, chosen)
    own = [f.score_samples(z[fold]) for f, fold in zip(fits, folds, strict=True)]
    gain, share, width = _kernels(z, folds, rest, own)
    mixture = GaussianMixture(*parts, sde)
    return Chosen(mixture, space, _with_kernels(mixture, parts, z, share, width), gain)


def _fit(z: Array, size: int, kind: str, seed: int) -> Fitted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by what it says of held-out rows
        return Fitted(size, covariance_type=kind, reg_covar=RIDGE, random_state=seed, max_iter=200).fit(z)


def _joined(fits: Sequence[Fitted], kind: str) -> Parts:
    """Means, covariances and weights of all components of all fits."""
    means, weights = (np.concatenate([getattr(f, name) for f in fits]) for name in ("means_", "weights_"))
    d = means.shape[1]
    shared = kind == "tied"
    each = [np.broadcast_to(f.covariances_, (len(f.means_), d, d)) if shared else f.covariances_ for f in fits]
    parts = (means, np.concatenate(each), weights / len(fits))
    centres, covs, shares = (torch.from_numpy(part[weights > 0]) for part in parts)
    return centres, covs, shares


def _kernels(
    z: Array, folds: Sequence[Array], rest: Sequence[Array], own: Sequence[Array]
) -> tuple[float, float, float]:
    """(gain, share, width) of Gaussian kernels beside densities whose held-out logs are `own`, fold by fold (stacking)."""
    n, d = z.shape
    if n * d * d > KERNEL_ENTRIES:
        return 0.0, 0.0, 1.0
    apart = (z[fold][:, None] - z[rows] for fold, rows in zip(folds, rest, strict=True))
    squares = [torch.from_numpy(np.square(difference).sum(2)) for difference in apart]
    logs, best = np.concatenate(own), (0.0, 0.0, 1.0)
    for h in BANDWIDTHS:
        kernels = torch.cat([torch.logsumexp(-0.5 * s / h**2, 1) - np.log(s.shape[1]) for s in squares]).numpy()
        kernels -= d * np.log(h * np.sqrt(2 * np.pi))
        for share in SHARES:
            with np.errstate(divide="ignore"):
                both = np.logaddexp(np.log1p(-share) + logs, np.log(share) + kernels)
            best = max(best, (float((both - logs).mean()), float(share), float(h)))
    return best


def _with_kernels(mixture: GaussianMixture, parts: Parts, z: Array, share: float, width: float) -> GaussianMixture:
    """share kernels of that width on every row of z, the rest the mixture of these parts."""
    if share == 0:
        return mixture
    means, covs, weights = parts
    rows = torch.from_numpy(z)
    flat = torch.full_like(rows, width**2)
    kernels = flat if covs.ndim == 2 else torch.diag_embed(flat)
    even = torch.full((len(z),), share / len(z), dtype=torch.float64)
    if share == 1:
        return GaussianMixture(rows, kernels, even, mixture.sde)
    both = (torch.cat([means, rows]), torch.cat([covs, kernels]), torch.cat([(1 - share) * weights, even]))
    return GaussianMixture(*both, mixture.sde)
