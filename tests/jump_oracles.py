"""The joint law of three positions of four states on which everything discrete is checked, and exact laws of samplers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import scorefield as sf
from scorefield.solve.integrate import Field

H = 3.3579136192  # entropy of J in nats
H_MARGINALS = 3.9737890675  # sum of the entropies of its marginals


def joint() -> Tensor:
    logits = np.random.default_rng(7).normal(size=(4, 4, 4)) * 1.5
    return torch.softmax(torch.from_numpy(logits).flatten(), 0).reshape(4, 4, 4)


def product_of_marginals(p: Tensor) -> Tensor:
    a, b, c = p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))
    return a[:, None, None] * b[:, None] * c


def entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())


def tv(p: Tensor, q: Tensor) -> float:
    return float(0.5 * (p - q).abs().sum())


def every_state(s: int, length: int) -> Tensor:
    """(s^length, length), in the order of a flattened table."""
    return torch.cartesian_prod(*[torch.arange(s)] * length).reshape(-1, length)


def matrix_of(law: Tensor) -> Tensor:
    """The transition matrix (n, n) of a step that draws every position by itself from law (n, L, S) at every state."""
    law = law / law.sum(-1, keepdim=True)
    out = law[:, 0]
    for d in range(1, law.shape[1]):
        out = (out.unsqueeze(-1) * law[:, d].unsqueeze(1)).reshape(len(law), -1)
    return out


def law_after(solver, model: sf.discrete.Table, grid: Tensor, start: Tensor) -> Tensor:
    """The exact law of a sampler's result from the law `start`, both tables."""
    x = every_state(model.process.S, len(model.shape) and model.shape[0])
    p, field = start.flatten(), Field(model)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        reached = p > 0
        p = p[reached] @ matrix_of(solver.law(field, x[reached], t, s))
    return p.reshape(start.shape)


def noise_to(process, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Standard-normal numbers with which `corrupt` takes x_0 to the given x_t at times (B,)."""
    total = process.schedule.total(t)
    jumped = -torch.expm1(-total).reshape(-1, *[1] * (x.ndim - 1))
    if hasattr(process, "mask") and isinstance(process, sf.discrete.process.Redraw):
        edges = torch.cumsum(process.stationary, 0)
        middle = edges - 0.5 * process.stationary
        moved = (x != x0) | (process.mask is None)
        u = torch.where(moved, jumped * middle[x], 0.5 * (1 + jumped))
    else:
        row = process.row(x0, total, torch.float64)
        edges = row.cumsum(-1)
        u = ((edges - 0.5 * row) / edges[..., -1:]).gather(-1, x.unsqueeze(-1)).squeeze(-1)
    return torch.special.ndtri(u)


def nodes(n: int, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [low, high]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(0.5 * (high - low) * x + 0.5 * (high + low)), torch.from_numpy(0.5 * (high - low) * w)
