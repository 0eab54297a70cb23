"""Guidance by two predictions: with and without a label, or of a good and of a poor network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.model import Guided, ScoreModel, View
from scorefield.sde import Time, as_time, expand


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, with scale = 1 + w).

    s(x, t) + scale (s(x, t | label) - s(x, t)):   0 is unconditional, 1 conditional, more sharpens.

    Beyond 1 the result is no sample of p(x) p(label | x)^scale, since the powers of the noised marginals are not the
    marginals of the noised power.

    Main arguments:
        scale: strength of the guidance.
        interval: (low, high): guide only at times in between, where sigma is neither large nor small; outside of it the
            conditional prediction is used (Kynkaanniemi et al. 2024).

    Other arguments:
        null: what stands for "no condition"; numbers and 0-dimensional tensors become one entry for each sample.

    Raises:
        ValueError: an interval whose ends are not in order.
    """

    scale: float = 3.0
    interval: tuple[float, float] | None = None
    null: Mapping[str, Any] = field(default_factory=lambda: {"label": None})

    def __post_init__(self) -> None:
        _check_interval(self.interval)

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The guided model."""
        return _Extrapolated(model, None, self.scale, self.interval, self.null)


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """Guidance away from a weaker model of the same data (Karras et al. 2024b, eq. 3).

    s_weak(x, t) + scale (s(x, t) - s_weak(x, t)):   1 is the model itself.

    Main arguments:
        weak: a smaller or less trained model, under the same SDE.
        scale: strength of the guidance. interval: as in `ClassifierFree`.

    Raises:
        ValueError: an interval whose ends are not in order.
    """

    weak: ScoreModel
    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_interval(self.interval)

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The guided model."""
        return _Extrapolated(model, self.weak, self.scale, self.interval, {})


class _Extrapolated(Guided):
    """poor + scale (good - poor), in every view, since all views are affine in the score with the same x part."""

    def __init__(
        self,
        good: ScoreModel,
        poor: ScoreModel | None,
        scale: float,
        interval: tuple[float, float] | None,
        null: Mapping[str, Any],
    ) -> None:
        super().__init__(good)
        self.poor, self.scale, self.interval, self.null = poor, scale, interval, null
        self.batch = good.batch if poor is None or good.batch is not None else poor.batch

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        def good() -> Tensor:
            return self.base.view(name, x, t, cond)

        def poor() -> Tensor:
            other = cond | {k: _fill(v, x) for k, v in self.null.items()}
            return (self.poor or self.base).view(name, x, t, other)

        excess = self._excess(t, x)
        if _everywhere(excess, 0.0):
            return good()
        if _everywhere(excess, -1.0):
            return poor()
        best = good()
        # Written from the good one, so that it comes out bitwise outside the interval.
        return best + expand(excess, x) * (best - poor())

    def _excess(self, t: Time, x: Tensor) -> Tensor:
        """scale - 1 where guidance is on, 0 elsewhere."""
        time = as_time(t)
        on = torch.full_like(time, self.scale - 1)
        if self.interval is None:
            return on
        low, high = self.interval
        return torch.where((time >= low) & (time <= high), on, torch.zeros_like(on))

    def rows(self, index: Tensor) -> ScoreModel:
        poor = None if self.poor is None else self.poor.rows(index)
        return _Extrapolated(self.base.rows(index), poor, self.scale, self.interval, self.null)


def _everywhere(value: Tensor, target: float) -> bool:
    return not value.is_meta and bool((value == target).all())


def _fill(value: Any, x: Tensor) -> Any:
    if isinstance(value, int | float):
        value = torch.tensor(value)
    if isinstance(value, Tensor):
        value = value.to(x.device)
        return value.expand(x.shape[0]) if value.ndim == 0 else value
    return value


def _check_interval(interval: tuple[float, float] | None) -> None:
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"interval={interval}: give (low, high) times with low < high")
