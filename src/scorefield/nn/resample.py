"""Halving and doubling of resolution, with or without a FIR filter, in one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nn.initial import fan_avg_uniform_

Dims: TypeAlias = Literal[1, 2, 3]
Taps: TypeAlias = "Sequence[float] | Sequence[Sequence[float]]"
ConvNd: TypeAlias = "nn.Conv1d | nn.Conv2d | nn.Conv3d"

_CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_conv_transpose = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_avg_pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(
    dims: Dims,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    padding: int | None = None,
    scale: float = 1.0,
) -> ConvNd:
    """A convolution with fan-average uniform weights of variance `scale` and zero bias; "same" padding unless told."""
    pad = kernel // 2 if padding is None else padding
    layer = _CONV[dims](inputs, outputs, kernel, stride=stride, padding=pad)
    fan_avg_uniform_(layer.weight, scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def fir_kernel(taps: Taps, dims: Dims) -> Tensor:
    """The filter with these taps along every dimension, or these rows in two, summing to one; shape (1, 1, n, ..., n)."""
    try:
        kernel = np.asarray(taps, dtype=np.float64)
    except (TypeError, ValueError):
        kernel = np.zeros(0)
    square = kernel.ndim == dims and len(set(kernel.shape)) == 1
    if kernel.size == 0 or not (kernel.ndim == 1 or square) or not abs(kernel.sum()) > 0:
        raise ValueError(
            f"fir={taps!r}: expected taps with a non-zero sum, such as (1, 3, 3, 1), or square rows of them for images"
        )
    line = kernel = kernel / kernel.sum()
    while kernel.ndim < dims:
        kernel = kernel[..., None] * line
    return torch.tensor(kernel, dtype=torch.float32).reshape(1, 1, *kernel.shape)


class _Filter(nn.Module):
    """A depthwise FIR filter; the taps follow the module to its device and dtype but are no part of the state."""

    kernel: Tensor

    def __init__(self, dims: Dims, taps: Taps, gain: float, flip: bool) -> None:
        super().__init__()
        kernel = fir_kernel(taps, dims) * gain
        self.dims = dims
        self.size = kernel.shape[-1]
        self.register_buffer("kernel", kernel.flip(list(range(2, 2 + dims))) if flip else kernel, persistent=False)

    def weight(self, x: Tensor) -> Tensor:
        return self.kernel.to(x.dtype).expand(x.shape[1], *self.kernel.shape[1:])

    def filter(self, x: Tensor, before: int, after: int, stride: int = 1) -> Tensor:
        """x with this many zeros before and after it along every dimension (removed where negative), filtered."""
        shared = max(min(before, after), 0)
        if (before, after) != (shared, shared):
            x = F.pad(x, (before - shared, after - shared) * self.dims)
        return _conv[self.dims](x, self.weight(x), stride=stride, padding=shared, groups=x.shape[1])


class FIRDown(_Filter):
    """Filter and keep every second sample: (B, C, *S) -> (B, C, *S / 2). One strided depthwise convolution."""

    def __init__(self, dims: Dims, taps: Taps = (1, 3, 3, 1)) -> None:
        super().__init__(dims, taps, gain=1.0, flip=True)

    def forward(self, x: Tensor) -> Tensor:
        # A filter of an odd number of taps has its extra zero before the signal, as in StyleGAN2.
        return self.filter(x, (self.size - 1) // 2, self.size // 2 - 1, stride=2)


class FIRUp(_Filter):
    """Insert zeros and filter: (B, C, *S) -> (B, C, *2S). One strided transposed depthwise convolution."""

    def __init__(self, dims: Dims, taps: Taps = (1, 3, 3, 1)) -> None:
        super().__init__(dims, taps, gain=2.0**dims, flip=False)

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.size // 2 - 1, (self.size - 1) // 2  # how much of the full convolution lies outside
        shared = max(min(first, last), 0)
        y = _conv_transpose[self.dims](x, self.weight(x), stride=2, padding=shared, groups=x.shape[1])
        return y if (first, last) == (shared, shared) else F.pad(y, (shared - first, shared - last) * self.dims)


class AverageDown(nn.Module):
    """The mean over cells of two samples a side: (B, C, *S) -> (B, C, *S / 2)."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return _avg_pool[self.dims](x, 2)


class NearestUp(nn.Module):
    """Every sample repeated along every dimension: (B, C, *S) -> (B, C, *2S)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ConvDown(nn.Module):
    """A 3-tap convolution of stride 2; with FIR taps the input is filtered first (the fused form of StyleGAN2)."""

    def __init__(self, dims: Dims, inputs: int, outputs: int, fir: Taps | None = None) -> None:
        super().__init__()
        self.conv = conv(dims, inputs, outputs, stride=2, padding=0)
        self.filter = None if fir is None else _Filter(dims, fir, gain=1.0, flip=True)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        if self.filter is None:
            x = F.pad(x, (0, 1) * self.dims)  # the asymmetric padding of TensorFlow's "SAME"
        else:
            x = self.filter.filter(x, (self.filter.size + 1) // 2, self.filter.size // 2)
        return self.conv(x)  # type: ignore[no-any-return]


class ConvUp(nn.Module):
    """Double the resolution and convolve with 3 taps; with FIR taps as a transposed convolution, then the filter."""

    def __init__(self, dims: Dims, inputs: int, outputs: int, fir: Taps | None = None) -> None:
        super().__init__()
        self.conv = conv(dims, inputs, outputs)
        self.filter = None if fir is None else _Filter(dims, fir, gain=2.0**dims, flip=True)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        if self.filter is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
        weight = self.conv.weight.transpose(0, 1).flip(list(range(2, 2 + self.dims)))
        x = _conv_transpose[self.dims](x, weight, stride=2)
        x = self.filter.filter(x, (self.filter.size - 1) // 2, self.filter.size // 2 - 1)
        assert self.conv.bias is not None
        return x + self.conv.bias.reshape(-1, *[1] * self.dims)


def downsampler(dims: Dims, fir: Taps | None) -> nn.Module:
    """A halving without weights."""
    return AverageDown(dims) if fir is None else FIRDown(dims, fir)


def upsampler(dims: Dims, fir: Taps | None) -> nn.Module:
    """A doubling without weights."""
    return NearestUp() if fir is None else FIRUp(dims, fir)
