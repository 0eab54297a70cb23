"""Checkpoints: folders of safetensors and JSON that are complete and verified, or not there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from scorefield.errors import CheckpointError, ScorefieldWarning, cannot_write
from scorefield.files import atomic_folder, flush, remove_folder
from scorefield.training.sharding import cut, whole

FORMAT = 1
SUMS = "SHA256SUMS"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: named groups of tensors (model, ema, optimizer) and a JSON state."""

    path: Path
    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int | None = 3,
    keep_best: bool = False,
) -> Path:
    """Write `run`/step-NNNNNN, whole or not at all, then remove all but the newest `keep` checkpoints and the best one.

    Every group becomes NAME.safetensors, the state state.json, and SHA256SUMS lists the checksum of each (in the format
    of `sha256sum`).

    Raises:
        OutputError: the disk is full or the folder is not writable; older checkpoints are untouched.
    """
    path = run / f"step-{step:06d}"
    contents: dict[str, Callable[[], bytes]] = {
        f"{group}.safetensors": functools.partial(_encode, named) for group, named in tensors.items()
    }
    contents[STATE] = json.dumps({"format": FORMAT, "step": step, **state}, indent=1).encode
    sums = []
    with atomic_folder(path) as part:
        for name in sorted(contents):
            content = contents[name]()
            sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
            _write(part / name, content)
        _write(part / SUMS, "".join(sums).encode())
    try:
        removable = [] if keep is None else list_checkpoints(run)[:-keep]
        best = best_checkpoint(run) if keep_best and removable else None
        for old in removable:
            if old != best:
                remove_folder(old)
    except OSError as error:
        raise cannot_write(run, error) from error
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not run.is_dir():
        return []
    found = [p for p in run.iterdir() if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(found, key=lambda p: int(p.name[5:]))


def best_checkpoint(run: Path, held_out: bool = False) -> Path | None:
    """The checkpoint with the least held-out loss, or with the least running loss where none was held out; None if no
    checkpoint states a loss, or with `held_out` none a held-out one."""
    losses: dict[str, dict[Path, float]] = {"held_out_loss": {}, "running_loss": {}}
    for path in list_checkpoints(run):
        with contextlib.suppress(CheckpointError):
            state = read_state(path)
            for name, found in losses.items():
                value = state.get(name)
                if state["step"] and isinstance(value, float) and math.isfinite(value):
                    found[path] = value
    known = losses["held_out_loss"] or ({} if held_out else losses["running_loss"])
    return min(known, key=known.__getitem__) if known else None


def newest_checkpoint(
    run: Path, groups: tuple[str, ...] = ("model", "ema", "optimizer"), among: list[Path] | None = None
) -> Checkpoint | None:
    """The newest intact checkpoint of a run; None if it has none at all. A damaged newer one is reported in a warning.

    Other arguments:
        among: some of its checkpoints, oldest first; all by default.

    Raises:
        CheckpointError: there are checkpoints and every one is damaged.
    """
    paths = list_checkpoints(run) if among is None else among
    faults: list[str] = []
    for path in reversed(paths):
        try:
            checkpoint = read_checkpoint(path, groups)
        except CheckpointError as error:
            faults.append(str(error).split(";")[0])
            continue
        for fault in faults:
            warnings.warn(f"{fault}; continuing from {path.name}", ScorefieldWarning, stacklevel=2)
        return checkpoint
    if faults:
        more = f", and so are all {len(faults)} of {run}" if len(faults) > 1 else f" and is the only one of {run}"
        raise CheckpointError(f"{faults[0]}{more}; restore one from a copy, or remove the folder to start again")
    return None


def read_checkpoint(path: Path, groups: tuple[str, ...] = ("model", "ema", "optimizer")) -> Checkpoint:
    """A checkpoint with the given groups of tensors, after the checksum of each of its files was compared.

    Raises:
        CheckpointError: it is missing, damaged, or of a later format.
    """
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    stated = _sums(path)
    wanted = {f"{group}.safetensors" for group in groups} | {STATE}
    if not wanted <= stated.keys():
        raise _damaged(path, f"{sorted(wanted - stated.keys())[0]} is missing")
    contents: dict[str, bytes] = {}
    for name in sorted(stated):
        content = _content(path, name, stated)
        if name in wanted:
            contents[name] = content
    state = _state(path, contents[STATE])
    try:
        loaded = {group: safetensors.torch.load(contents[f"{group}.safetensors"]) for group in groups}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, "its weights are no safetensors") from error
    return Checkpoint(path, state["step"], loaded, state)


def read_state(path: Path) -> dict[str, Any]:
    """The JSON state of a checkpoint alone.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return _state(path, _content(path, STATE, _sums(path)))


def _sums(path: Path) -> dict[str, str]:
    """The files of a checkpoint and their sums; what else lies in the folder is not ours (.DS_Store, notes)."""
    text = _bytes(path, SUMS).decode("utf-8", "replace")
    lines = [re.fullmatch(r"([0-9a-f]{64})  ([\w.+-]+)", line) for line in text.split("\n")[:-1]]
    if not text.endswith("\n") or not all(lines):
        raise _damaged(path, f"{SUMS} does not fit its files")
    return {line[2]: line[1] for line in lines if line}


def _content(path: Path, name: str, stated: Mapping[str, str]) -> bytes:
    content = _bytes(path, name)
    if hashlib.sha256(content).hexdigest() != stated.get(name):
        raise _damaged(path, f"checksum of {name} differs")
    return content


def _state(path: Path, content: bytes) -> dict[str, Any]:
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{STATE} is not JSON") from error
    if not isinstance(state, dict) or not all(type(state.get(name)) is int for name in ("format", "step")):
        raise _damaged(path, f"{STATE} lacks its format or its step")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {state['format']}; update scorefield, which reads {FORMAT}"
        )
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """The state of an optimiser as tensors called SLOT/PARAMETER, such as exp_avg/net.stem.weight."""
    return {
        f"{slot}/{name}": whole(value)
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=torch.float64, device="cpu")
        for parameter, name in names.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put stored tensors back, each in the memory format of its parameter, so that the same kernels run on them."""
    parameters = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        slot, _, name = key.partition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape and value.ndim:
            part = cut(value, parameter)
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(part)
        elif optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"):
            value = value.to(parameter.device)
        optimizer.state[parameter][slot] = value


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    return bytes(safetensors.torch.save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}))


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        flush(file)


def _bytes(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise _damaged(path, f"{name} {reason}") from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path} is damaged ({reason}); restore it from a copy or use another")
