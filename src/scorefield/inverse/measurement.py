"""What the methods need of a measurement: A and its adjoint, linearised where it is not linear, and solves with both."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scorefield.differentiate import differentiation, ordinary, variable
from scorefield.dtypes import exact, full_precision, warn_of_units, wide
from scorefield.inputs import tensor_of

Map: TypeAlias = "Callable[[Tensor], Tensor]"
Measurement: TypeAlias = "Callable[[Tensor], Tensor]"
"""Any object with a call; with an `adjoint` it is taken to be linear, without one it is differentiated."""

DENSE = 4096
"""Largest number of entries for which an operator is written out as a matrix."""


@dataclass(frozen=True)
class Linearized:
    """A measurement near a point: `value` = A(x), `forward` v -> A'(x) v, `adjoint` u -> A'(x)^T u.

    The inner product of complex measurements is the real one, Re(conj(u) . v): real and imaginary part are two numbers.
    """

    value: Tensor
    forward: Map
    adjoint: Map


def linearize(operator: Measurement, x: Tensor, create_graph: bool = False) -> Linearized:
    """The operator near x (B, *), which may be part of a graph.

    Operators with an `adjoint` are linear and used as they are; so are deepinv's (`A` and `A_adjoint`). Anything else is
    differentiated by torch, which makes it a Gauss-Newton linearisation if it is not linear.
    """
    call, adjoint = parts(operator)
    if adjoint is not None:
        return Linearized(call(x), call, adjoint)
    with differentiation():
        point = variable(x, track=True)
        value = call(point)

    def transposed(u: Tensor) -> Tensor:
        with differentiation(), full_precision(u.device):
            return _gradient(value, point, ordinary(u), create_graph)

    def forward(v: Tensor) -> Tensor:
        with differentiation(), full_precision(v.device):
            # The transposed map is linear in its argument, so that its derivative is the map itself: no forward mode.
            u = torch.zeros_like(value, requires_grad=True)
            return _gradient(_gradient(value, point, u, True), u, ordinary(v), create_graph)

    return Linearized(value, forward, transposed)


def parts(operator: Measurement) -> tuple[Map, Map | None]:
    """(A, A^T) of an operator, also under autocast in the precision of what they are given; None for an adjoint it has not."""
    given: Any = operator
    if hasattr(given, "A") and hasattr(given, "A_adjoint"):
        return plain(given.A), plain(given.A_adjoint)  # deepinv's call would add noise
    adjoint = getattr(given, "adjoint", None)
    return plain(given), None if adjoint is None else plain(adjoint)


def plain(function: Map) -> Map:
    """The function without autocast, as `LinearOperator` has it."""

    def call(x: Tensor) -> Tensor:
        with full_precision(x.device):
            return function(x)

    return call


def warn_of_foreign_units(
    operator: Measurement, y: Tensor, shape: tuple[int, ...], interval: tuple[float, float] | None
) -> None:
    """Warn of a measurement y (n, *) that data in `interval` can hardly give: levels of 8 bits for a model of [-1, 1].

    Raises:
        ValueError: there is no interval, as of a jump process, whose states are no numbers to be measured.
    """
    if interval is None:
        raise ValueError(
            "measurements are of real numbers, and this is a model of states; known states go to sf.discrete.Infill"
        )
    if y.is_complex():
        return
    reach = max(abs(end) for end in interval)
    with suppress(RuntimeError, TypeError), torch.no_grad():  # as in `_measured_shape`
        most = float(parts(operator)[0](torch.full((1, *shape), reach, dtype=y.dtype, device=y.device)).abs().max())
        reach = max(reach, most)
    warn_of_units(y, -reach, reach, "y", "measurements of the model's data lie")


def read_measurement(y: Any) -> Tensor:
    """A measurement as a tensor of real or complex numbers.

    Raises:
        ValueError: no numbers, or some that are NaN or infinite.
    """
    value = tensor_of(y, "y", "; hide what was not measured with a Mask, and give any number there")
    return value if value.is_floating_point() or value.is_complex() else value.to(torch.get_default_dtype())


def in_rows(operator: Measurement, y: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """y with an axis of samples, (n, *) or (1, *), for events of that shape: y without one is one measurement for all.

    Where the shape is not known, nor the operator's result, y is taken to have its axis of samples.

    Raises:
        ValueError: y is neither.
    """
    one = None if shape is None else _measured_shape(operator, shape, y)
    if one is None or y.shape[1:] == one:
        return y
    if y.shape == one:
        return y.unsqueeze(0)
    raise ValueError(
        f"y has shape {tuple(y.shape)} where a sample {shape} is measured as {one}; give that shape for all samples, or "
        f"(n, {', '.join(map(str, one))}), one row for each"
    )


def check_rows(y: Tensor, value: Tensor) -> None:
    """Refuse a measurement that does not go with what the operator gives, `value` (B, *).

    Raises:
        ValueError: other shapes, or other numbers of samples.
    """
    if y.shape[1:] != value.shape[1:]:
        missing = "; give it an axis of samples, y[None]" if y.shape == value.shape[1:] else ""
        raise ValueError(f"y has shape {tuple(y.shape)}; the operator gives {tuple(value.shape)}{missing}")
    if y.shape[0] not in (1, value.shape[0]):
        raise ValueError(f"y has {y.shape[0]} rows for {value.shape[0]} samples; give one row, or one for each sample")


def _measured_shape(operator: Measurement, shape: tuple[int, ...], y: Tensor) -> tuple[int, ...] | None:
    """The shape of the measurement of one sample, by a trial; None where a trial is beyond the operator."""
    for dtype in (torch.float32, torch.float64):
        # Errors such as a user's matrix of another dtype, or on another device, are for the states themselves to meet.
        with suppress(RuntimeError, TypeError), torch.no_grad():
            return tuple(parts(operator)[0](torch.zeros((1, *shape), dtype=dtype, device=y.device)).shape[1:])
    return None


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of each sample, (B,), float64 (float32 on a device other than the CPU)."""
    product = a * b if not a.is_complex() else (a.conj() * b).real
    return wide(product).flatten(1).sum(1)


