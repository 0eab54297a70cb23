"""The folder of a run: what it was trained on and with, and its weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scorefield.bundled import run_folder
from scorefield.data.dataset import Dataset, Range
from scorefield.data.scale import Scale
from scorefield.errors import CheckpointError, ScorefieldWarning, cannot_read
from scorefield.files import atomic_file
from scorefield.model import ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.training.checkpoint import (
    Checkpoint,
    best_checkpoint,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from scorefield.training.config import MAY_CHANGE, TrainConfig
from scorefield.training.describe import bare, build_model, describe_model, to_json
from scorefield.training.log import LOG_FILE

RUN_FILE = "run.json"
FORMAT = 1


@dataclass(frozen=True)
class RunInfo:
    """What run.json says.

    Attributes:
        path: the folder of the run.
        model: description of the model (see `describe_model`).
        range: where the data lies in the model's space; None for float data that was used as it is.
        levels: number of integer values of the data; None for float data.
        shape: event shape.
        classes: names of the classes, where the model was trained with labels.
        data: name, size and fingerprint of the data; for scaled float data also the range of its values, for
            others columns and scale, for deep pictures the span of their pixels.
        config: description of the training configuration (see `to_json`).
    """

    path: Path
    model: Mapping[str, Any]
    range: Range | None
    levels: int | None
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def scale(self) -> Scale | None:
        """The scale between the units of the data and those of the model; None where they are the same."""
        return None if "scale" not in self.data else Scale.from_json(self.data["scale"])

    def in_units(self, x: Tensor) -> Tensor:
        """What the model returns, (B, *), in the units of the data."""
        return x if self.scale is None else self.scale.to_units(x)


def write_run(path: Path, model: ScoreModel, data: Dataset, config: Any, labels: bool) -> None:
    """Write run.json.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    about: dict[str, Any] = {
        "name": data.name,
        "size": data.size,
        "fingerprint": data.fingerprint(),
        "contents": data.contents(),
        "range": None if data.range is None else list(data.range),
    }
    if data.codec is not None:
        about["codec"] = to_json(data.codec)
    if data.span is not None:
        about["span"] = list(data.span)
    if data.scale is not None:
        about |= {"columns": list(data.columns), "scale": data.scale.to_json()}
    classes = data.classes if labels else ()
    _write(path, model, model.sde.range if data.scaled else None, data.levels, classes, about, config)


