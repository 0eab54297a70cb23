"""NCSN and NCSNv2: dilated residual stages refined from coarse to fine (Song & Ermon 2019, 2020), for images.

Both take labels of a discrete ladder of noise, 0 for the largest (`NoiseScales`), and predict the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nn.blocks import ACTIVATIONS, check_choice
from scorefield.nn.embeddings import NoiseScales
from scorefield.nn.initial import arguments

Norm = Callable[[int], nn.Module]


NORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "InstanceNorm++": (("gamma", "alpha", "beta"), ("gamma", "alpha", "beta")),
    "InstanceNorm": ((), ("gamma", "beta")),
    "VarianceNorm": (("alpha",), ("alpha",)),
    "NoneNorm": ((), ("gamma", "beta")),
    "GroupNorm": (("weight", "bias"), None),
}
"""Normalisations: what they learn for each channel, alone and for each label (None: there is no such form)."""


class Norm2d(nn.Module):
    """A normalisation of NCSN or NCSNv2; with `num_labels` each label has its own gamma, alpha, beta.

        InstanceNorm    y = gamma (x - mu) / sd + beta, over the pixels of each channel; alone it learns nothing
        InstanceNorm++  y = gamma ((x - mu) / sd + alpha (mu - mean(mu)) / std(mu)) + beta, which keeps how the channel means
                        mu differ (Song & Ermon 2019, appendix A)
        VarianceNorm    y = alpha x / sd, the mean left where it is
        NoneNorm        y = gamma x + beta; alone it does nothing
        GroupNorm       over min(channels / 4, 32) groups; not with labels

    Main arguments:
        eps: added to the variance, 1e-5 unless given.
    """

    def __init__(self, kind: str, channels: int, num_labels: int = 0, eps: float = 1e-5) -> None:
        super().__init__()
        alone, labelled = NORMS[kind]
        if num_labels and labelled is None:
            raise ValueError(f"normalization={kind!r} has no form that knows the label; NCSN needs one that has")
        self.kind, self.num_labels, self.eps = kind, num_labels, eps
        self.parts = (labelled or ()) if num_labels else alone
        self.groups = max(min(channels // 4, 32), 1)
        while channels % self.groups:
            self.groups -= 1
        table = torch.zeros(max(num_labels, 1), len(self.parts) * channels)
        scales = table[:, : channels * sum(part not in ("beta", "bias") for part in self.parts)]
        if kind in ("InstanceNorm++", "VarianceNorm"):
            scales.normal_(1.0, 0.02)
        elif kind == "GroupNorm":
            scales.fill_(1.0)
        else:
            scales.uniform_()
        self.table = nn.Parameter(table) if self.parts else None

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x: (B, C, H, W); label: integers (B,). Returns the shape of x."""
        h = self._standardized(x)
        if self.table is None:
            return h
        rows = self.table[label] if self.num_labels else self.table
        learnt = dict(zip(self.parts, rows.reshape(*rows.shape, 1, 1).chunk(len(self.parts), dim=1), strict=True))
        match self.kind:
            case "InstanceNorm++":
                mean = x.mean(dim=(2, 3), keepdim=True)
                spread = (mean - mean.mean(1, keepdim=True)) * torch.rsqrt(mean.var(1, keepdim=True) + self.eps)
                return learnt["gamma"] * (h + learnt["alpha"] * spread) + learnt["beta"]
            case "VarianceNorm":
                return learnt["alpha"] * h
            case "GroupNorm":
                return learnt["weight"] * h + learnt["bias"]
        return learnt["gamma"] * h + learnt["beta"]

    def _standardized(self, x: Tensor) -> Tensor:
        if self.kind == "GroupNorm":
            return F.group_norm(x, self.groups, eps=self.eps)
        if self.kind == "VarianceNorm":
            return x * torch.rsqrt(x.var(dim=(2, 3), keepdim=True) + self.eps)
        return x if self.kind == "NoneNorm" else F.instance_norm(x, eps=self.eps)


