"""Every configuration of the paper as a typed value, under its official name."""

from __future__ import annotations

from scorefield.errors import InputError, closest
from scorefield.presets.paper import PRESETS
from scorefield.presets.schema import (
    DDPM,
    Data,
    Evaluation,
    NCSNpp,
    Network,
    Optim,
    Preset,
    RefineNet,
    Sampling,
    Training,
)

__all__ = [
    "DDPM",
    "Data",
    "Evaluation",
    "NCSNpp",
    "Network",
    "Optim",
    "Preset",
    "RefineNet",
    "Sampling",
    "Training",
    "get",
    "names",
]


def names() -> list[str]:
    """The official names, sorted."""
    return sorted(PRESETS)


def get(name: str) -> Preset:
    """The configuration of this name.

    Raises:
        InputError: there is none; the message names a near one.
    """
    if name not in PRESETS:
        raise InputError(f"preset {name!r} is unknown{closest(name, PRESETS)}")
    return PRESETS[name]
