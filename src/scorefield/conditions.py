"""What is passed to the network beside x and t: which of it belongs to single samples, and what the network takes at all.

A tensor, array or list with as many rows as there are samples, also inside dicts, lists and tuples, goes with the samples.
Where samples are to be separated (parts of a batch, adaptive steps) and such a value could as well be shared by all of them,
the network decides: what it takes whole for a single sample is shared.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.errors import ScorefieldWarning
from scorefield.model import ScoreModel
from scorefield.rows import take

Where: TypeAlias = "tuple[object, ...]"
"""The keys that lead to a value in nested conditions."""


def split(cond: Mapping[str, Any], index: Tensor, own: frozenset[Where]) -> dict[str, Any]:
    """The conditions of some of the samples; `own` are the places of the values that have a row for each."""
    return {k: _walk(v, (k,), lambda at, v: _rows(v, index) if at in own else v) for k, v in cond.items()}


def with_rows(cond: Mapping[str, Any], n: int) -> frozenset[Where]:
    """The places of the values with n rows."""
    found: list[Where] = []

    def look(at: Where, value: Any) -> Any:
        if _count(value) == n:
            found.append(at)
        return value

    for k, v in cond.items():
        _walk(v, (k,), look)
    return frozenset(found)


def per_sample(model: ScoreModel, cond: Mapping[str, Any], x: Tensor, n: int) -> frozenset[Where]:
    """The places of the values that belong to single samples of n; x (1, *) is a state to try the network with, at T."""
    own = with_rows(cond, n)
    if n == 1 or not own:
        return own
    first = torch.zeros(1, dtype=torch.long, device="cpu")
    single = take(model, first, x.ndim)
    shared = {at for at in own if _runs(single, x, split(cond, first, own - {at}))}
    return own - shared


def complete(model: ScoreModel, cond: dict[str, Any], n: int) -> dict[str, Any]:
    """Conditions as they are passed on: one class number is that of all samples.

    Raises:
        ValueError: a name that neither the function nor the network knows.
    """
    for name in cond:
        if not _takes(model, name):
            known = [*_KEYWORDS, *_names(model)]
            near = _SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"{name}= is no argument here, and the network takes no condition of that name{hint}")
    label = cond.get("label")
    if isinstance(label, int | np.integer) and not isinstance(label, bool):
        cond = cond | {"label": torch.full((n,), int(label), device=model.device)}
    return cond


def warn_of_dropout(model: nn.Module) -> None:
    """Say that a model is in train mode, where that makes a difference."""
    for part in model.modules():
        if part.training and isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0:
            text = "the model is in train mode, so dropout changes what it says; call model.eval() first"
            warnings.warn(text, ScorefieldWarning, stacklevel=3)
            return


_KEYWORDS = (
    *(
        "steps",
        "grid",
        "shape",
        "seed",
        "noise",
        "x_init",
        "t_start",
        "t_min",
        "t_end",
        "denoise",
        "prior",
        "hooks",
        "full",
    ),
    *("progress", "batch_size", "grad", "pilots", "solver"),
)
_SYNONYMS = {
    "num_steps": "steps",
    "n_steps": "steps",
    "num_inference_steps": "steps",
    "NFE": "steps",
    "generator": "seed",
    "init": "x_init",
    "latents": "x_init",
    "labels": "label",
    "class_labels": "label",
    "y": "label",
    "sampler": "solver",
    "eps": "t_min",
    "samples": "n",
    "num_samples": "n",
    "n_samples": "n",
    "probe": "probes",
    "n_probes": "probes",
    "tolerance": "solver, such as sf.Dopri5(1e-3, 1e-3)",
    "tol": "solver, such as sf.Dopri5(1e-3, 1e-3)",
    "rtol": "solver, such as sf.Dopri5(1e-3, 1e-3)",
    "atol": "solver, such as sf.Dopri5(1e-3, 1e-3)",
}


def _takes(model: ScoreModel, name: str) -> bool:
    if isinstance(model.net, ScoreModel):
        return _takes(model.net, name)
    names = _names(model)
    return "**" in names or name in names


def _own_views(model: ScoreModel) -> bool:
    """Whether a class has views of its own, which may take what its network does not."""
    return type(model).view is not ScoreModel.view and not isinstance(model.net, nn.Identity)


def _names(model: ScoreModel) -> list[str]:
    """Names of the conditions that the network takes; "**" where it takes any, or does not say."""
    if isinstance(model.net, ScoreModel):
        return _names(model.net)
    if getattr(model, "given", None) is not None:  # the exact model of pairs, which has no network
        return ["given"]
    if _own_views(model):
        return ["**"]
    try:
        call = model.net.forward if isinstance(model.net, nn.Module) else model.net
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return ["**"]
    kinds = inspect.Parameter
    if any(p.kind == kinds.VAR_KEYWORD for p in parameters):
        return ["**"]
    rest = parameters[2:]  # after x and t
    return [p.name for p in rest if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]


@torch.no_grad()
def _runs(model: ScoreModel, x: Tensor, cond: dict[str, Any]) -> bool:
    try:
        model.denoise(x, model.sde.T, **cond)
    except (torch.OutOfMemoryError, MemoryError):  # says nothing of what the network takes
        raise
    except Exception:
        return False
    return True


def _walk(value: Any, at: Where, act: Callable[[Where, Any], Any]) -> Any:
    """The same nest with every value replaced by what `act` makes of it."""
    if isinstance(value, dict):
        return {k: _walk(v, (*at, k), act) for k, v in value.items()}
    if isinstance(value, list | tuple) and not _plain(value):
        parts = [_walk(v, (*at, i), act) for i, v in enumerate(value)]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return act(at, value)


def _plain(value: Sequence[Any]) -> bool:
    """Whether a list is one of numbers or words, one for each sample perhaps."""
    return all(isinstance(v, str | int | float | np.number) for v in value)


def _count(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray):
        return int(value.shape[0]) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None


def _rows(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    if isinstance(value, np.ndarray):
        return value[index.numpy()]
    return type(value)(value[i] for i in index.tolist())