class Residual(nn.Module):
    """Norm, act, conv, norm, act, conv plus a shortcut; "down" halves by averaging, or dilates where dilation > 1."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, act: nn.Module, *, down: bool, dilation: int) -> None:
        super().__init__()
        middle = inputs if down else outputs

        def conv3(i: int, o: int) -> nn.Module:
            return nn.Conv2d(i, o, 3, padding=dilation, dilation=dilation)

        self.norm1, self.norm2 = norm(inputs), norm(middle)
        self.conv1 = conv3(inputs, middle)
        self.conv2 = conv3(middle, outputs)
        self.shortcut: nn.Module | None = None
        self.pool = down and dilation == 1
        if down and dilation > 1:
            self.shortcut = conv3(inputs, outputs)
        elif down or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.act = act

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, label)))
        h = self.conv2(self.act(self.norm2(h, label)))
        if self.shortcut is not None:
            # A 1x1 convolution commutes with averaging, and is four times cheaper after it.
            x = self.shortcut(F.avg_pool2d(x, 2) if self.pool else x)
        return x + F.avg_pool2d(h, 2) if self.pool else x + h


class ConvUnits(nn.Module):
    """`units` residual units of two (norm,) act, conv."""

    def __init__(self, channels: int, units: int, norm: Norm | None, act: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2 * units))
        self.norms = nn.ModuleList(
            norm(channels) for _ in range(2 * units if norm is not None else 0) if norm is not None
        )
        self.act = act

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        for i in range(0, len(self.convs), 2):
            h = x
            for j in (i, i + 1):
                h = self.convs[j](self.act(self.norms[j](h, label) if self.norms else h))
            x = x + h
        return x


class ChainedPooling(nn.Module):
    """The running sum of two rounds of (norm,) 5x5 pooling and convolution."""

    def __init__(self, channels: int, norm: Norm | None, act: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(norm(channels) for _ in range(2) if norm is not None)
        self.act = act

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        path = x = self.act(x)
        for i, conv in enumerate(self.convs):
            if self.norms:  # NCSN averages, NCSNv2 takes the maximum
                path = F.avg_pool2d(self.norms[i](path, label), 5, stride=1, padding=2)
            else:
                path = F.max_pool2d(path, 5, stride=1, padding=2)
            path = conv(path)
            x = path + x
        return x


class Fusion(nn.Module):
    """The sum of (norm,) conv of every input, each brought to the resolution of the first."""

    def __init__(self, inputs: Sequence[int], outputs: int, norm: Norm | None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(n, outputs, 3, padding=1) for n in inputs)
        self.norms = nn.ModuleList(norm(n) for n in inputs if norm is not None)

    def forward(self, xs: Sequence[Tensor], label: Tensor) -> Tensor:
        size = xs[0].shape[2:]
        total: Tensor | None = None
        for i, x in enumerate(xs):
            h = self.convs[i](self.norms[i](x, label) if self.norms else x)
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="bilinear", align_corners=True)
            total = h if total is None else total + h
        assert total is not None
        return total


class Refine(nn.Module):
    """RefineNet's block: adapt each input, fuse them where there are several, pool, refine."""

    def __init__(self, inputs: Sequence[int], outputs: int, norm: Norm | None, act: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(ConvUnits(n, 2, norm, act) for n in inputs)
        self.fuse = Fusion(inputs, outputs, norm) if len(inputs) > 1 else None
        self.pool = ChainedPooling(outputs, norm, act)
        self.output = ConvUnits(outputs, 3 if last else 1, norm, act)

    def forward(self, xs: Sequence[Tensor], label: Tensor) -> Tensor:
        hs = [adapt(x, label) for adapt, x in zip(self.adapt, xs, strict=True)]
        h = hs[0] if self.fuse is None else self.fuse(hs, label)
        return self.output(self.pool(h, label), label)  # type: ignore[no-any-return]


class _RefineNet(nn.Module):
    """Stages of two residual blocks each, (widths, dilations), and one refinement per stage from coarse to fine."""

    exact_time = True

    def __init__(
        self,
        channels: int,
        nf: int,
        stages: tuple[Sequence[int], Sequence[int]],
        *,
        num_labels: int,
        centered: bool,
        nonlinearity: str,
        normalization: str,
        last_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_choice("nonlinearity", nonlinearity, ACTIVATIONS)
        check_choice("normalization", normalization, NORMS)
        act = ACTIVATIONS[nonlinearity]()
        widths, dilations = stages

        def norm(width: int) -> nn.Module:
            return Norm2d(normalization, width, num_labels)

        refine_norm = norm if num_labels else None
        self.channels = channels
        self.centered = centered
        self.num_labels = num_labels
        self.step = 2 ** sum(d == 1 for d in dilations[1:])
        w = [nf * m for m in widths]
        self.begin = nn.Conv2d(channels, nf, 3, padding=1)
        self.stages = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(pairwise([nf, *w])):
            d = dilations[i]
            first = Residual(inputs, outputs, norm, act, down=i > 0, dilation=d)
            self.stages.append(nn.ModuleList([first, Residual(outputs, outputs, norm, act, down=False, dilation=d)]))
        self.refines = nn.ModuleList()
        coarser: int | None = None
        for i in reversed(range(len(w))):
            inputs_of = [w[i]] if coarser is None else [w[i], coarser]
            coarser = w[max(i - 1, 0)]
            self.refines.append(Refine(inputs_of, coarser, refine_norm, act, last=i == 0))
        self.norm = Norm2d(normalization, w[0], num_labels, last_eps)
        self.act = act
        self.end = nn.Conv2d(w[0], channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x: (B, channels, H, W); t: labels (B,), a fractional one taken down to the level it has reached."""
        if x.ndim != 4 or x.shape[1] != self.channels or any(side % self.step for side in x.shape[2:]):
            raise ValueError(
                f"x: expected shape (B, {self.channels}, H, W) sides divisible by {self.step}, got {tuple(x.shape)}"
            )
        label = t.long()
        h = self.begin(x if self.centered else 2 * x - 1)
        layers = []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, label)
            layers.append(h)
        y: Tensor | None = None
        for refine in self.refines:
            layer = layers.pop()
            y = refine([layer] if y is None else [layer, y], label)
        return self.end(self.act(self.norm(y, label)))  # type: ignore[no-any-return]


class NCSN(_RefineNet):
    """The network of Song & Ermon 2019: every normalisation knows the label; called as net(x, label) -> score like x.

    Main arguments:
        channels, nf: channels of the image and width at full resolution.
        num_scales: number of noise levels, hence of labels.
        centered: False for data in [0, 1], which is then mapped to [-1, 1] at the entrance.

    Other arguments:
        nonlinearity: "elu", "relu", "lrelu" or "swish".
        normalization: "InstanceNorm++", "InstanceNorm", "VarianceNorm" or "NoneNorm" (`Norm2d`), each with its label.
    """

    def __init__(
        self,
        channels: int = 3,
        nf: int = 128,
        num_scales: int = 10,
        *,
        centered: bool = False,
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
    ) -> None:
        config = arguments(locals())
        super().__init__(
            channels,
            nf,
            ((1, 2, 2, 2), (1, 1, 2, 4)),
            num_labels=num_scales,
            centered=centered,
            nonlinearity=nonlinearity,
            normalization=normalization,
        )
        self.config = config


class NCSNv2(_RefineNet):
    """The network of Song & Ermon 2020: blind to the label but for a division by its noise level.

    Main arguments:
        channels, nf: channels of the image and width at full resolution.
        size: 64, 128 or 256, the image side that the number of stages is meant for.
        scales: the noise level of each label, by which the output is divided.
        centered: False for data in [0, 1], which is then mapped to [-1, 1] at the entrance.

    Other arguments:
        nonlinearity: "elu", "relu", "lrelu" or "swish".
        normalization: "InstanceNorm++", "InstanceNorm", "VarianceNorm", "GroupNorm" or "NoneNorm" (`Norm2d`).

    Raises:
        ValueError: `size` is none of the three.
    """

    def __init__(
        self,
        channels: int = 3,
        nf: int = 128,
        size: Literal[64, 128, 256] = 64,
        scales: NoiseScales | None = None,
        *,
        centered: bool = False,
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
    ) -> None:
        config = arguments(locals())
        stages: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
            64: ((1, 2, 2, 2), (1, 1, 2, 4)),
            128: ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
            256: ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
        }
        if size not in stages:
            raise ValueError(f"size={size!r}: NCSNv2 comes in three sizes, 64, 128 and 256")
        levels = NoiseScales() if scales is None else scales
        super().__init__(
            channels,
            nf,
            stages[size],
            num_labels=0,
            centered=centered,
            nonlinearity=nonlinearity,
            normalization=normalization,
            # The official code hands the number of labels to the last normalisation, where plain instance norm reads it so.
            last_eps=float(levels.num_scales) if normalization == "InstanceNorm" else 1e-5,
        )
        self.config = config
        self.scales = levels

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = super().forward(x, t)
        return y / self.scales(t).to(y.dtype).reshape(-1, 1, 1, 1)
