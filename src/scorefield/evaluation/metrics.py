"""Distances between two sets of features, in float64, each with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.errors import InputError

CHUNK = 512
"""Rows of a matrix of pairs that are in memory at a time."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error.

    Attributes:
        value: the figure.
        stderr: its standard error; NaN where it is not known.
        n: number of samples (or items) behind it.
        error: how the standard error was found: "delta method" (the spread of each sample's influence on the figure,
            to first order) or "standard error of a mean".
    """

    value: float
    stderr: float
    n: int
    error: str = "delta method"

    @property
    def interval(self) -> tuple[float, float]:
        """Confidence interval of 95 % on the normal approximation. It covers chance, not the bias of a small n."""
        return self.value - 1.96 * self.stderr, self.value + 1.96 * self.stderr


def mean_of(values: Tensor) -> Estimate:
    """The mean of independent values (n,) with its standard error."""
    v = exact(values)
    spread = float(v.std()) / math.sqrt(len(v)) if len(v) > 1 else math.nan
    return Estimate(float(v.mean()), spread, len(v), "standard error of a mean")


def frechet(a: Tensor, b: Tensor) -> Estimate:
    r"""Frechet distance between the Gaussians fitted to features a (n, D) and b (m, D) (Heusel et al. 2017, eq. 6).

    ||mu_a - mu_b||^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    The trace of the root is the nuclear norm of C_a^(1/2) C_b^(1/2). The standard error covers both sets; the figure is
    too high by an amount of order 1/n, so compare figures of one n only.

    Raises:
        InputError: fewer than two rows, different widths, or a value that is not finite.
    """
    a, b = _checked(a, b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    root_a, root_b = _root(cov_a), _root(cov_b)
    u, s, vh = torch.linalg.svd(root_a @ root_b)
    shift = mean_a - mean_b
    value = float(shift.square().sum() + cov_a.trace() + cov_b.trace() - 2 * s.sum())
    # d tr (C_a C_b)^(1/2) / d C_a = half the optimal transport map C_a^(-1/2) U S U^T C_a^(-1/2)
    parts = []
    for x, mean, root, turn, sign in ((a, mean_a, root_a, u, 1.0), (b, mean_b, root_b, vh.T, -1.0)):
        inverse = torch.linalg.pinv(root, hermitian=True)
        back = inverse @ turn
        gradient = torch.eye(len(root), dtype=x.dtype, device="cpu") - (back * s) @ back.T
        centred = x - mean
        influence = ((centred @ gradient) * centred).sum(1) + 2 * sign * centred @ shift
        parts.append(float(influence.var()) / len(x))
    return Estimate(max(value, 0.0), math.sqrt(sum(parts)), min(len(a), len(b)))


def kid(a: Tensor, b: Tensor) -> Estimate:
    """Kernel Inception distance: the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, without bias.

    Binkowski et al. 2018, eq. 4, over all pairs rather than subsets, so that no random choice enters. The standard error
    is to first order, and too small where both sets have one distribution.

    Raises:
        InputError: as for `frechet`.
    """
    a, b = _checked(a, b)
    n, m = len(a), len(b)
    within_a, within_b = _kernel_sums(a, a) - _kernel_own(a), _kernel_sums(b, b) - _kernel_own(b)
    across_a, across_b = _kernel_sums(a, b), _kernel_sums(b, a)
    value = within_a.sum() / (n * (n - 1)) + within_b.sum() / (m * (m - 1)) - 2 * across_a.sum() / (n * m)
    variance = 4 * ((within_a / (n - 1) - across_a / m).var() / n + (within_b / (m - 1) - across_b / n).var() / m)
    return Estimate(float(value), math.sqrt(float(variance)), min(n, m))


def inception_score(logits: Tensor, splits: int = 10) -> Estimate:
    """exp of the mean divergence between p(class | sample) and p(class) (Salimans et al. 2016), averaged over splits.

    Main arguments:
        logits: (n, classes). splits: consecutive parts of equal size; ten by convention.

    Raises:
        InputError: fewer samples than splits, or a value that is not finite.
    """
    if logits.ndim != 2 or len(logits) < max(splits, 2) or splits < 1:
        raise InputError(f"logits have shape {tuple(logits.shape)}; expected (n, classes) with n of {splits} or more")
    if not bool(torch.isfinite(logits).all()):
        raise InputError("logits hold a value that is not finite")
    log_p = exact(logits).log_softmax(1)
    scores, influences = [], []
    for part in torch.tensor_split(log_p, splits):
        marginal = part.logsumexp(0, keepdim=True) - math.log(len(part))
        divergence = (part.exp() * (part - marginal)).sum(1)
        scores.append(float(divergence.mean().exp()))
        influences.append((divergence - divergence.mean()) * scores[-1])
    spread = float(torch.cat(influences).std()) / math.sqrt(len(log_p))
    return Estimate(sum(scores) / splits, spread, len(log_p))


def precision_recall(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, Estimate]:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of balls about its points that reach to the k-th nearest other point.

        precision   part of the fake points inside the real manifold
        recall      part of the real points inside the fake manifold
        density     real balls that hold a fake point, on average, divided by k
        coverage    part of the real balls that hold a fake point

    The standard errors are those of means over points, with the manifold as given.

    Raises:
        InputError: as for `frechet`, or not more than k points in a set.
    """
    real, fake = _checked(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise InputError(f"k={k} neighbours need more than k points; there are {len(real)} real and {len(fake)} fake")
    real_radii, fake_radii = _radii(real, k), _radii(fake, k)
    balls, recalled, covered = torch.zeros(len(fake), dtype=torch.float64, device="cpu"), [], []
    for rows, distances in _distances(real, fake):
        inside = distances < real_radii[rows, None]
        balls += inside.sum(0)
        covered.append(inside.any(1))
        recalled.append((distances < fake_radii).any(1))
    return {
        "precision": mean_of(balls > 0),
        "recall": mean_of(torch.cat(recalled)),
        "density": mean_of(balls / k),
        "coverage": mean_of(torch.cat(covered)),
    }


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; expected (n, D) and (m, D), n and m above 1"
        )
    for name, x in (("first", a), ("second", b)):
        if not bool(torch.isfinite(x).all()):
            raise InputError(f"the {name} features hold a value that is not finite")
    return exact(a.detach()), exact(b.detach())


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp(min=0)
    # Below this a direction is rounding, and its inverse would enlarge that.
    values = torch.where(values < values.max() * len(values) * torch.finfo(values.dtype).eps, 0.0, values)
    root: Tensor = (vectors * values.sqrt()) @ vectors.T
    return root


def _kernel_sums(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([((part @ b.T) / a.shape[1] + 1).pow(3).sum(1) for part in a.split(CHUNK)])


def _kernel_own(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1).pow(3)


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(a), CHUNK):
        rows = slice(start, min(start + CHUNK, len(a)))
        yield rows, torch.cdist(a[rows], b)


def _radii(x: Tensor, k: int) -> Tensor:
    return torch.cat([d.kthvalue(k + 1, dim=1).values for _, d in _distances(x, x)])
