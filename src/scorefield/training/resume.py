"""Whether a folder holds the run that is being asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scorefield.data.dataset import Dataset
from scorefield.errors import CheckpointError
from scorefield.model import ScoreModel
from scorefield.training.config import MAY_CHANGE, TrainConfig
from scorefield.training.describe import describe_model, encode
from scorefield.training.run import RunInfo

REMEDY = "choose another --out, or use the same"


def check_same_run(info: RunInfo, model: ScoreModel, data: Dataset, config: TrainConfig) -> bool:
    """Compare a folder with what is about to be trained into it; returns whether run.json must be written again.

    Raises:
        CheckpointError: model, data, or a field of the configuration that decides the outcome differs.
    """
    for part, value in _as_json(describe_model(model)).items():
        before = info.model.get(part)
        if value != before:
            raise CheckpointError(
                f"{info.path} was trained with another {part} ({_short(before)}, now {_short(value)}); {REMEDY}"
            )
    if info.data["fingerprint"] != data.fingerprint():
        raise CheckpointError(
            f"{info.path} was trained on other data ({info.data['name']}, {info.data['size']} items; now {data.name}, "
            f"{data.size} items); {REMEDY}"
        )
    # A field that an earlier version did not have stands at its default, which does what that version did.
    fresh = _as_json(encode(TrainConfig()))["arguments"]
    old, new = fresh | info.config["arguments"], _as_json(encode(config))["arguments"]
    for name, before, now in _differences(old, new):
        if name not in MAY_CHANGE:
            raise CheckpointError(f"{info.path} was trained with {name}={_short(before)}, not {_short(now)}; {REMEDY}")
    if old["steps"] != new["steps"] and config.optim.schedule != "constant":
        raise CheckpointError(
            f"{info.path} has a {config.optim.schedule} schedule that ends at steps={old['steps']}, not {new['steps']}; "
            f"{REMEDY}"
        )
    return bool(old != new)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name == "optim" and before and now:
            yield from _differences(before["arguments"], now["arguments"], "optim.")
        else:
            yield prefix + name, before, now


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
