"""Objects as JSON and back, for a closed set of classes: reading a description never runs code of a stranger."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn

from scorefield.discrete.model import JumpModel
from scorefield.discrete.process import JumpProcess
from scorefield.errors import CheckpointError, InputError
from scorefield.flowmap import FlowMap
from scorefield.model import ScoreModel
from scorefield.sde import SDE, GaussianSDE

ROOMS = ("sdes", "reflected", "nn", "ladder", "times", "training.config", "discrete", "data.states", "data.spectra")
"""Where the classes of the closed set are: what these export, and nothing else, is made from a description."""


def to_json(value: Any) -> Any:
    """JSON for a value: numbers, strings, lists, and objects of the classes above as {"class", "arguments"}.

    An object of any other class becomes {"custom": its name}, which `from_json` leaves to the caller.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    cls = type(value)
    if cls.__module__.startswith("scorefield.") and _find(cls.__name__) is cls:
        arguments = getattr(value, "config", None)
        if arguments is None and is_dataclass(value):
            arguments = {f.name: getattr(value, f.name) for f in fields(value)}
        if arguments is not None:
            return {"class": cls.__name__, "arguments": to_json(arguments)}
    name = getattr(value, "__qualname__", cls.__qualname__)
    return {"custom": f"{getattr(value, '__module__', cls.__module__)}.{name}"}


def from_json(value: Any) -> Any:
    """The value of which `to_json` made the JSON.

    Raises:
        CheckpointError: a class outside the closed set, or arguments that it does not take.
    """
    if isinstance(value, list):
        return tuple(from_json(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "custom" in value:
        raise CheckpointError(f"{value['custom']} is not a part of scorefield")
    if "class" not in value:
        return {k: from_json(v) for k, v in value.items()}
    name = value["class"]
    kind = _find(name)
    if kind is None:
        raise CheckpointError(f"class {name!r} is unknown to this version of scorefield; update it")
    try:
        return kind(**from_json(value.get("arguments")))
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError, AssertionError) as error:
        fault = " ".join(str(error).split())[:200]
        raise CheckpointError(f"arguments of {name} do not fit this version of scorefield: {fault}") from error


def _find(name: Any) -> type | None:
    """The class of that name in one of the rooms; None for anything else."""
    if not isinstance(name, str) or name.startswith("_"):
        return None
    for room in ROOMS:
        found = getattr(importlib.import_module(f"scorefield.{room}"), name, None)
        if isinstance(found, type) and found.__module__.startswith("scorefield."):
            return found
    return None


def bare(model: ScoreModel) -> ScoreModel:
    """The same model, its weights shared, without the wrapper that `torch.compile` puts around a network."""
    inner = getattr(model.net, "_orig_mod", None)
    if not isinstance(inner, nn.Module):
        return model
    twin = copy.copy(model)
    twin._modules = {**model._modules, "net": inner}
    return twin


def describe_model(model: ScoreModel) -> dict[str, Any]:
    """JSON from which `build_model` makes the model again, with fresh weights."""
    model = bare(model)
    if isinstance(model, FlowMap):
        inner = model.source
        own = {"net": to_json(model.net), "sde": to_json(model.sde), "clock": to_json(model.clock), "predict": "data"}
        described = own if inner is None else describe_model(inner)
        rest = {"sigma_data": model.sigma_data, "shape": None if model.shape is None else list(model.shape)}
        return described | rest | {"map": {"kind": model.kind, "end": model.end, "wrapped": inner is not None}}
    parts = {name: to_json(getattr(model, name)) for name in ("net", "sde", "clock")}
    shape = None if model.shape is None else list(model.shape)
    return parts | {"predict": model.predict, "sigma_data": model.sigma_data, "shape": shape}


def _check(parts: Mapping[str, Any], shape: Any) -> None:
    if not callable(parts["net"]) or not isinstance(parts["sde"], SDE | JumpProcess):
        raise TypeError("its net is no network or its sde no SDE")
    if isinstance(parts["sde"], JumpProcess):
        parts["sde"].between(0.0, parts["sde"].T)  # a schedule that is none fails here
    if shape is not None and not all(type(n) is int and n > 0 for n in shape):
        raise TypeError(f"shape {shape}")


def build_model(
    description: Mapping[str, Any],
    *,
    net: nn.Module | None = None,
    sde: GaussianSDE | None = None,
    clock: Any = None,
    where: str = "the run",
) -> ScoreModel:
    """The model of a description; parts that scorefield does not own must be given, others may be.

    Raises:
        CheckpointError: a needed part is not given, or the description is not one.
    """
    given = {"net": net, "sde": sde, "clock": clock}
    try:
        for part, value in given.items():
            described = description[part]
            if value is None and isinstance(described, Mapping) and "custom" in described:
                raise InputError(f"{where} has a {part} of its own ({described['custom']}); load it with {part}=")
        parts = {part: from_json(description[part]) if value is None else value for part, value in given.items()}
        shape = description["shape"]
        _check(parts, shape)
        if isinstance(parts["sde"], JumpProcess):
            predict: Any = description["predict"]
            return JumpModel(parts["net"], parts["sde"], shape, predict=predict, clock=parts["clock"])
        settings: dict[str, Any] = {"shape": shape, "sigma_data": description["sigma_data"]}
        jumps = description.get("map")
        if jumps and not jumps["wrapped"]:
            found = FlowMap(parts["net"], parts["sde"], jumps["kind"], end=float(jumps["end"]), **settings)
            found.clock = parts["clock"]
            return found
        made = ScoreModel(parts["net"], parts["sde"], description["predict"], clock=parts["clock"], **settings)
        return made if not jumps else FlowMap.from_model(made, end=float(jumps["end"]), **settings)
    except (CheckpointError, InputError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the model of {where} is not described completely ({error}); train it again") from error