def conjugate_gradients(apply: Map, b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """Solution of S x = b for symmetric positive S, like b, each sample on its own (Hestenes & Stiefel 1952).

    A sample stops, and the others go on without touching it, when its residual is below tolerance times its right-hand
    side, and when S turns out not to be what the method needs: not positive in a search direction, or not symmetric, as the
    Jacobians of networks are not. The energy x S x / 2 - b x, which falls by a known amount in a step where S is symmetric,
    tells: a step that brings less than four fifths of it is not taken. So nothing changes where S is as promised, however large
    its condition, and elsewhere what is returned is the last step that could be trusted.
    """
    x, r, p = torch.zeros_like(b), b, b
    size, energy = dot(r, r), torch.zeros_like(dot(r, r))
    goal = tolerance**2 * size
    rounding = 8 * torch.finfo(b.dtype).eps
    live = size > goal
    for _ in range(iterations):
        if not bool(live.any()):
            break
        q = apply(p)
        curvature = dot(p, q)
        live = live & (curvature > 0)
        a = torch.where(live, size / torch.where(live, curvature, 1.0), 0.0)
        x_next, r_next = x + _times(a, p), r - _times(a, q)
        below = -0.5 * dot(x_next, b + r_next)
        live = live & (energy - below >= 0.4 * a * size - rounding * below.abs())
        wide = live.reshape(-1, *[1] * (b.ndim - 1))
        x, r = torch.where(wide, x_next, x), torch.where(wide, r_next, r)
        energy = torch.where(live, below, energy)
        new = torch.where(live, dot(r, r), size)
        p = r + _times(torch.where(live, new / torch.where(live, size, 1.0), 0.0), p)
        size = new
        live = live & (size > goal)
    return x


def pseudo_inverse(
    operator: Measurement, y: Tensor, like: Tensor, iterations: int = 100, tolerance: float = 0.0
) -> Tensor:
    """A^+ y, the solution of A^T A x = A^T y in the range of A^T for a linear A, like `like`.

    Whatever of y no x can explain, such as noise where a mask hides everything, is left out. Where A^T A is a projection,
    as for a mask, one iteration is exact.
    """
    a = linearize(operator, like)
    rounding = 4 * torch.finfo(like.dtype).eps
    x = conjugate_gradients(lambda v: a.adjoint(a.forward(v)), a.adjoint(y), iterations, max(tolerance, rounding))
    return x.detach()


def matrix_of(operator: Measurement, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
    """A linear operator as a matrix (M, D), float64 on the CPU, D = prod(shape); complex measurements give two rows each.

    Other arguments:
        like: a tensor of the dtype and on the device that the operator works in; float64 on the CPU otherwise.

    Raises:
        ValueError: more than 4096 entries.
    """
    d = math.prod(shape)
    if d > DENSE:
        raise ValueError(f"the operator acts on {d} entries; it is written out as a matrix only up to {DENSE}")
    given = torch.eye(d, dtype=torch.float64) if like is None else torch.eye(d, dtype=like.dtype, device=like.device)
    return exact(real_rows(parts(operator)[0](given.reshape(d, *shape))).detach()).T


def real_rows(y: Tensor) -> Tensor:
    """(B, *) -> (B, M), complex numbers as pairs."""
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def from_real_rows(flat: Tensor, like: Tensor) -> Tensor:
    """The inverse of `real_rows`, for measurements like `like`."""
    if not like.is_complex():
        return flat.reshape(-1, *like.shape[1:])
    return torch.view_as_complex(flat.reshape(-1, *like.shape[1:], 2).contiguous())


def _gradient(value: Tensor, point: Tensor, u: Tensor, create_graph: bool) -> Tensor:
    (g,) = torch.autograd.grad(
        value, point, u, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return g


def _times(a: Tensor, x: Tensor) -> Tensor:
    real = x.real.dtype if x.is_complex() else x.dtype
    return a.to(real).reshape(-1, *[1] * (x.ndim - 1)) * x
