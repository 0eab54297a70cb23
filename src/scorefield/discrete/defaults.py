"""What goes with a jump model unless something else is asked for: its solver, its loss, and how it is guided."""

from __future__ import annotations

from typing import Any

from scorefield.discrete.guide import guided_jump
from scorefield.discrete.model import JumpModel
from scorefield.discrete.objective import masked_loss, ratio_matching, score_entropy
from scorefield.discrete.solve import Ancestral, Tweedie


def own_solver(model: JumpModel) -> Any:
    """`Ancestral` where there is a mask, else `Tweedie`."""
    return Tweedie() if model.process.mask is None else Ancestral()


def own_loss(model: JumpModel) -> Any:
    """`masked_loss` where there is a mask, `ratio_matching` for a hollow network, else `score_entropy`."""
    if model.predict in ("hollow", "marginal"):
        return ratio_matching
    return score_entropy if model.process.mask is None else masked_loss


JumpModel.habits = {"solver": own_solver, "loss": own_loss, "guided": guided_jump}
