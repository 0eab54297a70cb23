"""Models from elsewhere: official configurations and checkpoints, diffusers folders, and how they name their weights."""

from scorefield.pretrained.diffusers import load_diffusers, save_diffusers
from scorefield.pretrained.load import (
    OfficialCheckpoint,
    load_checkpoint,
    load_weights,
    official_model,
    read_checkpoint,
)

__all__ = [
    "OfficialCheckpoint",
    "load_checkpoint",
    "load_diffusers",
    "load_weights",
    "official_model",
    "read_checkpoint",
    "save_diffusers",
]
