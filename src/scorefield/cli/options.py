"""What every command shares: options, devices, results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scorefield.errors import InputError, cannot_write

if TYPE_CHECKING:
    from scorefield.model import ScoreModel
    from scorefield.training import RunInfo

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option without a value, and without a twin that takes it back."""


def Name(metavar: str) -> Any:
    """What help calls a required value."""
    return tyro.conf.arg(metavar=metavar)


def Unset(metavar: str, *aliases: str) -> Any:
    """What help calls a value that is None unless given."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command."""

    device: Annotated[str | None, Unset("NAME")] = None
    """cpu, cuda, cuda:1 or mps; the best one there is unless given."""
    json: Flag = False
    """Print the result as one JSON object."""
    debug: Flag = False
    """Show where an error came from."""


@dataclass(frozen=True)
class Result:
    """The outcome of a command, for people and for programs."""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def pick_device(name: str | None) -> str:
    """The device to compute on.

    Raises:
        InputError: there is no such device here.
    """
    import torch

    if name is None:
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} is not available here; use cpu, or leave the option out") from error
    return name


def open_run(path: str, device: str | None) -> tuple[RunInfo, ScoreModel]:
    """What a run is, and its model with averaged weights on the device.

    Raises:
        InputError: not a run, no intact checkpoint, no such device, or a classifier.
    """
    from scorefield.training import load, read_run
    from scorefield.training.classifier import is_classifier

    info = read_run(path)
    model = load(path, device=pick_device(device))
    if is_classifier(model):
        raise InputError(f"{path} is a classifier, not a score model; give the folder that train wrote")
    return info, model


def plural(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def check_count(option: str, value: int | None) -> None:
    """Refuse a number below one.

    Raises:
        InputError: the option is out of range.
    """
    if value is not None and value < 1:
        raise InputError(f"{option}={value} is impossible; expected 1 or more")


def check_temperature(value: float) -> None:
    """Refuse a temperature that is not a positive number.

    Raises:
        InputError: the option is out of range.
    """
    if not 0 < value < math.inf:
        raise InputError(f"--temperature={value} is impossible; expected a positive number, such as 0.9")


def check_writable(path: str | Path) -> None:
    """Find out before a long computation whether its result can be written.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    import tempfile

    target = Path(path)
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent):
            pass
        for folder in missing:  # what fails from here on leaves nothing behind
            folder.rmdir()
    except OSError as error:
        raise cannot_write(path, error) from error
