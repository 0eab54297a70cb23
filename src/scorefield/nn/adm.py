"""The U-Net of guided diffusion (Dhariwal & Nichol 2021), its weights under the names of the authors' state dicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nn.embeddings import cosine_features
from scorefield.nn.initial import arguments


@dataclass(frozen=True)
class _Style:
    """What all blocks of one network share."""

    embed: int
    dropout: float
    scale_shift: bool
    heads: int
    head_channels: int | None
    new_attention_order: bool


class _Norm(nn.GroupNorm):
    """32 groups, computed in float32 at least."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class _Block(nn.Module):
    """Norm, act, conv, conditioning by shift or by scale and shift, act, dropout, conv, added to the input."""

    def __init__(self, style: _Style, inputs: int, outputs: int, resample: str | None = None) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_Norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(style.embed, outputs * (2 if style.scale_shift else 1)))
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.out_layers = nn.Sequential(_Norm(outputs), nn.SiLU(), nn.Dropout(style.dropout), _zero(last))
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.scale_shift = style.scale_shift
        self.resample = resample

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.in_layers[1](self.in_layers[0](x))
        h = self.in_layers[2](_resampled(h, self.resample))
        x = _resampled(x, self.resample)
        c = self.emb_layers(e).to(h.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = c.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + c)
        y: Tensor = self.skip_connection(x) + self.out_layers[3](self.out_layers[2](self.out_layers[1](h)))
        return y


