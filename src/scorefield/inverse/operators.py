"""Linear measurements y = A x with their adjoints, on batches (B, *) of any number of dimensions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from scorefield.dtypes import check_not_integers, full_precision
from scorefield.inputs import said, tensor_of
from scorefield.inverse import words


def _plain(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """The method without autocast: half precision is for networks, and a pseudo-inverse diverges in it."""

    @wraps(method)
    def call(self: Any, x: Tensor) -> Tensor:
        with full_precision(x.device):
            return method(self, x)

    return call


class Operator(Protocol):
    """What a linear measurement offers."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x, (B, *) -> (B, *)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, like x."""
        ...


class LinearOperator(ABC):
    """A linear measurement; A @ B is first B, then A. Under autocast it works in the precision of what it is given."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in {"__call__", "adjoint"} & set(cls.__dict__):
            setattr(cls, name, _plain(cls.__dict__[name]))

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x, (B, *) -> (B, *)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, like x."""

    def __matmul__(self, first: Operator) -> Composed:
        return Composed(self, first)


@dataclass(frozen=True, eq=False)
class Composed(LinearOperator):
    """A @ B: first B, then A."""

    second: Operator
    first: Operator

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(self.second.adjoint(y))


@dataclass(frozen=True, eq=False, repr=False)
class Mask(LinearOperator):
    """Keeps the entries where the mask is true, zero elsewhere.

    Main arguments:
        mask: boolean or 0/1, broadcastable to (B, *): of the event shape, or with a row for each sample.

    Raises:
        ValueError: values other than 0 and 1.
    """

    mask: Tensor

    per_event: ClassVar[tuple[str, ...]] = ("mask",)
    example: ClassVar[str] = "known.png"

    __repr__ = said

    def __post_init__(self) -> None:
        mask = tensor_of(self.mask, "mask")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask: values must be 0 (unknown) or 1 (known)")
        object.__setattr__(self, "mask", mask.bool())

    def __call__(self, x: Tensor) -> Tensor:
        """x with its unknown entries set to zero."""
        return torch.where(self.mask.to(x.device), x, torch.zeros_like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The same as the operator itself."""
        return self(y)

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Mask:
        """mask:FILE, an image whose white is known."""
        return cls(words.read_mask(value, shape[1:]))

    def shown(self, y: Tensor) -> Tensor:
        """A measurement as a picture: grey where nothing is known."""
        return torch.where(self.mask.to(y.device), y, torch.full_like(y, 0.5))


@dataclass(frozen=True, eq=False, repr=False)
class Fourier(LinearOperator):
    """Unitary Fourier transform of real x, sampled where the mask is true: (B, *, *S) -> complex, the same shape.

    Main arguments:
        mask: of shape (*S), in the order of `torch.fft.fftn` (zero frequency first); its number of dimensions tells how
            many trailing dimensions are transformed.

    The noise of a `Posterior` is the standard deviation of the real and of the imaginary part.
    """

    mask: Tensor

    example: ClassVar[str] = "0.3"

    __repr__ = said

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", Mask(self.mask).mask)

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.fft.fftn(x, dim=self._axes, norm="ortho")
        return y * self.mask.to(x.device)

    def adjoint(self, y: Tensor) -> Tensor:
        x: Tensor = torch.fft.ifftn(y * self.mask.to(y.device), dim=self._axes, norm="ortho").real
        return x

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Fourier:
        """fourier:FRACTION of the columns, the middle ones among them."""
        return cls(words.fourier_columns(words.number(value, 0, 1), shape[1:], seed))

    def shown(self, y: Tensor) -> Tensor:
        """A measurement as a picture: what it is with zeros for the rest."""
        return self.adjoint(y)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.mask.ndim, 0))


@dataclass(frozen=True, eq=False, repr=False)
class Dense(LinearOperator):
    """A matrix (M, D) on flattened events: (B, *shape) -> (B, M).

    Raises:
        ValueError: the matrix does not have prod(shape) columns.
    """

    matrix: Tensor
    shape: tuple[int, ...]

    __repr__ = said

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "matrix", tensor_of(self.matrix, "matrix"))
        if self.matrix.ndim != 2 or self.matrix.shape[1] != math.prod(self.shape):
            raise ValueError(f"matrix has shape {tuple(self.matrix.shape)}; give (M, {math.prod(self.shape)})")

    def __call__(self, x: Tensor) -> Tensor:
        check_not_integers(x)
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)


def random_projection(m: int, shape: Sequence[int], seed: int = 0) -> Dense:
    """m random directions with orthonormal rows, as a `Dense` operator on events of that shape; m <= prod(shape)."""
    d = math.prod(shape)
    if not 1 <= m <= d:
        raise ValueError(f"m={m}: the number of directions lies between 1 and {d}")
    z = torch.randn(d, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Dense(torch.linalg.qr(z).Q.T.contiguous(), tuple(shape))
