"""A known error of the score, for experiments on what an error does to the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorefield.coefficients import Time, batch_time
from scorefield.model import Guided, ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.views import View, convert


@dataclass(frozen=True, eq=False)
class ScoreError:
    """Adds error(x, t), like x, to the score of a model; every view follows.

    Main arguments:
        error: a function of the state (B, *) and the time, a float64 tensor of shape () or (B,).
    """

    error: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The model with the error."""
        return _Wrong(model, self)


class _Wrong(Guided):
    guidance: ScoreError

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from the wrong score."""
        time = batch_time(t, x)
        score = self.base.view("score", x, t, cond) + self.guidance.error(x, time).to(x)
        if name == "score":
            return score
        if not isinstance(self.sde, GaussianSDE):
            return self.sde.velocity(x, time, score)
        return convert(name, "score", score, x, t, self.sde)
