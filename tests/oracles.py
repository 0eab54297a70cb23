"""What the closed-form tests share: every SDE, rotated Gaussians that are not unit, and the exact flow map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import scorefield as sf


class Cubic(sf.GaussianSDE):
    """A user's SDE, in two methods; alpha(1) = 0."""

    def alpha(self, t):
        return 1 - t**3

    def sigma(self, t):
        return t


PAPER = [sf.VE(), sf.VP(), sf.SubVP()]
CONTRACTIVE = [
    sf.CVP(),
    sf.CSubVP(),
    sf.OU(1.5, 0.8),
    sf.OU(-1.0, 1.4),
    sf.OU(0.0, 2.0),
    sf.VPIDM(),
    sf.OUVE(),
]
"""SDEs that keep much of the data at T, or whose drift grows."""
SDES = [*PAPER, sf.VE(exact=True), Cubic(), sf.RectifiedFlow()]


def name(value: object) -> str:
    return type(value).__name__ + ("Exact" if getattr(value, "exact", False) else "")


def rotated(d: int, seed: int = 0, low: float = 0.2, high: float = 3.0) -> tuple[Tensor, Tensor]:
    """Mean (d,) and full covariance (d, d) with eigenvalues from low to high, float64."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    spectrum = torch.exp(torch.linspace(math.log(low), math.log(high), d, dtype=torch.float64))
    mean = torch.randn(d, generator=generator, dtype=torch.float64)
    return mean, basis @ torch.diag(spectrum) @ basis.T


def gaussian(sde: sf.GaussianSDE, d: int = 3, seed: int = 0, **spread: float) -> sf.GaussianMixture:
    mean, cov = rotated(d, seed, **spread)
    return sf.GaussianMixture(mean.unsqueeze(0), cov.unsqueeze(0), None, sde)


def mixture(sde: sf.GaussianSDE, d: int = 3) -> sf.GaussianMixture:
    parts = [rotated(d, seed) for seed in (1, 2)]
    means = torch.stack([2 * m for m, _ in parts])
    return sf.GaussianMixture(means, torch.stack([0.3 * c for _, c in parts]), [0.3, 0.7], sde)


def moments(gm: sf.GaussianMixture, t: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p_t of a single Gaussian."""
    mean = gm.means[0].double()
    cov = gm.covs[0]
    alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (gm.sde.alpha, gm.sde.sigma))
    return alpha * mean, alpha**2 * cov + sigma**2 * torch.eye(len(mean), dtype=torch.float64)


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def flow_map(gm: sf.GaussianMixture, x: Tensor, t: float, u: float) -> Tensor:
    """The probability flow of a Gaussian from t to u (Song et al. 2021, eq. 13, solved): C_t and C_u commute."""
    (m_t, c_t), (m_u, c_u) = moments(gm, t), moments(gm, u)
    return m_u + (x - m_t) @ (power(c_u, 0.5) @ power(c_t, -0.5)).T