def write_converted(path: Path, model: ScoreModel, range: Range, step: int, source: str) -> None:
    """Make a run of a model that was trained elsewhere on 8-bit images, shown in `range`; its weights are the averages.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    _write(path, model, range, 256, (), {"name": source, "size": 0, "fingerprint": "", "range": None}, None)
    weights = model.state_dict()
    groups = {"model": weights, "ema": weights, "optimizer": dict[str, Tensor]()}
    save_checkpoint(path, step, groups, {"ema_updates": step, "seconds": 0.0, "scaler": None}, keep=1)


def _write(
    path: Path,
    model: ScoreModel,
    range: Range | None,
    levels: int | None,
    classes: tuple[str, ...],
    data: Mapping[str, Any],
    config: Any,
) -> None:
    from scorefield import __version__

    content = {
        "format": FORMAT,
        "scorefield": __version__,
        "model": describe_model(model),
        "data": dict(data),
        "shape": list(model.shape or ()),
        "range": None if range is None else list(range),
        "levels": levels,
        "classes": list(classes),
        "config": to_json(config) or {},
    }
    with atomic_file(path / RUN_FILE, "w") as file:
        json.dump(content, file, indent=1)


def read_run(path: str | Path) -> RunInfo:
    """What the run in a folder is, or the bundled model of this name.

    Raises:
        CheckpointError: the folder is not that of a run, or its description is damaged.
    """
    folder = run_folder(path)
    if folder.is_dir() and not (folder / RUN_FILE).exists():
        if any((folder / name).exists() for name in ("model_index.json", "config.json")):
            raise CheckpointError(
                f"{path} is not a run but looks like a folder of diffusers; sf.pretrained.from_diffusers reads it"
            )
        raise CheckpointError(
            f"{path} is not a run (it holds no {RUN_FILE}); give the folder that train wrote with --out"
        )
    try:
        content = json.loads((folder / RUN_FILE).read_text("utf-8"))
        if content["format"] > FORMAT:
            raise CheckpointError(f"{path} has format {content['format']}; update scorefield, which reads {FORMAT}")
        return _described(folder, content)
    except OSError as error:
        raise cannot_read(path, error) from error
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, RuntimeError) as error:
        raise CheckpointError(f"{folder / RUN_FILE} is damaged; restore it from a copy or train again") from error


def _described(folder: Path, content: Mapping[str, Any]) -> RunInfo:
    """What run.json says; a part that is missing or of another form fails here."""
    shape = tuple(content["shape"])
    if not all(type(n) is int and n > 0 for n in shape):
        raise ValueError("shape")
    if not all(isinstance(content["model"][part], Mapping) for part in ("net", "sde")):
        raise ValueError("model")
    info = RunInfo(
        path=folder,
        model=dict(content["model"]),
        range=None if content["range"] is None else (float(content["range"][0]), float(content["range"][1])),
        levels=content["levels"],
        shape=shape,
        classes=tuple(content["classes"]),
        data=dict(content["data"]),
        config=dict(content["config"]),
    )
    if not isinstance(info.data.get("codec", {}), Mapping):
        raise ValueError("codec")
    info.in_units(torch.zeros(1, *shape, device="cpu"))  # a scale of another form fails here
    return info


def load(
    run: str | Path,
    *,
    net: nn.Module | None = None,
    sde: GaussianSDE | None = None,
    clock: Any = None,
    step: int | Literal["newest", "best"] | None = None,
    device: str | torch.device = "cpu",
) -> ScoreModel:
    """The model of a run with its averaged weights, ready to sample (eval mode).

    Main arguments:
        run: the folder, or "digits" for the bundled model.
        step: which checkpoint: by default the best where data was held out, else the newest; "newest" whose checksums
            hold, a damaged newer one being reported in a warning; "best", with the least held-out loss (running loss
            where nothing was held out); or that of a step.
        net, sde, clock: parts of the model that are classes of your own; run.json cannot rebuild these.

    Raises:
        CheckpointError: not a run, no intact checkpoint, or weights that do not fit the network.
        InputError: a part of your own is missing.
    """
    info = read_run(run)
    model = build_model(info.model, net=net, sde=sde, clock=clock, where=str(run))
    checkpoint = chosen_checkpoint(info.path, step)
    if checkpoint is None:
        raise CheckpointError(f"{run} has no {'best ' if step == 'best' else ''}checkpoint yet; train it first")
    load_weights(model, checkpoint.tensors["ema"], str(checkpoint.path))
    model.data_levels, model.data_range = info.levels or 0, info.range
    return model.to(device).eval()


def chosen_checkpoint(run: Path, step: int | Literal["newest", "best"] | None = None) -> Checkpoint | None:
    """A checkpoint of averaged weights (see `load`); None if there is none."""
    if step == "newest":
        return newest_checkpoint(run, ("ema",))
    if step is not None:
        path = best_checkpoint(run) if step == "best" else run / f"step-{step:06d}"
        return None if path is None else read_checkpoint(path, ("ema",))
    if (path := best_checkpoint(run, held_out=True)) is not None:
        try:
            return read_checkpoint(path, ("ema",))
        except CheckpointError as error:
            warnings.warn(f"{str(error).split(';')[0]}; taking the newest", ScorefieldWarning, stacklevel=3)
    return newest_checkpoint(run, ("ema",))


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy stored weights into a model.

    Raises:
        CheckpointError: a name or shape differs; the first is named.
    """
    model = bare(model) if isinstance(model, ScoreModel) else model
    own = model.state_dict()
    for name in sorted(own.keys() ^ tensors.keys()):
        fault = "lacks" if name in own else "has an unexpected"
        raise CheckpointError(f"{where} {fault} weight {name}; it belongs to another network")
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise CheckpointError(
                f"{where} holds {name} of shape {tuple(tensors[name].shape)}, the network has {tuple(value.shape)}; "
                "it belongs to another network"
            )
    model.load_state_dict(dict(tensors))


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
    check_same_data(info, data)
    # A field that an earlier version did not have stands at its default, which does what that version did.
    fresh = _as_json(to_json(TrainConfig()))["arguments"]
    old, new = fresh | info.config["arguments"], _as_json(to_json(config))["arguments"]
    for name, before, now in _differences(old, new):
        if name not in MAY_CHANGE:
            raise CheckpointError(f"{info.path} was trained with {name}={_short(before)}, not {_short(now)}; {REMEDY}")
    planned = config.minutes is not None  # then the clock decides about the steps
    if old["steps"] != new["steps"] and config.optim.schedule != "constant" and not planned:
        raise CheckpointError(
            f"{info.path} has a {config.optim.schedule} schedule that ends at steps={old['steps']}, not {new['steps']}; "
            f"{REMEDY}"
        )
    return bool(old != new)


def check_same_data(info: RunInfo, data: Dataset) -> None:
    """Compare what a run was trained on with what it is about to go on with.

    Raises:
        CheckpointError: it is other data.
    """
    if info.data.get("fingerprint") == data.fingerprint():
        contents = info.data.get("contents")  # which runs of earlier versions do not have
        if contents is None or contents == data.contents():
            return
    before, now = (info.data.get("name"), info.data.get("size"), info.shape), (data.name, data.size, data.shape)
    if before == now:
        raise CheckpointError(f"{info.path} was trained on other data ({data.name} held other values then); {REMEDY}")
    shapes = (f" of {info.shape}", f" of {data.shape}") if before[2] != now[2] else ("", "")
    raise CheckpointError(
        f"{info.path} was trained on other data ({before[0]}, {before[1]} items{shapes[0]}; "
        f"now {now[0]}, {now[1]} items{shapes[1]}); {REMEDY}"
    )


def has_begun(run: Path) -> bool:
    """Whether training in a folder came beyond its first step, as it does not with a network of the wrong channels."""
    names, log = [path.name for path in list_checkpoints(run)], run / LOG_FILE
    return names not in ([], [f"step-{0:06d}"]) or (log.exists() and log.stat().st_size > 0)


def to_go_on(run: Path, data: Dataset, seed: int) -> RunInfo | None:
    """The run in a folder that training on this data continues; None if there is none, or none that has begun with it.

    Raises:
        CheckpointError: it has begun with other data, or another seed.
    """
    if not (run / RUN_FILE).exists() or not list_checkpoints(run):
        return None
    info = read_run(run)
    arguments = info.config.get("arguments")
    before = arguments.get("seed", seed) if isinstance(arguments, Mapping) else seed
    try:
        if before != seed:
            raise CheckpointError(f"{run} was trained with seed={before}, not {seed}; {REMEDY}")
        check_same_data(info, data)
    except CheckpointError:
        if has_begun(run):
            raise
        return None
    return info


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
