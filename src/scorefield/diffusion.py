"""Drifts and diffusions as users write them: checked, and multiplied with states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scorefield.coefficients import Time, expand

if TYPE_CHECKING:
    from scorefield.sde import SDE


def tame(move: Tensor, reach: float = 1.0) -> Tensor:
    """What a drift does in one step, like x, made shorter than `reach`: move / (1 + |move| / reach).

    |move| is that of one entry, the root mean square of a sample's, so that `reach` means the same in all dimensions
    (Hutzenthaler, Jentzen & Kloeden 2012, sec. 1, where `reach` is 1 over the Euclidean norm).
    """
    size = move.flatten(1).square().mean(1).sqrt() / reach
    return move / (1 + size).reshape(-1, *[1] * (move.ndim - 1))


def acts_by_entry(g: float | Tensor, x: Tensor) -> bool:
    """Whether a diffusion acts on every entry of x by itself."""
    return not isinstance(g, Tensor) or g.ndim < 2 or g.shape == x.shape


def noise_shape(g: float | Tensor, x: Tensor) -> tuple[int, ...]:
    """Shape of the noise that a diffusion spreads: that of x, or (B, M) for matrices (B, D, M)."""
    return tuple(x.shape) if acts_by_entry(g, x) or not isinstance(g, Tensor) else (x.shape[0], g.shape[2])


def spread_by(g: float | Tensor, z: Tensor, x: Tensor) -> Tensor:
    """G z, like x, for a diffusion as `SDE.diffusion` returns it and noise like x, or (B, M) for matrices (B, D, M)."""
    if not isinstance(g, Tensor):
        return g * z
    if g.shape == x.shape:
        return g * z
    if g.ndim < 2:
        return expand(g, x) * z
    return torch.einsum("bdm,bm->bd", g, z.flatten(1)).reshape(x.shape)


def outer(g: float | Tensor, v: Tensor) -> Tensor:
    """G G^T v, like v (B, *)."""
    if not isinstance(g, Tensor):
        return g**2 * v
    if g.shape == v.shape:
        return torch.square(g) * v
    if g.ndim < 2:
        return expand(torch.square(g), v) * v
    return torch.einsum("bdm,bem,be->bd", g, g, v.flatten(1)).reshape(v.shape)


def checked_drift(sde: SDE, x: Tensor, t: Time) -> Tensor:
    """The drift, like x.

    Raises:
        ValueError: the process returns another shape, or something else than real floating-point numbers.
    """
    f = sde.drift(x, t)
    if isinstance(f, Tensor) and not f.is_floating_point():
        raise ValueError(f"{type(sde).__name__}.drift returned {f.dtype}; return real floating-point numbers")
    if not isinstance(f, Tensor) or f.shape != x.shape:
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"{type(sde).__name__}.drift returned {got} for x of shape {tuple(x.shape)}; return a tensor like x"
        )
    return f


def checked_diffusion(sde: SDE, x: Tensor, t: Time) -> float | Tensor:
    """The diffusion: a number, (B,), like x, or (B, D, M).

    Raises:
        ValueError: the process returns another shape, a number that is negative or not finite, or complex numbers.
    """
    g = sde.diffusion(x, t)
    if not isinstance(g, Tensor):
        if not isinstance(g, (int, float)):
            raise ValueError(f"{type(sde).__name__}.diffusion returned {type(g).__name__}; return a number or a tensor")
        if not 0 <= g < math.inf:
            raise ValueError(f"{type(sde).__name__}.diffusion returned {g}; return 0 or a positive number, or a tensor")
        return float(g)
    if not g.is_floating_point():
        raise ValueError(f"{type(sde).__name__}.diffusion returned {g.dtype}; return real floating-point numbers")
    b, d = len(x), math.prod(x.shape[1:])
    if g.shape in ((), (b,), x.shape) or (g.ndim == 3 and g.shape[:2] == (b, d)):
        return g
    raise ValueError(
        f"{type(sde).__name__}.diffusion returned shape {tuple(g.shape)} for x of shape {tuple(x.shape)}; return a number, "
        f"({b},), {tuple(x.shape)} or ({b}, {d}, M)"
    )
