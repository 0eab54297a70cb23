"""Estimates of x_0 kept within the range of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.model import Guided, ScoreModel


@dataclass(frozen=True)
class Clamp:
    """Cuts E[x_0 | x] to the range of the data (Ho et al. 2020, official code): score, noise and velocity follow from it.

    Main arguments:
        low, high: ends of the range; those of the data of training where they are known, else those of the SDE.

    Raises:
        ValueError: low is not below high.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not low < high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high")

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The model of clipped estimates."""
        return _Limited(model, self)

    def limit(self, data: Tensor, low: float, high: float) -> Tensor:
        """Estimates (B, *) within the range, the SDE's being [low, high]."""
        return data.clamp(low if self.low is None else self.low, high if self.high is None else self.high)


@dataclass(frozen=True)
class Threshold:
    """Dynamic thresholding of E[x_0 | x] (Saharia et al. 2022, sec. 2.3), which keeps strong guidance from saturating.

    With s the quantile of |E[x_0 | x]| over the entries of each sample, counted from the middle of the range in units of half
    its width, and at least 1, entries are cut to [-s, s] and divided by s.

    Main arguments:
        quantile: share of the entries that stay below s; 1 scales by the largest.
        most: s is cut to it; what is beyond is clipped. Infinity is the paper's.

    Raises:
        ValueError: a quantile outside (0, 1], or most below 1.
    """

    quantile: float = 0.995
    most: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile={self.quantile}: give a share in (0, 1], such as 0.995")
        if not self.most >= 1:
            raise ValueError(f"most={self.most}: the largest factor is at least 1")

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The model of thresholded estimates."""
        return _Limited(model, self)

    def limit(self, data: Tensor, low: float, high: float) -> Tensor:
        """Estimates (B, *) within the range [low, high] of the SDE."""
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        unit = (data - middle) / half
        size = unit.abs().flatten(1)
        rank = min(size.shape[1], max(1, math.ceil(self.quantile * size.shape[1])))
        s = size.kthvalue(rank, dim=1).values.clamp(1.0, self.most).reshape(-1, *[1] * (data.ndim - 1))
        return middle + half * torch.maximum(torch.minimum(unit, s), -s) / s


class _Limited(Guided):
    guidance: Clamp | Threshold

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        low, high = self.data_range or self.sde.range
        return self.guidance.limit(self.base.denoise(x, t, **cond), low, high)
