"""What commands share: options as mix-ins, checks of their values, runs, devices, results."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

import scorefield as sf
from scorefield.errors import InputError, cannot_write
from scorefield.files import is_special

if TYPE_CHECKING:
    from scorefield.data import Dataset
    from scorefield.model import ScoreModel
    from scorefield.solve.integrate import Solution
    from scorefield.training import RunInfo

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""An option without a value, and without a twin that takes it back."""
COUNT = "a whole number of at least one"
"""Marks an option that must be 1 or more."""
LARGEST = 10**12


def Name(metavar: str) -> Any:
    """What help calls a required value."""
    return tyro.conf.arg(metavar=metavar)


def Unset(metavar: str, *aliases: str) -> Any:
    """What help calls a value that is None unless given."""
    return tyro.conf.arg(metavar=metavar, aliases=aliases or None, help_behavior_hint="")


Number = Annotated[int, tyro.conf.arg(aliases=["-n"]), COUNT]
"""-n."""


@dataclass(frozen=True, kw_only=True)
class Basic:
    """Options of every command."""

    device: Annotated[str | None, Unset("NAME")] = None
    """cpu, cuda, cuda:1 or mps; the best one there is unless given."""
    json: Flag = False
    """Print the result as one JSON object."""
    debug: Flag = False
    """Show where an error came from."""


@dataclass(frozen=True, kw_only=True)
class Common(Basic):
    """The same with a seed."""

    seed: int = 0
    """Decides all that is random; the same seed gives the same result."""


@dataclass(frozen=True, kw_only=True)
class OfRun(Common):
    """Commands that work on a run."""

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Commands that work on many items or samples."""

    batch_size: Annotated[int, COUNT] = 64
    """Samples or items at a time."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How image files are read."""

    grey: Flag = False
    """Turn colour images to grey where the run is grey."""
    skip_broken: Flag = False
    """Leave out files that are not images."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """What the numbers of an array mean."""

    levels: Annotated[int | None, Unset("INT"), COUNT] = None
    """Number of values of integer data; 256 for 8-bit data."""
    range: Annotated[tuple[float, float] | None, Unset("LOW HIGH")] = None
    """Values of float data that go to the ends of the model's range; unscaled unless given."""


@dataclass(frozen=True, kw_only=True)
class Items(Reading):
    """Commands that take data for a run."""

    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, an image, .npy, .npz, .csv, .tar shards, torchvision:NAME or hf:NAME."""


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Commands that pass through latent codes."""

    tolerance: float = 1e-6
    """Relative and absolute tolerance of the solver, for every entry."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of all items, where the run has classes."""


@dataclass(frozen=True, kw_only=True)
class Drawing(Batches):
    """Commands that draw samples with a solver."""

    sampler: Annotated[str | None, Unset("NAME[:OPTION=VALUE,...]")] = None
    """uni-pc (the default), pc:snr=0.16, pc:predictor=ancestral, ddim:eta=1, dpm-solver:order=3, heun, ...; list shows all."""
    steps: Annotated[int | None, Unset("INT"), COUNT] = None
    """Steps; the sampler's own number unless given, and as many as needed for the adaptive ones."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Commands that write a picture of many images."""

    columns: Annotated[int | None, Unset("INT"), COUNT] = None
    """Images in a row of the picture."""


@dataclass(frozen=True)
class Result:
    """The outcome of a command, for people and for programs."""

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)


def check_counts(options: Any) -> None:
    """Refuse options below one that are marked with `COUNT`.

    Raises:
        InputError: the first that is out of range.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for name in [f.name for f in fields(options) if COUNT in getattr(hints[f.name], "__metadata__", ())]:
        value = getattr(options, name)
        if value is not None and not 1 <= value <= LARGEST:
            right = "1 or more" if value < 1 else f"at most {LARGEST:,}"
            raise InputError(f"--{name.replace('_', '-')}={value} is impossible; expected {right}")


def check_temperature(value: float) -> None:
    """Refuse a temperature that is not a positive number.

    Raises:
        InputError: the option is out of range.
    """
    if not 0 < value < math.inf:
        raise InputError(f"--temperature={value} is impossible; expected a positive number, such as 0.9")


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
        InputError: not a run, no intact checkpoint, no such device, a classifier, or a run of speech.
    """
    from scorefield.training.classifier import is_classifier

    info = sf.training.read_run(path)
    refuse_speech(info)
    model = sf.load(path, device=pick_device(device))
    if is_classifier(model):
        raise InputError(f"{path} is a classifier, not a score model; give the folder that train wrote")
    return info, model


def read_data(options: Any, name: str, shape: tuple[int, ...] | None, **rest: Any) -> Dataset:
    """Data as the options of a command with `Reading` and `Arrays` ask; `rest` goes to `open_data`.

    Raises:
        InputError: as `open_data`.
    """
    from scorefield.data import open_data

    own = {"levels": options.levels, "range": options.range}
    return open_data(name, shape, convert=options.grey, skip_broken=options.skip_broken, **own, **rest)


def drawn(options: Any, model: ScoreModel, n: int, shape: tuple[int, ...], **rest: Any) -> Solution:
    """n samples of a model as the options of a command that draws ask; `rest` goes to `sample`, and before them."""
    from scorefield.cli.names import read_solver

    own = {"seed": options.seed, "steps": options.steps, "batch_size": options.batch_size}
    return sf.sample(model, n, read_solver(options.sampler, model.sde), shape=shape, full=True, **own | rest)


def label_condition(model: Any, label: int | None, n: int) -> dict[str, Any]:
    """The condition of n samples of a class, for a network with classes; empty without a label.

    Raises:
        InputError: the network has no such class.
    """
    import torch

    if label is None:
        return {}
    classes = getattr(model.net, "num_classes", 0)
    if not 0 <= label < classes:
        right = f"one from 0 to {classes - 1}" if classes else "none, since this run has no classes"
        raise InputError(f"--label={label} does not exist; give {right}")
    return {"label": torch.full((n,), label, device=model.device)}


def refuse_speech(info: RunInfo) -> None:
    """Refuse a run whose samples need a recording beside them.

    Raises:
        InputError: it is one.
    """
    if (info.data.get("codec") or {}).get("class") == "Spectrogram":
        raise InputError(
            f"{info.path} restores recordings and does nothing else; use scorefield enhance {info.path} --audio FILE"
        )


def plural(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def check_writable(path: str | Path) -> None:
    """Find out before a long computation whether its result can be written.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    target = Path(os.path.realpath(path))
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        if target.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        if is_special(path):  # nothing is made beside it
            if not os.access(path, os.W_OK):
                raise PermissionError(13, "Permission denied")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent):
            pass
        for folder in missing:  # what fails from here on leaves nothing behind
            folder.rmdir()
    except OSError as error:
        raise cannot_write(path, error) from error
