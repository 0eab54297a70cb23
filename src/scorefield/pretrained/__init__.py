"""Models from elsewhere: official configurations and checkpoints, diffusers folders, and how they name their weights."""

from scorefield.pretrained.load import (
    OfficialCheckpoint,
    is_discrete,
    load_checkpoint,
    load_diffusers,
    load_weights,
    official_model,
    official_network,
    official_sde,
    read_checkpoint,
    save_diffusers,
)

__all__ = [
    "OfficialCheckpoint",
    "is_discrete",
    "load_checkpoint",
    "load_diffusers",
    "load_weights",
    "official_model",
    "official_network",
    "official_sde",
    "read_checkpoint",
    "save_diffusers",
]
