"""What the tests of flow maps share: the process of Karras et al. 2022, a map that is linear at every level, and quadrature."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import scorefield as sf


class EDM(sf.GaussianSDE):
    """alpha = 1, sigma = t on [0, 80]."""

    T = 80.0
    t_min = 0.002

    def alpha(self, t):
        return 1 + 0 * t

    def sigma(self, t):
        return t


class Scalars(nn.Module):
    """A map that is linear at every level: y -> k(rho) y, written as the F of the consistency scalings."""

    def __init__(self, levels: Tensor, slopes: Tensor, sd: float) -> None:
        super().__init__()
        self.levels, self.sd = levels, sd
        self.slopes = nn.Parameter(slopes.clone())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rho = torch.exp(4 * t.double())
        i = (rho[:, None].log() - self.levels.log()).abs().argmin(1)
        r, e, sd = self.levels[i], self.levels[0], self.sd
        skip = sd**2 / ((r - e) ** 2 + sd**2)
        out = sd * (r - e) / torch.sqrt(r**2 + sd**2)
        gain = (self.slopes[i] - skip) * torch.sqrt(r**2 + sd**2) / out.clamp_min(1e-300)
        return torch.where(i == 0, torch.zeros_like(gain), gain)[:, None] * x


def quadrature(n: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes (x_0 of unit variance, z) and weights of the plane's Gaussian, exact for polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    u, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    a, b = torch.meshgrid(u, u, indexing="ij")
    return a.reshape(-1, 1), b.reshape(-1, 1), torch.outer(w, w).flatten()
