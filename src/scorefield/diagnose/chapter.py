"""What a chapter of a diagnosis is: one question to a model, with a verdict and an advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from scorefield.evaluation.metrics import Estimate
from scorefield.model import ScoreModel
from scorefield.report import Points

Verdict = Literal["good", "watch", "act"]
ITEMS, LARGE_ITEMS, TRAINING = 1000, 160, 4000
"""Held-out items that are looked at, at most; those of many entries; and items of training, which samples are compared with."""
FEWEST = 16
"""Items below which no figure has an error that could be told."""
SMALL = 64
"""Entries up to which thousands of samples cost nothing."""
SHOWN = 0.05
"""Standard error of a figure near 1 from which its point is not drawn: it would be chance."""
SURE = 4.0
"""Standard errors that a figure must be away from where it should be, before anything is said."""


@dataclass(frozen=True)
class Chapter:
    """One question to a model.

    Attributes:
        name, title: as `only` takes it, and in words.
        verdict: "good", "watch" or "act". found: what, in one sentence. advice: what to do; "" where nothing is.
        threshold: when the verdict changes. figures: the numbers.
        lines, labels, log_y: a figure of named curves, what its axes are, and whether the upward one is logarithmic.
    """

    name: str
    title: str
    verdict: Verdict
    found: str
    advice: str
    threshold: str
    figures: Mapping[str, Any]
    lines: Mapping[str, Points] = field(default_factory=dict)
    labels: tuple[str, str] = ("", "")
    log_y: bool = False


@dataclass(frozen=True)
class Case:
    """What is asked about: a model, items it has not seen and has, how many samples to draw, other averages of its run."""

    model: ScoreModel
    data: Tensor | None
    train: Tensor | None
    n: int
    seed: int
    others: Mapping[str, Callable[[], ScoreModel]] | None = None


def judge(size: float, watch: float, act: float, sure: bool = True) -> Verdict:
    """The verdict on a size by its two thresholds; "good" where it may be chance."""
    if not sure or size < watch:
        return "good"
    return "act" if size >= act else "watch"


def pair(e: Estimate) -> tuple[float, float]:
    """A figure and its standard error, as pages and JSON keep them."""
    return e.value, e.stderr
