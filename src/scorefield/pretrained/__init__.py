"""Models from elsewhere: official configurations and checkpoints, diffusers folders, and how they name their weights."""

from scorefield.pretrained.diffusers import Autoencoder, DiffusersNet, autoencoder, from_diffusers, scheduler_grid
from scorefield.pretrained.diffusers_folders import load_diffusers, save_diffusers
from scorefield.pretrained.guided import guided_model, load_guided
from scorefield.pretrained.load import (
    OfficialCheckpoint,
    load_checkpoint,
    load_weights,
    official_model,
    read_checkpoint,
)

__all__ = [
    "Autoencoder",
    "DiffusersNet",
    "OfficialCheckpoint",
    "autoencoder",
    "from_diffusers",
    "guided_model",
    "load_checkpoint",
    "load_diffusers",
    "load_guided",
    "load_weights",
    "official_model",
    "read_checkpoint",
    "save_diffusers",
    "scheduler_grid",
]
