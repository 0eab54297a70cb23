"""When a loss counts as diverged, and how that is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from scorefield.dtypes import exact, onto, wide
from scorefield.sde import GaussianSDE
from scorefield.training.config import TrainConfig

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
        planned: steps in all, where the clock has decided; 0 before.
    """

    step: int = 0
    skipped: int = 0
    rollbacks: int = 0
    running_loss: float = 0.0
    losses: int = 0
    seconds: float = 0.0
    planned: int = 0

    def __post_init__(self) -> None:
        self._mark = monotonic()

    def tick(self) -> float:
        """Take in the time since the last tick, which is returned."""
        now = monotonic()
        passed, self._mark = now - self._mark, now
        self.seconds += passed
        return passed

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


def fault(
    at: Progress,
    config: TrainConfig,
    each: Tensor,
    t: Tensor,
    loss: float,
    norm: float,
    sde: GaussianSDE,
    accelerator: Any,
) -> str | None:
    """What is wrong with a step and at which noise level, from its losses (b,) at times t, and its gradient's norm."""
    exploded = at.exploded(loss, config.explosion)
    # With fp16 the scaler finds steps whose gradient overflowed and leaves them out by itself.
    steep = not math.isfinite(norm) and config.precision != "fp16"
    if not exploded and math.isfinite(loss) and not steep:
        return None
    each = wide(each.detach())
    if accelerator.num_processes > 1:
        each, t = accelerator.gather(each), accelerator.gather(onto(t, each))
    each, t = exact(each), exact(t)
    bad = ~torch.isfinite(each)
    worst = int(bad.nonzero()[0]) if bool(bad.any()) else int(each.argmax())
    time = float(t[worst])
    if bool(bad.any()) or not math.isfinite(loss):
        what, where = f"the loss is {loss}", "first"
    elif exploded:
        what, where = f"the loss has exploded to {loss:.3g}", "most"
    else:
        what, where = "the gradient is not finite", "the largest loss"
    return f"{what}, {where} at noise level sigma={float(sde.sigma(time)):.3g} (t={time:.3g})"
