"""When a loss counts as diverged, and how that is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.sde import GaussianSDE

STEADY = 100
"""Losses that the running mean must have seen before it can tell an explosion."""


@dataclass
class Progress:
    """What a run has come to besides its weights and averages; a part of every checkpoint.

    Attributes:
        step: optimiser steps done.
        skipped: batches left out by rollbacks: step k takes batch k + skipped.
        rollbacks: their number.
        running_loss: mean of the loss over about the last 100 steps, of `losses` in all.
        seconds: time spent, over all attempts.
    """

    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    running_loss: float = 0.0
    losses: int = 0
    seconds: float = 0.0

    @property
    def batch(self) -> int:
        """The number of the next batch."""
        return self.step + self.skipped

    def take(self, loss: float) -> None:
        """Count a step with its loss."""
        self.step += 1
        self.losses += 1
        self.running_loss += (loss - self.running_loss) * max(1 / self.losses, 1 / STEADY)

    def exploded(self, loss: float, factor: float) -> bool:
        """Whether a loss is `factor` times the running one; never for factor 0."""
        return factor > 0 and self.losses >= STEADY and loss > factor * self.running_loss


class Divergence(Exception):
    """A loss or gradient that is not finite, or a loss that has exploded; carries the line that tells it."""


def describe(each: Tensor, t: Tensor, value: float, exploded: bool, sde: GaussianSDE, accelerator: Any) -> str:
    """What happened, at which noise level."""
    each, t = each.detach().double(), t.double()
    if accelerator.num_processes > 1:
        each, t = accelerator.gather(each), accelerator.gather(t)
    bad = ~torch.isfinite(each)
    worst = int(bad.nonzero()[0]) if bool(bad.any()) else int(each.argmax())
    time = float(t[worst])
    if bool(bad.any()) or not math.isfinite(value):
        what, where = f"the loss is {value}", "first"
    elif exploded:
        what, where = f"the loss has exploded to {value:.3g}", "most"
    else:
        what, where = "the gradient is not finite", "the largest loss"
    return f"{what}, {where} at noise level sigma={float(sde.sigma(time)):.3g} (t={time:.3g})"