class _Attention(nn.Module):
    """Self-attention with several heads; `new_attention_order` splits into q, k, v before heads, else after."""

    def __init__(self, style: _Style, channels: int) -> None:
        super().__init__()
        self.heads = style.heads if style.head_channels is None else channels // style.head_channels
        if self.heads < 1 or channels % self.heads:
            raise ValueError(
                f"head_channels={style.head_channels}, heads={style.heads}: they do not divide {channels} channels"
            )
        self.norm = _Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))
        self.new_order = style.new_attention_order

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        b, c, *_ = x.shape
        h = self.qkv(self.norm(x).flatten(2))
        if self.new_order:
            parts = h.reshape(b, 3, self.heads, c // self.heads, -1)
            q, k, v = (parts[:, i].transpose(-1, -2) for i in range(3))
        else:
            parts = h.reshape(b, self.heads, 3, c // self.heads, -1)
            q, k, v = (parts[:, :, i].transpose(-1, -2) for i in range(3))
        if torch.is_grad_enabled() and q.shape[-2] <= 1024:
            # The fused kernels have no second derivative, and save nothing where the matrix is this small.
            h = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(-1, -2).reshape(b, c, -1)).reshape(x.shape)  # type: ignore[no-any-return]


class _Conv(nn.Module):
    """A convolution that halves, under the name `op`, or one after doubling, under the name `conv`."""

    def __init__(self, channels: int, resample: str) -> None:
        super().__init__()
        self.resample = resample
        layer = nn.Conv2d(channels, channels, 3, stride=2 if resample == "down" else 1, padding=1)
        self.name = "op" if resample == "down" else "conv"
        self.add_module(self.name, layer)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y: Tensor = self.get_submodule(self.name)(_resampled(x, "up") if self.resample == "up" else x)
        return y


class _Stem(nn.Conv2d):
    def forward(self, x: Tensor, e: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class ADM(nn.Module):
    """The U-Net of Dhariwal & Nichol 2021, called as net(x, t, label=None) -> like x; t are labels around [0, 999].

    x has shape (B, in_channels, H, W) with sides divisible by 2 ** (len(ch_mult) - 1). Of a network that learns its variance
    too (`learn_sigma`), a call returns the mean's half; `both` returns the two.

    Main arguments:
        in_channels: channels of x. nf: width at full resolution. ch_mult: width of each level in units of nf.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attn: levels with self-attention, counted from 0 at full resolution. The middle always has it.
        num_classes: integer labels of shape (B,) that every call then needs as `label`; 0 for none.

    Other arguments:
        learn_sigma: twice the channels come out. dropout: probability inside the residual blocks.
        heads: of every attention, unless head_channels gives the width of a head.
        scale_shift: the embedding scales and shifts (adaptive group norm), or shifts only.
        resblock_updown: resample inside residual blocks, or by convolutions between them.
        new_attention_order: how queries, keys and values lie in the weights; it has no other effect.

    Raises:
        ValueError: a level does not exist, heads do not divide a width, or an input does not fit.
    """

    exact_time = True

    def __init__(
        self,
        in_channels: int = 3,
        nf: int = 256,
        ch_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attn: Sequence[int] = (3, 4, 5),
        *,
        num_classes: int = 0,
        learn_sigma: bool = False,
        dropout: float = 0.0,
        heads: int = 4,
        head_channels: int | None = 64,
        scale_shift: bool = True,
        resblock_updown: bool = True,
        new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.in_channels, self.num_classes, self.levels = in_channels, num_classes, len(ch_mult)
        if not ch_mult or min(nf, num_res_blocks) < 1 or any(not 0 <= level < self.levels for level in attn):
            raise ValueError(
                f"nf={nf}, ch_mult={tuple(ch_mult)}, num_res_blocks={num_res_blocks}, attn={tuple(attn)}: expected widths and "
                "blocks from 1 on, and levels that exist"
            )
        self.nf = nf
        style = _Style(4 * nf, dropout, scale_shift, heads, head_channels, new_attention_order)
        self.time_embed = nn.Sequential(nn.Linear(nf, style.embed), nn.SiLU(), nn.Linear(style.embed, style.embed))
        if num_classes:
            self.label_emb = nn.Embedding(num_classes, style.embed)
        widths = [int(mult * nf) for mult in ch_mult]
        skips = self._build_down(style, widths)
        self.middle_block = nn.ModuleList(
            [
                _Block(style, widths[-1], widths[-1]),
                _Attention(style, widths[-1]),
                _Block(style, widths[-1], widths[-1]),
            ]
        )
        self._build_up(style, widths, skips)
        last = nn.Conv2d(widths[0], in_channels * (2 if learn_sigma else 1), 3, padding=1)
        self.out = nn.Sequential(_Norm(widths[0]), nn.SiLU(), _zero(last))

    def _build_down(self, style: _Style, widths: list[int]) -> list[int]:
        channels = widths[0]
        self.input_blocks = nn.ModuleList([nn.ModuleList([_Stem(self.in_channels, channels, 3, padding=1)])])
        skips = [channels]
        for i, width in enumerate(widths):
            for _ in range(self.config["num_res_blocks"]):
                layers: list[nn.Module] = [_Block(style, channels, width)]
                channels = width
                if i in self.config["attn"]:
                    layers.append(_Attention(style, channels))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if i < self.levels - 1:
                self.input_blocks.append(nn.ModuleList([self._resampler(style, channels, "down")]))
                skips.append(channels)
        return skips

    def _build_up(self, style: _Style, widths: list[int], skips: list[int]) -> None:
        channels, blocks = widths[-1], self.config["num_res_blocks"]
        self.output_blocks = nn.ModuleList()
        for i in reversed(range(self.levels)):
            for j in range(blocks + 1):
                layers: list[nn.Module] = [_Block(style, channels + skips.pop(), widths[i])]
                channels = widths[i]
                if i in self.config["attn"]:
                    layers.append(_Attention(style, channels))
                if i > 0 and j == blocks:
                    layers.append(self._resampler(style, channels, "up"))
                self.output_blocks.append(nn.ModuleList(layers))

    def _resampler(self, style: _Style, channels: int, resample: str) -> nn.Module:
        if self.config["resblock_updown"]:
            return _Block(style, channels, channels, resample)
        return _Conv(channels, resample)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self.both(x, t, label)[0]

    def both(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The prediction, like x, and what places the learned variance between its bounds in [-1, 1], like x or None."""
        step = 2 ** (self.levels - 1)
        if x.ndim != 4 or x.shape[1] != self.in_channels or any(side % step for side in x.shape[2:]):
            raise ValueError(
                f"x: expected shape (B, {self.in_channels}, H, W) sides divisible by {step}, got {tuple(x.shape)}"
            )
        e = self._embedding(t, label)
        h, skips = x, []
        for block in self.input_blocks:
            h = _through(block, h, e)
            skips.append(h)
        h = _through(self.middle_block, h, e)
        for block in self.output_blocks:
            h = _through(block, torch.cat([h, skips.pop()], dim=1), e)
        y: Tensor = self.out(h)
        return (y, None) if y.shape == x.shape else (y[:, : self.in_channels], y[:, self.in_channels :])

    def _embedding(self, t: Tensor, label: Tensor | None) -> Tensor:
        dtype = next(self.time_embed.parameters()).dtype
        e: Tensor = self.time_embed(cosine_features(t, self.nf).to(dtype))
        if (label is None) != (self.num_classes == 0):
            raise ValueError(
                f"label: this network {'needs one of each sample' if self.num_classes else 'knows no classes'}"
            )
        if label is None:
            return e
        beyond = label.device.type == "cpu" and bool((label < 0).any() | (label >= self.num_classes).any())
        if label.is_floating_point() or label.shape not in ((), t.shape) or beyond:
            raise ValueError(
                f"label: expected integers from 0 to {self.num_classes - 1}; this network has no null label"
            )
        return e + self.label_emb(label.expand(t.shape))  # type: ignore[no-any-return]


def _through(layers: nn.Module, h: Tensor, e: Tensor) -> Tensor:
    for layer in layers:  # type: ignore[attr-defined]
        h = layer(h, e)
    return h


def _resampled(x: Tensor, resample: str | None) -> Tensor:
    if resample is None:
        return x
    return F.avg_pool2d(x, 2) if resample == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")


def _zero(layer: nn.Module) -> nn.Module:
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer
