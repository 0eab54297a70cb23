"""Guidance by two predictions: with and without a label, or of a good and of a poor network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, expand
from scorefield.model import Guided, ScoreModel
from scorefield.views import View


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
        ValueError: an interval whose ends are not in order, or a scale that is not finite; when called, a condition named
            by `null` that was not given.
    """

    scale: float = 3.0
    interval: tuple[float, float] | None = None
    null: Mapping[str, Any] = field(default_factory=lambda: {"label": None})

    def __post_init__(self) -> None:
        check_strength(self.scale, self.interval)

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The guided model."""
        return _Extrapolated(model, self)

    def poor(self, model: ScoreModel, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of the model without its condition."""
        missing = [word for word in self.null if word not in cond]
        if missing:
            given = ", ".join(cond) or "no condition"
            raise ValueError(
                f"ClassifierFree: the condition {missing[0]}= was not given, but {given}; give it to the sampler, or name the "
                "network's own in null={name: value}"
            )
        return model.view(name, x, t, cond | {word: _fill(value, x) for word, value in self.null.items()})


@dataclass(frozen=True, eq=False)
class Autoguidance:
    """Guidance away from a weaker model of the same data (Karras et al. 2024b, eq. 3).

    s_weak(x, t) + scale (s(x, t) - s_weak(x, t)):   1 is the model itself.

    Main arguments:
        weak: a smaller or less trained model, under the same SDE.
        scale: strength of the guidance. interval: as in `ClassifierFree`.

    Raises:
        ValueError: an interval whose ends are not in order, a scale that is not finite, or a weak model under another SDE.
    """

    weak: ScoreModel
    scale: float = 2.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_strength(self.scale, self.interval)

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The guided model."""
        check_same_process(model, self.weak)
        return _Extrapolated(model, self)

    def poor(self, model: ScoreModel, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of the weaker model."""
        return self.weak.view(name, x, t, cond)


class _Extrapolated(Guided):
    """poor + scale (good - poor), in every view, since all views are affine in the score with the same x part."""

    guidance: ClassifierFree | Autoguidance

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        excess = self._excess(t, x)
        if _everywhere(excess, -1.0):
            return self.guidance.poor(self.base, name, x, t, cond)
        best = self.base.view(name, x, t, cond)
        if _everywhere(excess, 0.0):
            return best
        # Written from the good one, so that it comes out bitwise outside the interval.
        return best + expand(excess, x) * (best - self.guidance.poor(self.base, name, x, t, cond))

    def _excess(self, t: Time, x: Tensor) -> Tensor:
        """scale - 1 where guidance is on, 0 elsewhere."""
        time = as_time(t)
        on = torch.full_like(time, self.guidance.scale - 1)
        if self.guidance.interval is None:
            return on
        low, high = self.guidance.interval
        return torch.where((time >= low) & (time <= high), on, torch.zeros_like(on))


def _everywhere(value: Tensor, target: float) -> bool:
    return not value.is_meta and bool((value == target).all())


def _fill(value: Any, x: Tensor) -> Any:
    if isinstance(value, int | float):
        value = torch.tensor(value, device="cpu")
    if isinstance(value, Tensor):
        value = value.to(x.device)
        return value.expand(x.shape[0]) if value.ndim == 0 else value
    return value


def check_strength(scale: float, interval: tuple[float, float] | None = None) -> None:
    """Refuse a scale that is no number, and an interval of times whose ends are not in order."""
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: the strength of guidance is a finite number")
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"interval={interval}: give (low, high) times with low < high")


def check_same_process(model: ScoreModel, other: ScoreModel) -> None:
    """Refuse two models that do not mean the same by x at time t."""
    a, b = model.sde, other.sde
    t = torch.linspace(0.01, 1, 12, dtype=torch.float64, device="cpu") * a.T
    same = a is b or (a.T == b.T and torch.allclose(a.alpha(t), b.alpha(t)) and torch.allclose(a.sigma(t), b.sigma(t)))
    if not same:
        raise ValueError(f"weak: its SDE is {b}, the model's {a}; both must be the same for one x to serve both")
    if None not in (model.shape, other.shape) and model.shape != other.shape:
        raise ValueError(f"weak: its event shape is {other.shape}, the model's {model.shape}")
