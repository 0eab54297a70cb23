"""How a flow map is learned: consistency training and distillation, their continuous limit, and average velocities."""

from scorefield.consistency.average import meanflow_loss, shortcut_loss
from scorefield.consistency.losses import consistency_loss
from scorefield.consistency.pairs import Curriculum, Easy, Karras, Pairs, Progressive, weigh
from scorefield.consistency.staged import Staged
from scorefield.consistency.trig import scm_loss

__all__ = [
    "Curriculum",
    "Easy",
    "Karras",
    "Pairs",
    "Progressive",
    "Staged",
    "consistency_loss",
    "meanflow_loss",
    "scm_loss",
    "shortcut_loss",
    "weigh",
]
