"""The parts a U-Net is made of: residual blocks, attention, and the two ways to merge a pyramid into the trunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.dtypes import full_precision
from scorefield.nn.initial import fan_avg_uniform_
from scorefield.nn.recompute import is_worthwhile, prepared_convolution
from scorefield.nn.resample import ConvDown, ConvUp, Dims, Taps, conv, downsampler, upsampler

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "swish": nn.SiLU,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "lrelu": partial(nn.LeakyReLU, 0.2),
}
"""The non-linearities of the official code, by their names there."""


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse, in words that name the option, a value that is not one of those allowed."""
    choices = tuple(allowed)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, choices))}")


def group_norm(channels: int, max_groups: int | None = None) -> nn.GroupNorm:
    """Group normalisation with min(channels / 4, 32) groups, or `max_groups`, lowered to the nearest divisor."""
    groups = max(min(channels // 4, 32) if max_groups is None else min(channels, max_groups), 1)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


def normalize(x: Tensor, norm: nn.GroupNorm, weight: Tensor, bias: Tensor) -> Tensor:
    """`norm` with this weight and bias, computed in their dtype and returned in that of x."""
    if x.dtype == weight.dtype or x.device.type == "cpu":  # on the CPU the kernel does just that
        return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
    return F.group_norm(x.to(weight.dtype), norm.num_groups, weight, bias, norm.eps).to(x.dtype)


@dataclass(frozen=True)
class Style:
    """How the parts of one network are built: what they all share.

    Main arguments:
        dims: 1 for signals, 2 for images, 3 for volumes.
        embed: width of the conditioning vector, 0 for none.
        resblock: "biggan" resamples inside residual blocks; "ddpm" between them, and starts the 1x1 shortcuts at a tenth
            of the usual variance.
        resamp_with_conv: whether "ddpm" resamples by strided convolutions, or by plain filters.
        fir: filter taps of all resampling, None for plain averaging and repetition.
        dropout: probability inside the residual blocks.
        rescale: divide every residual sum by sqrt(2).
        init_scale: variance of the last layer of every branch.
        max_groups: groups of the normalisations, as in `group_norm`.
        nonlinearity: one of `ACTIVATIONS`.
    """

    dims: Dims = 2
    embed: int = 0
    resblock: Literal["biggan", "ddpm"] = "biggan"
    resamp_with_conv: bool = True
    fir: Taps | None = None
    dropout: float = 0.0
    rescale: bool = True
    init_scale: float = 0.0
    max_groups: int | None = None
    nonlinearity: str = "swish"

    @property
    def scale(self) -> float:
        """The factor on every residual sum."""
        return math.sqrt(0.5) if self.rescale else 1.0

    def activation(self) -> nn.Module:
        """A new module of the non-linearity."""
        return ACTIVATIONS[self.nonlinearity]()

    def norm(self, channels: int) -> nn.GroupNorm:
        """A group normalisation of this many channels."""
        return group_norm(channels, self.max_groups)

    def halving(self, channels: int) -> nn.Module:
        """What leads from a level of the trunk to the next coarser one."""
        if self.resblock == "biggan":
            return ResidualBlock(self, channels, channels, "down")
        if self.resamp_with_conv:
            return ConvDown(self.dims, channels, channels, self.fir)
        return downsampler(self.dims, self.fir)

    def doubling(self, channels: int) -> nn.Module:
        """What leads from a level of the trunk to the next finer one."""
        if self.resblock == "biggan":
            return ResidualBlock(self, channels, channels, "up")
        if self.resamp_with_conv:
            return ConvUp(self.dims, channels, channels, self.fir)
        return upsampler(self.dims, self.fir)


class ResidualBlock(nn.Module):
    """Norm, act, conv, plus conditioning, norm, act, dropout, conv, added to the input (Song et al. 2021, appendix H).

    Main arguments:
        inputs, outputs: channels.
        resample: "down" or "up" resamples both branches after the first activation (the BigGAN block).
    """

    def __init__(self, style: Style, inputs: int, outputs: int, resample: Literal["down", "up"] | None = None) -> None:
        super().__init__()
        dims = style.dims
        self.norm1 = style.norm(inputs)
        self.conv1 = conv(dims, inputs, outputs)
        self.embed = nn.Linear(style.embed, outputs) if style.embed else None
        if self.embed is not None:
            fan_avg_uniform_(self.embed.weight)
            nn.init.zeros_(self.embed.bias)
        self.norm2 = style.norm(outputs)
        self.dropout = nn.Dropout(style.dropout)
        self.conv2 = conv(dims, outputs, outputs, scale=style.init_scale)
        self.dense_shortcut = style.resblock == "ddpm"
        self.shortcut: nn.Module | None = None
        if inputs != outputs or resample is not None:
            self.shortcut = conv(dims, inputs, outputs, 1, scale=0.1 if self.dense_shortcut else 1.0)
        self.resample: nn.Module | None = None
        if resample is not None:
            self.resample = (downsampler if resample == "down" else upsampler)(dims, style.fir)
        self.act = style.activation()
        self.scale = style.scale

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x: (B, inputs, *S); embedding: (B, embed), already through its non-linearity. Returns (B, outputs, *S')."""
        if is_worthwhile(self, x):
            return self._train(x, embedding)
        h: Tensor = self.conv1(self._prepare1(x, self.norm1.weight, self.norm1.bias))
        if self.embed is not None and embedding is not None:
            h = h + self._bias(embedding, h)
        h = self.conv2(self.dropout(self._prepare2(h, self.norm2.weight, self.norm2.bias)))
        y: Tensor = (self._skip(x) + h) * self.scale
        return y

    def _train(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """The same values; keeps less for the backward pass, and adds in place where no gradient needs the summands."""
        h = prepared_convolution(x, self.norm1, self.conv1, self._prepare1)
        if self.embed is not None and embedding is not None:
            h = h.add_(self._bias(embedding, h))
        h = prepared_convolution(h, self.norm2, self.conv2, self._prepare2, self.dropout.p)
        return h.add_(self._skip(x)).mul_(self.scale)

    def _skip(self, x: Tensor) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        y: Tensor = x if self.shortcut is None else self.shortcut(x)
        return y

    def _prepare1(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h: Tensor = self.act(normalize(x, self.norm1, weight, bias))
        return h if self.resample is None else self.resample(h)

    def _prepare2(self, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = self.act(normalize(h, self.norm2, weight, bias))
        return y

    def _bias(self, embedding: Tensor, h: Tensor) -> Tensor:
        assert self.embed is not None
        e: Tensor = self.embed(embedding.to(self.embed.weight.dtype)).to(h.dtype)
        return e.reshape(*e.shape, *[1] * (h.ndim - 2))


class Attention(nn.Module):
    """Self-attention over all positions with one head of full width, added to its input.

    Queries, keys and values come out of one dense layer in this order; each third starts with its own fan average.
    """

    def __init__(self, style: Style, channels: int) -> None:
        super().__init__()
        self.width = channels
        self.norm = style.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        with torch.no_grad():
            for third in self.qkv.weight.chunk(3):
                fan_avg_uniform_(third, 0.1)
        fan_avg_uniform_(self.out.weight, style.init_scale)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        self.scale = style.scale

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *S) -> the same shape."""
        tokens = normalize(x, self.norm, self.norm.weight, self.norm.bias).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        if torch.is_grad_enabled() and tokens.shape[1] <= 1024:
            # The fused kernels have no second derivative, and save nothing where the matrix is this small.
            h = torch.softmax(q @ k.transpose(1, 2) * self.width**-0.5, dim=-1) @ v
        else:
            h = F.scaled_dot_product_attention(*(z.unsqueeze(1) for z in (q, k, v))).squeeze(1)
        y: Tensor = (x + self.out(h).transpose(1, 2).reshape(x.shape)) * self.scale
        return y


class Combine(nn.Module):
    """Bring the input pyramid into the trunk through a 1x1 convolution, by sum or by concatenation (pyramid first)."""

    def __init__(self, dims: Dims, pyramid: int, trunk: int, method: Literal["sum", "cat"]) -> None:
        super().__init__()
        self.conv = conv(dims, pyramid, trunk, 1)
        self.method = method

    def forward(self, pyramid: Tensor, trunk: Tensor) -> Tensor:
        h = self.conv(pyramid)
        return h + trunk if self.method == "sum" else torch.cat([h, trunk], dim=1)


class Head(nn.Module):
    """Norm, act, conv: from trunk channels to output channels, in the dtype of the weights whatever that of the trunk.

    The convolution starts with the variance `scale`, that of the style unless given.
    """

    def __init__(self, style: Style, inputs: int, outputs: int, scale: float | None = None) -> None:
        super().__init__()
        self.norm = style.norm(inputs)
        self.conv = conv(style.dims, inputs, outputs, scale=style.init_scale if scale is None else scale)
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        with full_precision(x.device):
            x = x.to(self.conv.weight.dtype)
            if is_worthwhile(self, x):
                return prepared_convolution(x, self.norm, self.conv, self._prepare)
            return self.conv(self._prepare(x, self.norm.weight, self.norm.bias))  # type: ignore[no-any-return]

    def _prepare(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = self.act(normalize(x, self.norm, weight, bias))
        return y
