"""One U-Net of which NCSN++, DDPM++ and DDPM are settings, in one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from scorefield.nn.blocks import ACTIVATIONS, Attention, Combine, Head, ResidualBlock, Style, check_choice
from scorefield.nn.embeddings import Conditioning, FourierFeatures, NoiseScales, PositionalFeatures
from scorefield.nn.initial import arguments
from scorefield.nn.resample import ConvDown, ConvUp, Dims, Taps, conv, downsampler, upsampler

Progressive = Literal["none", "output_skip", "residual"]
ProgressiveInput = Literal["none", "input_skip", "residual"]

_CHOICES: dict[str, tuple[object, ...]] = {
    "dims": (1, 2, 3),
    "embedding": ("positional", "fourier"),
    "resblock": ("biggan", "ddpm"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "combine": ("sum", "cat"),
    "nonlinearity": tuple(ACTIVATIONS),
}


class UNet(nn.Module):
    """The U-Net of Song et al. 2021, appendix H, called as net(x, t, label=None, image=None) -> like x.

    x has shape (B, in_channels, *S) with every side divisible by 2 ** (len(ch_mult) - 1); the sides need not be equal,
    nor be those of training. t has shape (B,): what the embedding reads (below).

    Main arguments:
        in_channels: channels of x.
        nf: width at full resolution.
        ch_mult: width of each level in units of nf; its length is the number of levels, each half the size of the last.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attn: levels with self-attention, counted from 0 at full resolution (see `levels_at`). The middle always has it.
        dims: 1 for signals, 2 for images, 3 for volumes.
        dropout: probability inside the residual blocks.

    Conditioning:
        embedding: "positional" reads `time_scale` * t as a label around [0, 1000]; "fourier" reads t as a noise level
            and takes its logarithm (pass `clock="sigma"` to ScoreModel).
        conditional: False builds no time embedding at all.
        num_classes: integer labels of shape (B,) may be passed as `label`; None or a negative entry is the null label.
        cond_channels: channels of `image`, (B, cond_channels, *S), which is concatenated to x.

    Other arguments:
        out_channels: channels of the result, those of x unless given.
        resblock: "biggan" resamples inside residual blocks, "ddpm" between them by strided convolutions (by plain
            filters if not `resamp_with_conv`).
        fir: filter taps of all resampling, such as (1, 3, 3, 1) or (1, 2, 1), or rows of a square two-dimensional filter;
            None for plain averaging and repetition.
        skip_rescale: divide every residual sum by sqrt(2).
        progressive, progressive_input, combine: output and input pyramids and how the input one is merged.
        scale_by_sigma: divide the result by the noise level, which is t itself, or `scales(t)` where t is a label.
        centered: False for data in [0, 1], which is then mapped to [-1, 1] at the entrance.
        nonlinearity: "swish", "elu", "relu" or "lrelu" (of slope 0.2).
        init_scale: variance of the last layer of every branch; 0 becomes 1e-10.
        max_groups: groups of the normalisations; None for the official min(channels / 4, 32). Lowered to a divisor.

    Raises:
        ValueError: an option is unknown, a level does not exist, or an input does not fit.
    """

    exact_time = True

    def __init__(
        self,
        in_channels: int = 3,
        nf: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attn: Sequence[int] = (1,),
        *,
        dims: Dims = 2,
        dropout: float = 0.1,
        embedding: Literal["positional", "fourier"] = "positional",
        time_scale: float = 1000.0,
        fourier_scale: float = 16.0,
        conditional: bool = True,
        num_classes: int = 0,
        cond_channels: int = 0,
        out_channels: int | None = None,
        resblock: Literal["biggan", "ddpm"] = "biggan",
        resamp_with_conv: bool = True,
        fir: Taps | None = None,
        skip_rescale: bool = True,
        progressive: Progressive = "none",
        progressive_input: ProgressiveInput = "none",
        combine: Literal["sum", "cat"] = "sum",
        scale_by_sigma: bool = False,
        scales: NoiseScales | None = None,
        centered: bool = True,
        nonlinearity: str = "swish",
        init_scale: float = 0.0,
        max_groups: int | None = None,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        for option, allowed in _CHOICES.items():
            check_choice(option, self.config[option], allowed)
        levels = len(ch_mult)
        if levels == 0 or min(nf, num_res_blocks, *ch_mult) < 1:
            raise ValueError(
                f"nf={nf}, ch_mult={tuple(ch_mult)}, num_res_blocks={num_res_blocks}: expected whole numbers from 1 on"
            )
        if any(not 0 <= level < levels for level in attn):
            raise ValueError(f"attn: levels are counted from 0 to {levels - 1}, got {tuple(attn)}")
        if scale_by_sigma and embedding == "positional" and scales is None:
            raise ValueError("scales: with a positional embedding, scale_by_sigma needs the noise level of each label")

        self.dims = dims
        self.in_channels = in_channels
        self.cond_channels = cond_channels
        self.num_classes = num_classes
        self.levels = levels
        self.centered = centered
        self.scale_by_sigma = scale_by_sigma
        self.scales = scales
        self.combine = combine
        entrance = in_channels + cond_channels
        exit_channels = in_channels if out_channels is None else out_channels
        conditioned = conditional or num_classes > 0
        style = Style(
            dims=dims,
            embed=4 * nf if conditioned else 0,
            resblock=resblock,
            resamp_with_conv=resamp_with_conv,
            fir=fir if fir is None else _frozen(fir),
            dropout=dropout,
            rescale=skip_rescale,
            init_scale=init_scale,
            max_groups=max_groups,
            nonlinearity=nonlinearity,
        )
        self.pyramid_scale = style.scale
        self.conditioning = self._conditioning(style) if conditioned else None
        self.stem = conv(dims, entrance, nf)
        self.down, skips = self._down(style, entrance)
        channels = skips[-1]
        self.middle1 = ResidualBlock(style, channels, channels)
        self.middle_attn = Attention(style, channels)
        self.middle2 = ResidualBlock(style, channels, channels)
        self.up = self._up(style, skips, exit_channels)
        self.head = None if progressive == "output_skip" else Head(style, nf * ch_mult[0], exit_channels)

    def _conditioning(self, style: Style) -> Conditioning:
        nf, fourier = self.config["nf"], self.config["embedding"] == "fourier"
        features: nn.Module | None = None
        if self.config["conditional"] and fourier:
            features = FourierFeatures(nf, self.config["fourier_scale"])
        elif self.config["conditional"]:
            features = PositionalFeatures(nf, self.config["time_scale"])
        return Conditioning(features, 2 * nf if fourier else nf, style.embed, self.num_classes, style.activation())

    def _down(self, style: Style, pyramid: int) -> tuple[nn.ModuleList, list[int]]:
        """The levels from fine to coarse, and the channels of every skip; `pyramid` has the input pyramid's."""
        options = self.config
        channels = options["nf"]
        skips, levels = [channels], nn.ModuleList()
        for i, mult in enumerate(options["ch_mult"]):
            level = Level()
            for _ in range(options["num_res_blocks"]):
                level.blocks.append(ResidualBlock(style, channels, options["nf"] * mult))
                channels = options["nf"] * mult
                skips.append(channels)
                if i in options["attn"]:
                    level.attns.append(Attention(style, channels))
            if i < self.levels - 1:
                level.resample = style.halving(channels)
                if options["progressive_input"] == "input_skip":
                    level.pyramid = downsampler(style.dims, style.fir)
                    level.merge = Combine(style.dims, pyramid, channels, options["combine"])
                    channels *= 2 if options["combine"] == "cat" else 1
                elif options["progressive_input"] == "residual":
                    level.pyramid = ConvDown(style.dims, pyramid, channels, style.fir)
                    pyramid = channels
                skips.append(channels)
            levels.append(level)
        return levels, skips

    def _up(self, style: Style, skips: list[int], exit_channels: int) -> nn.ModuleList:
        """The levels from coarse to fine; takes the skips from the end of the list."""
        options = self.config
        channels = pyramid = skips[-1]
        levels = nn.ModuleList()
        for i in reversed(range(self.levels)):
            level = Level()
            for _ in range(options["num_res_blocks"] + 1):
                level.blocks.append(ResidualBlock(style, channels + skips.pop(), options["nf"] * options["ch_mult"][i]))
                channels = options["nf"] * options["ch_mult"][i]
            if i in options["attn"]:
                level.attns.append(Attention(style, channels))
            coarsest = i == self.levels - 1
            if options["progressive"] == "output_skip":
                level.pyramid = None if coarsest else upsampler(style.dims, style.fir)
                level.merge = Head(style, channels, exit_channels)
            elif options["progressive"] == "residual" and coarsest:
                level.merge = Head(style, channels, channels, 1.0)
            elif options["progressive"] == "residual":
                level.pyramid = ConvUp(style.dims, pyramid, channels, style.fir)
            pyramid = channels
            if i > 0:
                level.resample = style.doubling(channels)
            levels.append(level)
        return levels

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, image: Tensor | None = None) -> Tensor:
        h = self._entrance(x, image)
        e = None if self.conditioning is None else self.conditioning(t, label)
        trunk = self.middle1.conv1.weight.dtype
        pyramid = h.to(trunk)
        h = self.stem(h).to(trunk)
        skips = [h]
        for level in cast(Iterable[Level], self.down):
            h = level.run(h, e, skips)
            if level.resample is None:
                continue
            h = _resample(level.resample, h, e)
            if level.pyramid is not None:
                pyramid = level.pyramid(pyramid)
                if level.merge is not None:
                    h = level.merge(pyramid, h)
                else:
                    h = pyramid = (pyramid + h) * self.pyramid_scale
            skips.append(h)

        h = self.middle2(self.middle_attn(self.middle1(h, e)), e)

        output: Tensor | None = None
        for level in cast(Iterable[Level], self.up):
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), e)
            for attn in level.attns:
                h = attn(h)
            output, h = self._climb(level, output, h)
            if level.resample is not None:
                h = _resample(level.resample, h, e)

        y: Tensor = output if self.head is None else self.head(h)  # type: ignore[assignment]
        return y / self._noise_level(t, y) if self.scale_by_sigma else y

    def _climb(self, level: Level, output: Tensor | None, h: Tensor) -> tuple[Tensor | None, Tensor]:
        """One level of the output pyramid; returns the pyramid and the trunk."""
        if level.pyramid is None:
            return (output if level.merge is None else level.merge(h)), h
        if level.merge is not None:
            return level.pyramid(output) + level.merge(h), h
        assert output is not None
        output = (level.pyramid(output.to(h.dtype)) + h) * self.pyramid_scale
        return output, output

    def _entrance(self, x: Tensor, image: Tensor | None) -> Tensor:
        if x.ndim != self.dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected shape (B, {self.in_channels}) and {self.dims} sides, got {tuple(x.shape)}")
        step = 2 ** (self.levels - 1)
        if any(side % step for side in x.shape[2:]):
            raise ValueError(f"x: {self.levels} levels need sides divisible by {step}, got {tuple(x.shape[2:])}")
        if (image is None) != (self.cond_channels == 0):
            raise ValueError(f"image: this network takes {self.cond_channels or 'no'} conditioning channels")
        if image is not None:
            expected = (x.shape[0], self.cond_channels, *x.shape[2:])
            if image.shape != expected:
                raise ValueError(f"image: expected shape {expected}, got {tuple(image.shape)}")
            x = torch.cat([x, image.to(x.dtype)], dim=1)
        return x if self.centered else 2 * x - 1

    def _noise_level(self, t: Tensor, like: Tensor) -> Tensor:
        sigma = t if self.scales is None else self.scales(t)
        return sigma.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Level(nn.Module):
    """One resolution on the way down or up: its blocks, and what leads to the next."""

    resample: nn.Module | None
    pyramid: nn.Module | None
    merge: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.attns = nn.ModuleList()
        self.resample = self.pyramid = self.merge = None

    def run(self, h: Tensor, e: Tensor | None, skips: list[Tensor]) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h, e)
            if len(self.attns):
                h = self.attns[i](h)
            skips.append(h)
        return h


def _resample(layer: nn.Module, h: Tensor, e: Tensor | None) -> Tensor:
    y: Tensor = layer(h, e) if isinstance(layer, ResidualBlock) else layer(h)
    return y


def _frozen(fir: Taps) -> Taps:
    return tuple(tuple(row) if isinstance(row, Sequence) else row for row in fir)  # type: ignore[return-value]


def levels_at(resolutions: Sequence[int], size: int, levels: int) -> tuple[int, ...]:
    """The levels of a network built for images of `size` at which the resolution is one of `resolutions`."""
    return tuple(i for i in range(levels) if size // 2**i in resolutions)
