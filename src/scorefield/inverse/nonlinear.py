"""Measurements that are not linear; the posterior methods differentiate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.inverse import words


@dataclass(frozen=True)
class PhaseRetrieval:
    """Modulus of the oversampled, unitary Fourier transform: (B, *, *S) -> (B, *, *(oversample S)).

    Main arguments:
        dims: number of trailing dimensions that are transformed.
        oversample: factor by which x is padded with zeros; at 2 the modulus determines x up to shift and reflection.
    """

    dims: int = 2
    oversample: int = 2

    linear: ClassVar[bool] = False
    picture: ClassVar[bool] = False
    example: ClassVar[str] = ""

    def __call__(self, x: Tensor) -> Tensor:
        """|F pad(x)|."""
        sides = x.shape[x.ndim - self.dims :]
        padding = [amount for side in reversed(sides) for amount in (0, (self.oversample - 1) * side)]
        spectrum: Tensor = torch.fft.fftn(F.pad(x, padding), dim=tuple(range(-self.dims, 0)), norm="ortho")
        return spectrum.abs()

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> PhaseRetrieval:
        """phase-retrieval."""
        return cls()

    def shown(self, y: Tensor) -> Tensor:
        """Moduli on a logarithmic scale, frequency zero in the middle, brought to the size of the image."""
        shown = torch.log1p(torch.fft.fftshift(y, dim=(-2, -1)) * math.sqrt(y.shape[-1] * y.shape[-2]))
        return F.avg_pool2d(shown / shown.amax().clamp_min(1e-6), self.oversample)


@dataclass(frozen=True)
class Clip:
    """Over-exposure: zero + gain (x - zero), cut to [low, high] (high dynamic range from a clipped image).

    Main arguments:
        gain: exposure. low, high: the ends of what can be recorded. zero: the value that no exposure changes, such as black.

    Raises:
        ValueError: low is not below high, or gain or zero is not finite.
    """

    gain: float = 2.0
    low: float = -1.0
    high: float = 1.0
    zero: float = 0.0

    linear: ClassVar[bool] = False
    example: ClassVar[str] = "0.6"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gain) and math.isfinite(self.zero)):
            raise ValueError(f"gain={self.gain}, zero={self.zero}: both are finite numbers")
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high")

    def __call__(self, x: Tensor) -> Tensor:
        """The clipped image, like x."""
        return (self.zero + self.gain * (x - self.zero)).clamp(self.low, self.high)

    @classmethod
    def from_word(cls, value: str, shape: Sequence[int], seed: int = 0) -> Clip:
        """clip:LIMIT, the intensity (0 to 1) from which on all is white."""
        return cls(1 / words.number(value, 0, 1), 0.0, 1.0)
