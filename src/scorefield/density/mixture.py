"""The mixture underneath: its kind and size by cross-validation, and the mean of what every fold fits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Fitted

from scorefield.analytic import GaussianMixture
from scorefield.density.columns import Array, Columns
from scorefield.sde import GaussianSDE

KINDS = (("full", True), ("tied", True), ("diag", False))
"""Covariances, and whether they are fitted to decorrelated columns."""
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RIDGE = 1e-3
"""Added to every variance, in units of the columns' own."""


@dataclass(frozen=True)
class Chosen:
    """A mixture in the space of its columns, with the mean held-out log-density of its folds, in the units of the data."""

    mixture: GaussianMixture
    columns: Columns
    held_out: float


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
    return Chosen(_mean(fits, chosen, sde), space, best)


def _fit(z: Array, size: int, kind: str, seed: int) -> Fitted:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by what it says of held-out rows
        return Fitted(size, covariance_type=kind, reg_covar=RIDGE, random_state=seed, max_iter=200).fit(z)


def _mean(fits: Sequence[Fitted], kind: str, sde: GaussianSDE) -> GaussianMixture:
    """The mixture of all components of all fits."""
    means, weights = (np.concatenate([getattr(f, name) for f in fits]) for name in ("means_", "weights_"))
    d = means.shape[1]
    shared = kind == "tied"
    each = [np.broadcast_to(f.covariances_, (len(f.means_), d, d)) if shared else f.covariances_ for f in fits]
    parts = (means, np.concatenate(each), weights)
    centres, covs, shares = (torch.from_numpy(part[weights > 0]) for part in parts)
    return GaussianMixture(centres, covs, shares, sde)
