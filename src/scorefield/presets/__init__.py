"""Every configuration of the paper as a typed value, under its official name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorefield.errors import InputError, closest
from scorefield.presets.guided import Guided
from scorefield.presets.official import read_json
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
    "Guided",
    "NCSNpp",
    "Network",
    "Optim",
    "Preset",
    "RefineNet",
    "Sampling",
    "Training",
    "get",
    "names",
    "read",
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


def read(config: Preset | Mapping[str, Any] | str | Path) -> Preset:
    """The configuration that is meant: a preset, its official name, a JSON file, or nested mappings as in the official code.

    Mappings may be an ml_collections ConfigDict, and may lie under the key "config".

    Raises:
        InputError: the name is unknown, or the file is not one.
        ValueError: the configuration is not an official one; the message names the field.
    """
    if isinstance(config, Preset):
        return config
    if isinstance(config, str | Path):
        if not str(config).endswith(".json"):
            return get(str(config))
        try:
            return read(read_json(config))
        except ValueError as error:
            known = isinstance(error, InputError)
            raise (
                error if known else InputError(f"cannot read {config} as an official configuration: {error}")
            ) from error
    plain = _mapping(config.to_dict() if hasattr(config, "to_dict") else config)
    inner = plain.get("config")
    return Preset.from_official(inner if isinstance(inner, Mapping) and "model" not in plain else plain)


def _mapping(config: object) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise ValueError(f"expected sections data, model and training, got {type(config).__name__}")
    return config
