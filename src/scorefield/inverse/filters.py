"""Measurements that mix neighbours or channels: blur, smaller images, grey ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.differentiate import differentiation, ordinary
from scorefield.dtypes import check_not_integers
from scorefield.errors import InputError
from scorefield.inputs import said, tensor_of
from scorefield.inverse import words
from scorefield.inverse.operators import LinearOperator

Boundary = Literal["reflect", "circular", "zeros"]


class AlongAxes(LinearOperator):
    """The same small matrix along each of several axes; a Kronecker product, so that its SVD is one as well."""

    @abstractmethod
    def axes(self, ndim: int) -> Sequence[int]:
        """Axes of a batch with `ndim` dimensions that the operator acts on."""

    @abstractmethod
    def factor(self, n: int) -> Tensor:
        """Matrix (m, n), float64, for an axis of n entries.

        Raises:
            ValueError: the operator does not fit n entries.
        """

    @abstractmethod
    def inner(self, m: int) -> int:
        """Entries of the axis before the operator, from those after it."""

    def __call__(self, x: Tensor) -> Tensor:
        for axis in self.axes(x.ndim):
            x = along(x, self.factor(x.shape[axis]), axis)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for axis in self.axes(y.ndim):
            y = along(y, self.factor(self.inner(y.shape[axis])).T, axis)
        return y


@dataclass(frozen=True)
class Grayscale(AlongAxes):
    """Weighted mean over the channels: (B, C, *) -> (B, 1, *).

    Main arguments:
        weights: one for each channel. With 1/sqrt(3) for each it is the first channel of the paper's orthonormal colour
            transform (Song et al. 2021, App. I.3; see `color_matrix`).
    """

    weights: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)

    example: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(tensor_of(self.weights, "weights").double().tolist()))

    def axes(self, ndim: int) -> Sequence[int]:
        return (1,)

    def factor(self, n: int) -> Tensor:
        if n != len(self.weights):
            raise ValueError(f"Grayscale has {len(self.weights)} weights but the input has {n} channels")
        return torch.tensor([self.weights], dtype=torch.float64)

    def inner(self, m: int) -> int:
        return len(self.weights)

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Grayscale:
        """grayscale, of colour images."""
        if shape[0] != 3:
            raise InputError(f"it needs a run on colour images; this one has {shape[0]} channel")
        return cls()


@dataclass(frozen=True)
class Downsample(AlongAxes):
    """Every side divided by k after an anti-aliasing filter: (B, C, *S) -> (B, C, *S / k).

    Main arguments:
        k: factor.
        kernel: taps of the filter along each side, normalised here to sum 1; None is the mean over blocks of k. See
            `bicubic`.

    Other arguments:
        dims: number of trailing spatial dimensions; all but batch and channels by default, and 1 for (B, D).
        boundary: what the filter meets outside: "reflect" (edges repeated), "circular" or "zeros".

    Raises:
        ValueError: k < 1, an empty kernel, an unknown boundary, or sides that k does not divide.
    """

    k: int
    kernel: Sequence[float] | Tensor | None = None
    dims: int | None = None
    boundary: Boundary = "reflect"

    example: ClassVar[str] = "4"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k}: the factor is at least 1")
        taps = [1.0] * self.k if self.kernel is None else tensor_of(self.kernel, "kernel").double().tolist()
        if not taps or isinstance(taps[0], list) or sum(taps) == 0:
            raise ValueError("kernel: give taps in one dimension whose sum is not 0")
        _check_boundary(self.boundary)
        object.__setattr__(self, "kernel", tuple(tap / sum(taps) for tap in taps))

    def axes(self, ndim: int) -> Sequence[int]:
        return range(ndim - _spatial(self.dims, ndim), ndim)

    def factor(self, n: int) -> Tensor:
        if n % self.k:
            raise ValueError(f"Downsample({self.k}) needs sides that {self.k} divides, not {n}")
        assert isinstance(self.kernel, tuple)
        return _strided_filter(n, self.k, self.kernel, self.boundary)

    def inner(self, m: int) -> int:
        return m * self.k

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Downsample:
        """downsample:K, the mean over blocks of K x K pixels."""
        k = words.whole_number(value, 1, min(shape[1:]))
        if any(side % k for side in shape[1:]):
            raise InputError(f"{k} does not divide the sides {shape[1]} and {shape[2]}")
        return cls(k)


def bicubic(k: int) -> tuple[float, ...]:
    """Taps of the bicubic anti-aliasing filter for a factor k (Keys 1981, a = -1/2), as image libraries resize."""
    half = [abs(i - (4 * k - 1 - k % 2) / 2) / k for i in range(4 * k - k % 2)]
    return tuple(1.5 * u**3 - 2.5 * u**2 + 1 if u <= 1 else -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2 for u in half)


@dataclass(frozen=True, eq=False, repr=False)
class Blur(LinearOperator):
    """Convolution of every channel with a kernel: (B, C, *S) -> the same shape.

    Main arguments:
        kernel: of one, two or three dimensions, acting on as many trailing dimensions of x; its centre is at
            index side // 2.

    Other arguments:
        boundary: what the kernel meets outside: "reflect" (edges repeated), "circular" or "zeros".

    Raises:
        ValueError: a kernel of other dimensions, or an unknown boundary.
    """

    kernel: Tensor
    boundary: Boundary = "reflect"

    example: ClassVar[str] = "1.5"

    __repr__ = said

    def __post_init__(self) -> None:
        kernel = tensor_of(self.kernel, "kernel")
        if kernel.ndim not in (1, 2, 3):
            raise ValueError(f"kernel has shape {tuple(kernel.shape)}; give one, two or three dimensions")
        _check_boundary(self.boundary)
        object.__setattr__(self, "kernel", kernel)

    def __call__(self, x: Tensor) -> Tensor:
        check_not_integers(x)
        dims = self.kernel.ndim
        for axis in range(x.ndim - dims, x.ndim):
            k = self.kernel.shape[axis - x.ndim]
            x = x.index_select(axis, (i := _outside(x.shape[axis], k, self.boundary, x.device)).clamp_min(0)) * (
                i >= 0
            ).to(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
        flat = x.reshape(-1, 1, *x.shape[x.ndim - dims :])
        weight = self.kernel.to(x).flip(tuple(range(dims)))[None, None]
        y = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](flat, weight)
        return y.reshape(*x.shape[: x.ndim - dims], *y.shape[2:])

    def adjoint(self, y: Tensor) -> Tensor:
        with differentiation():
            x = torch.zeros_like(y, requires_grad=True)
            (g,) = torch.autograd.grad(self(x), x, ordinary(y), create_graph=y.requires_grad)
        return g

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Blur:
        """blur:SIGMA, a Gaussian of that many pixels."""
        return cls(words.gaussian_kernel(words.number(value, 0, min(shape[1:]) / 6)))


def color_matrix() -> Tensor:
    """The orthonormal colour transform (3, 3) float64: x M has gray, and two differences (Song et al. 2021, App. I.3).

    The paper prints it to three digits, whose columns are orthonormal only to 1e-3; this one is exact.
    """
    columns = torch.tensor([[1.0, 1.0, 1.0], [-2.0, 1.0, 1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    normed: Tensor = columns / torch.linalg.vector_norm(columns, dim=1, keepdim=True)
    return normed.T.contiguous()


def along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """A matrix (m, n) along one axis of x."""
    check_not_integers(x)
    moved: Tensor = (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)
    return moved


@lru_cache(maxsize=64)
def _strided_filter(n: int, k: int, taps: tuple[float, ...], boundary: Boundary) -> Tensor:
    matrix = torch.zeros(n // k, n, dtype=torch.float64)
    before = (len(taps) - k) // 2
    position = torch.arange(0, n, k).unsqueeze(1) - before + torch.arange(len(taps))
    index, weight = _fold(position, n, boundary), torch.tensor(taps, dtype=torch.float64).expand(position.shape)
    return matrix.scatter_add_(1, index.clamp_min(0), torch.where(index >= 0, weight, 0.0))


def _outside(n: int, k: int, boundary: Boundary, device: torch.device) -> Tensor:
    """Indices of n entries and of what a kernel of k taps meets on both sides; -1 is zero."""
    after = k // 2
    return _fold(torch.arange(after - k + 1, n + after), n, boundary).to(device)


def _fold(position: Tensor, n: int, boundary: Boundary) -> Tensor:
    match boundary:
        case "circular":
            return position % n
        case "reflect":
            wrapped = position % (2 * n)
            return torch.minimum(wrapped, 2 * n - 1 - wrapped)
        case "zeros":
            return torch.where((position >= 0) & (position < n), position, -1)


def _check_boundary(boundary: str) -> None:
    if boundary not in ("reflect", "circular", "zeros"):
        raise ValueError(f"boundary={boundary!r} is unknown; choose reflect, circular or zeros")


def _spatial(dims: int | None, ndim: int) -> int:
    return max(ndim - 2, 1) if dims is None else dims
