"""The parts a U-Net is made of: residual blocks, attention, and the two ways to merge a pyramid into the trunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .init import fan_avg_uniform_
from .resample import Dims, conv, downsampler, upsampler


def group_norm(channels: int, max_groups: int | None = None) -> nn.GroupNorm:
    """Group normalisation with min(channels / 4, 32) groups, or `max_groups`, lowered to the nearest divisor."""
    groups = max(min(channels // 4, 32) if max_groups is None else min(channels, max_groups), 1)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, act, conv, plus conditioning, norm, act, dropout, conv, added to the input (Song et al. 2021, appendix H).

    Main arguments:
        inputs, outputs: channels.
        embed: width of the conditioning vector, 0 for none.
        resample: "down" or "up" resamples both branches after the first activation (the BigGAN block).
        dense_shortcut: start the 1x1 shortcut at a tenth of the usual variance, as the DDPM block does.
        rescale: divide the sum by sqrt(2).
    """

    def __init__(
        self,
        dims: Dims,
        inputs: int,
        outputs: int,
        *,
        embed: int = 0,
        resample: Literal["down", "up"] | None = None,
        fir: Sequence[float] | None = None,
        dropout: float = 0.0,
        rescale: bool = True,
        init_scale: float = 0.0,
        dense_shortcut: bool = False,
        max_groups: int | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, max_groups)
        self.conv1 = conv(dims, inputs, outputs)
        self.embed = nn.Linear(embed, outputs) if embed else None
        if self.embed is not None:
            fan_avg_uniform_(self.embed.weight)
            nn.init.zeros_(self.embed.bias)
        self.norm2 = group_norm(outputs, max_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(dims, outputs, outputs, scale=init_scale)
        self.shortcut = (
            conv(dims, inputs, outputs, 1, scale=0.1 if dense_shortcut else 1.0)
            if inputs != outputs or resample is not None
            else None
        )
        self.resample = (
            None if resample is None else downsampler(dims, fir) if resample == "down" else upsampler(dims, fir)
        )
        self.dense_shortcut = dense_shortcut
        self.act = act if act is not None else nn.SiLU()
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x: (B, inputs, *S); embedding: (B, embed), already through its non-linearity. Returns (B, outputs, *S')."""
        h: Tensor = self.act(self.norm1(x))
        if self.resample is not None:
            h = self.resample(h)
            x = self.resample(x)
        h = self.conv1(h)
        if self.embed is not None and embedding is not None:
            e = self.embed(embedding)
            h = h + e.reshape(*e.shape, *[1] * (h.ndim - 2))
        h = self.conv2(self.dropout(self.act(self.norm2(h))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        y: Tensor = (x + h) * self.scale
        return y


class Attention(nn.Module):
    """Self-attention over all positions with one head of full width, added to its input.

    Queries, keys and values come out of one dense layer in this order; each third starts with its own fan average.
    """

    def __init__(
        self, channels: int, *, rescale: bool = True, init_scale: float = 0.0, max_groups: int | None = None
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, max_groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        with torch.no_grad():
            for third in self.qkv.weight.chunk(3):
                fan_avg_uniform_(third, 0.1)
        fan_avg_uniform_(self.out.weight, init_scale)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        self.scale = math.sqrt(0.5) if rescale else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *S) -> the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        y: Tensor = (x + h.transpose(1, 2).reshape(x.shape)) * self.scale
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
    """Norm, act, conv: from trunk channels to output channels."""

    def __init__(
        self,
        dims: Dims,
        inputs: int,
        outputs: int,
        *,
        init_scale: float = 0.0,
        max_groups: int | None = None,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm = group_norm(inputs, max_groups)
        self.conv = conv(dims, inputs, outputs, scale=init_scale)
        self.act = act if act is not None else nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(x)))  # type: ignore[no-any-return]
