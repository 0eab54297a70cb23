"""The mixture underneath: its kind and size by cross-validation, and the mean of what every fold fits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.data.scale import Scale
from scorefield.gaussians import Kind, Mixture, fit_gaussians

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
RIDGE = 1e-3
"""Least variance of a component, in units of the columns' own."""
SETTLED = 1e-3
"""Gain in nats an entry below which a fit stops."""
BANDWIDTHS = torch.logspace(math.log10(0.02), math.log10(2.0), 25, dtype=torch.float64, device="cpu").tolist()
SHARES = torch.linspace(0.05, 1.0, 20, dtype=torch.float64, device="cpu")
KERNEL_ENTRIES = 50_000
"""Entries of covariances up to which kernels are tried: each row is a component."""


@dataclass(frozen=True)
class Chosen:
    """A mixture in the units of its scale.

    Attributes:
        with_kernels: the same with a kernel on every row, in the share and of the width that held-out rows like best.
        kernel_gain: the mean held-out nats that these gain.
    """

    mixture: Mixture
    scale: Scale
    with_kernels: Mixture
    kernel_gain: float


def choose(
    x: Tensor, folds: Sequence[Tensor], spaces: Mapping[Kind, Scale], seed: int, seconds: float = math.inf
) -> Chosen:
    """The best of all kinds and sizes on rows x (N, D), fold by fold (indices) held out; sizes grow while that helps.

    What is returned is the mean density of the fits of all folds: it is never worse than they are on average, since the
    logarithm is concave, and less noisy than one fit to everything. After `seconds` no further size is tried.

    Main arguments:
        spaces: the kinds of covariance that are tried, each in the units of a scale.
    """
    begin, best, fits = time.monotonic(), -math.inf, list[Mixture]()
    every, settled = torch.arange(len(x), device="cpu"), SETTLED * x.shape[1]
    rest = [every[~torch.isin(every, fold)] for fold in folds]
    for kind, space in spaces.items():
        z, volume = space.forward(x), float(space.log_volume(x).mean())
        top, behind = -math.inf, 0
        for size in SIZES:
            if 1 < size > min(map(len, rest)) / 4 or behind == 2 or (fits and time.monotonic() - begin > seconds):
                break
            tried = [
                fit_gaussians(z[rows], size, seed + i, kind, floor=RIDGE, settled=settled)
                for i, rows in enumerate(rest)
            ]
            each = [float(f.log_prob(z[fold]).mean()) for f, fold in zip(tried, folds, strict=True)]
            held_out = sum(each) / len(each) - volume
            top, behind = (held_out, 0) if held_out > top else (top, behind + 1)
            if held_out > best:
                best, fits, scale = held_out, tried, space
    z = scale.forward(x)
    logs = torch.cat([f.log_prob(z[fold]) for f, fold in zip(fits, folds, strict=True)])
    mixture = Mixture(*(torch.cat(parts) for parts in zip(*fits, strict=True)))
    mixture = mixture._replace(weights=mixture.weights / len(fits))
    gain, share, width = _kernels(z, folds, rest, logs)
    return Chosen(mixture, scale, _with_kernels(mixture, z, share, width), gain)


def _kernels(z: Tensor, folds: Sequence[Tensor], rest: Sequence[Tensor], logs: Tensor) -> tuple[float, float, float]:
    """(gain, share, width) of Gaussian kernels beside densities whose held-out logs are given, fold by fold (stacking)."""
    n, d = z.shape
    best = (0.0, 0.0, 1.0)
    if n * d * d > KERNEL_ENTRIES:
        return best
    squares = [torch.cdist(z[fold], z[rows]).square() for fold, rows in zip(folds, rest, strict=True)]
    for h in BANDWIDTHS:
        kernels = torch.cat([torch.logsumexp(-0.5 * s / h**2, 1) - math.log(s.shape[1]) for s in squares])
        kernels -= d * math.log(h * math.sqrt(2 * math.pi))
        both = torch.logaddexp(torch.log1p(-SHARES)[:, None] + logs, SHARES.log()[:, None] + kernels)
        gains = (both - logs).mean(1)
        best = max(best, (float(gains.max()), float(SHARES[gains.argmax()]), h))
    return best


def _with_kernels(mixture: Mixture, z: Tensor, share: float, width: float) -> Mixture:
    """share kernels of that width on every row of z, the rest the mixture."""
    if share == 0:
        return mixture
    flat = torch.full_like(z, width**2)
    kernels = Mixture(
        z,
        flat if mixture.covs.ndim == 2 else torch.diag_embed(flat),
        torch.full((len(z),), share / len(z), dtype=torch.float64, device="cpu"),
    )
    if share == 1:
        return kernels
    rest = mixture._replace(weights=(1 - share) * mixture.weights)
    return Mixture(*(torch.cat(parts) for parts in zip(rest, kernels, strict=True)))
