"""scorefield train."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import tyro

from scorefield.cli.common import Common, Flag, Name, Result, Unset
from scorefield.errors import InputError
from scorefield.train.config import OptimConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Train a score model into a folder; the same command again goes on where the last one ended.

    Example: scorefield train digits --data digits --out runs/digits --steps 2000 --optim.lr 1e-3
    """

    preset: Annotated[str, tyro.conf.Positional, Name("PRESET")]
    """digits, vectors (any array), or a configuration of the paper, such as ve/cifar10_ncsnpp_continuous."""
    data: Annotated[str | None, Unset("DATA")] = None
    """digits, a folder of images, a .npy or .npz file, .tar shards, torchvision:NAME or hf:NAME; the preset's own unless given."""
    out: Annotated[str | None, Unset("FOLDER")] = None
    """Folder of the run; runs/PRESET unless given."""
    levels: Annotated[int | None, Unset("INT")] = None
    """Number of values of integer data; 256 for 8-bit data."""
    range: Annotated[tuple[float, float] | None, Unset("LOW HIGH")] = None
    """Values of float data that go to the ends of the model's range; unscaled unless given."""
    grey: Flag = False
    """Turn colour images to grey where the preset is grey."""
    skip_broken: Flag = False
    """Leave out files that are not images."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def prepare(args: list[str]) -> tuple[list[str], Any]:
    """Allow optimiser options without their prefix, and take the defaults from the preset.

    Raises:
        InputError: the preset is unknown.
    """
    from scorefield.cli.parse import read
    from scorefield.train.recipes import recipe, recipe_names

    short = {f.name.replace("_", "-") for f in fields(OptimConfig)} - {f.name for f in fields(TrainConfig)}
    arguments = [_with_prefix(word, short) for word in args]
    if "-h" in args or "--help" in args:
        known = [word for word in args if word in recipe_names()]
        if not known:
            return arguments, None
        name = known[0]
    else:
        name = read(Options, arguments, "scorefield train").preset
    return arguments, Options(preset=tyro.MISSING, config=recipe(name).config)


def _with_prefix(word: str, short: set[str]) -> str:
    name, equals, value = word.partition("=")
    if name.startswith("--") and name[2:].replace("_", "-") in short:
        return f"--optim.{name[2:]}{equals}{value}"
    return word


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.cli.common import pick_device
    from scorefield.data import open_data
    from scorefield.train import train
    from scorefield.train.recipes import recipe

    chosen = recipe(options.preset)
    source = options.data or chosen.data
    if source is None:
        raise InputError(
            f"--data is missing; preset {options.preset} has no data of its own, so give a folder or a file"
        )
    data = open_data(
        source,
        chosen.shape,
        levels=options.levels,
        range=options.range,
        convert=options.grey,
        skip_broken=options.skip_broken,
    )
    out = options.out or f"runs/{options.preset}"
    device = pick_device(options.device)
    model = chosen.build(data, options.config.seed)
    done = train(model, data, out=out, config=options.config, loss=chosen.loss, device=device, progress=True)
    state = "finished" if done.finished else f"stopped by {done.stopped}; the same command goes on from here"
    loss = f", loss {done.loss:.4g}" if done.loss == done.loss else ""
    values = {"out": out, "step": done.step, "steps": done.steps, "finished": done.finished}
    text = f"{out}: step {done.step} of {done.steps}{loss}, {state}"
    return Result(text, values | {"loss": done.loss if done.loss == done.loss else None})
