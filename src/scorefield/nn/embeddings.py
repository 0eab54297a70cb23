"""What a network knows about time: sinusoids of a label, or random Fourier features of the log of a noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.dtypes import full_precision, wide
from scorefield.inputs import positive
from scorefield.nn.initial import fan_avg_uniform_


def _at_least_float32(t: Tensor) -> Tensor:
    """Phases reach thousands of radians, which half precision cannot hold; float64 is kept when it is given."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


PERIOD = 10_000.0
"""Of the slowest of the sinusoids of labels, over 2 pi."""


def positional_features(t: Tensor, features: int) -> Tensor:
    """Sinusoids of t at geometric frequencies from 1 to 1 / `PERIOD` (Vaswani et al. 2017, as laid out in DDPM).

    Main arguments:
        t: labels, shape (B,), usually in [0, 999].
        features: the width of the result; an odd width ends in one column of zeros.

    Returns shape (B, features): sines first, then cosines.
    """
    phase = _phases(t, features, max(features // 2 - 1, 1))
    return nn.functional.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, features % 2))


def cosine_features(t: Tensor, features: int) -> Tensor:
    """Sinusoids as guided diffusion and DiT lay them out: cosines first, frequencies from 1 down to short of 1 / `PERIOD`."""
    phase = _phases(t, features, features // 2)
    return nn.functional.pad(torch.cat([phase.cos(), phase.sin()], dim=1), (0, features % 2))


def _phases(t: Tensor, features: int, last: int) -> Tensor:
    """t times frequencies, (B, features // 2), of which the one of that index would be 1 / `PERIOD`."""
    t = _at_least_float32(t)
    index = torch.arange(features // 2, dtype=t.dtype, device=t.device)
    return torch.outer(t, torch.exp(index * (-math.log(PERIOD) / last)))


class FourierFeatures(nn.Module):
    """Random Fourier features [sin(2 pi W u), cos(2 pi W u)] of u = log(noise level), W ~ N(0, scale^2) fixed.

    Takes noise levels of shape (B,), all positive, and returns (B, 2 * features). Song et al. 2021, appendix C.
    """

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierFeatures:
        # A cast of the whole network to half precision would move the phases by radians: the frequencies keep theirs.
        exact = self.weight.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype not in (torch.float32, torch.float64):
            self.weight.data = exact.to(self.weight.device)
        return self

    def forward(self, level: Tensor) -> Tensor:
        u = torch.log(_at_least_float32(level))
        phase = torch.outer(u, self.weight.to(u.dtype)) * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class PositionalFeatures(nn.Module):
    """`positional_features` of `scale * t`, with the official rounding of neither: labels may be fractional."""

    def __init__(self, features: int, scale: float = 1.0) -> None:
        super().__init__()
        positive(time_scale=scale)
        self.features = features
        self.scale = scale

    def forward(self, t: Tensor) -> Tensor:
        return positional_features(_at_least_float32(t) * self.scale, self.features)


@dataclass(frozen=True)
class NoiseScales:
    """The geometric noise levels of SMLD, from the largest (label 0) to the smallest (label num_scales - 1).

    sigma_i = sigma_max (sigma_min / sigma_max)^(i / (num_scales - 1)). Takes labels of shape (B,), returns float64
    (float32 on a device other than the CPU).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000

    def __call__(self, label: Tensor) -> Tensor:
        index = wide(label.long())  # a fractional label belongs to the level it has reached
        ratio = math.log(self.sigma_min / self.sigma_max) / max(self.num_scales - 1, 1)
        return self.sigma_max * torch.exp(index * ratio)


class Conditioning(nn.Module):
    """One vector per sample from the time and, if there are classes, the class label: two dense layers and a sum.

    The null label (None for the whole batch, or any negative entry) adds nothing, so a network asked without a label is
    the same network built without classes.
    """

    def __init__(self, features: nn.Module | None, width: int, out: int, num_classes: int = 0, act: Any = None) -> None:
        super().__init__()
        self.out = out
        self.features = features
        self.act = act if act is not None else nn.SiLU()
        if features is not None:
            self.dense1 = nn.Linear(width, out)
            self.dense2 = nn.Linear(out, out)
            for dense in (self.dense1, self.dense2):
                fan_avg_uniform_(dense.weight)
                nn.init.zeros_(dense.bias)
        self.num_classes = num_classes
        self.classes = nn.Embedding(num_classes, out) if num_classes else None

    def forward(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """t: (B,); label: integers of shape (B,) or (). Returns (B, out), already through the non-linearity."""
        e: Tensor | None = None
        if self.features is not None:
            with full_precision(t.device):
                e = self.dense2(self.act(self.dense1(self.features(t).to(self.dense1.weight.dtype))))
        if self.classes is None:
            if label is not None:
                raise ValueError("label: this network was built without classes; pass num_classes when building it")
        elif label is not None:
            if label.is_floating_point() or label.shape not in ((), t.shape):
                raise ValueError(
                    f"label: expected integers of shape {tuple(t.shape)}, got {tuple(label.shape)} {label.dtype}"
                )
            label = label.expand(t.shape)
            known = (label >= 0).unsqueeze(1)
            c = self.classes(label.clamp(min=0)) * known
            e = c if e is None else e + c
        if e is None:
            e = t.new_zeros(t.shape[0], self.out, dtype=self.classes.weight.dtype if self.classes is not None else None)
        return self.act(e)  # type: ignore[no-any-return]
