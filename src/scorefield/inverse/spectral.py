"""Singular value decompositions of linear operators, as changes of coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.inverse.measurement import Map, Measurement, matrix_of, real_rows
from scorefield.inverse.operators import AlongAxes, Mask, along


@dataclass(frozen=True)
class Spectrum:
    """A = U diag(s) V^T on events: `into` is V^T x, `back` is V z, `read` is U^T y / s (0 where s = 0); coordinates are (B, D).

    `singular` has shape (D,), or (B, D) for an operator with a row for each sample.
    """

    singular: Tensor
    into: Map
    back: Map
    read: Map


def spectrum_of(operator: Measurement, shape: tuple[int, ...]) -> Spectrum:
    """The decomposition of an operator on events of that shape; what has no structure is written out as a matrix.

    Raises:
        ValueError: an operator without structure on more than 4096 entries.
    """
    if isinstance(operator, Mask):
        full = operator.mask.expand(torch.broadcast_shapes(operator.mask.shape, (1, *shape)))
        known = full.flatten(1).double()
        return Spectrum(
            known, lambda x: x.flatten(1), lambda z: z.reshape(-1, *shape), lambda y: operator(y).flatten(1)
        )
    if isinstance(operator, AlongAxes):
        return _kronecker(operator, shape)
    matrix = matrix_of(operator, shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=True)
    r, d = len(values), matrix.shape[1]
    left, values = left[:, :r], _clean(values)

    def read(y: Tensor) -> Tensor:
        z = (real_rows(y) @ left.to(real_rows(y))) * _inverse(values).to(real_rows(y))
        return torch.nn.functional.pad(z, (0, d - r))

    return Spectrum(
        torch.nn.functional.pad(values, (0, d - r)),
        lambda x: x.flatten(1) @ right.to(x).T,
        lambda z: (z @ right.to(z)).reshape(-1, *shape),
        read,
    )


def _kronecker(operator: AlongAxes, shape: tuple[int, ...]) -> Spectrum:
    ndim = len(shape) + 1
    parts = []
    singular = torch.ones(1, *shape, dtype=torch.float64)
    for axis in operator.axes(ndim):
        n = shape[axis - 1]
        left, values, right = torch.linalg.svd(operator.factor(n), full_matrices=True)
        values = _clean(values)
        wide = torch.nn.functional.pad(values, (0, n - len(values)))
        singular = singular * wide.reshape(-1, *[1] * (ndim - axis - 1))
        inverse = torch.nn.functional.pad((left[:, : len(values)] * _inverse(values)).T, (0, 0, 0, n - len(values)))
        parts.append((axis, right, inverse))

    def chain(pick: Callable[[Tensor, Tensor], Tensor]) -> Map:
        def apply(x: Tensor) -> Tensor:
            for axis, right, inverse in parts:
                x = along(x, pick(right, inverse), axis)
            return x

        return apply

    into, back, read = chain(lambda r, i: r), chain(lambda r, i: r.T), chain(lambda r, i: i)
    return Spectrum(
        singular.expand(1, *shape).flatten(),
        lambda x: into(x).flatten(1),
        lambda z: back(z.reshape(-1, *shape)),
        lambda y: read(y).flatten(1),
    )


def _clean(values: Tensor) -> Tensor:
    """Singular values that are zero but for rounding, as zero."""
    floor = 1e-10 * float(values.max()) if math.prod(values.shape) else 0.0
    return torch.where(values > floor, values, torch.zeros_like(values))


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1.0), 0.0)
