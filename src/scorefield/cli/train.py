"""scorefield train."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scorefield.cli.options import COUNT, Arrays, Basic, Flag, Reading, Result, Unset, read_data
from scorefield.errors import DivergedError, InputError
from scorefield.parallel import launched
from scorefield.training.config import OptimConfig, TrainConfig

if TYPE_CHECKING:
    from scorefield.data import Dataset
    from scorefield.training.recipes import Recipe


WITHOUT = "(may be left out where --data names data of your own)"


@dataclass(frozen=True, kw_only=True)
class Options(Reading, Arrays, Basic):
    """Train a score model into a folder; the same command again goes on where the last one ended.

    Without a preset it chooses by itself: scorefield train --data photos/ --out runs/photos --minutes 10

    Example: scorefield train digits --data digits --out runs/digits --steps 2000 --optim.lr 1e-3
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET", help_behavior_hint=WITHOUT)]
    """digits, vectors (any array), box (an array or images between walls, see --range), speech (clean and noisy recordings),
    text, categories (a table), binary or pixels (images as states), or a configuration of the paper, such as
    ve/cifar10_ncsnpp_continuous."""
    data: Annotated[str | None, Unset("DATA")] = None
    """digits, a folder of images, .npy, .npz or .csv files, .tar shards, torchvision:NAME or hf:NAME; for text a .txt file, for
    categories a .csv, for speech a folder with clean/ and noisy/ wave files of the same names; else the preset's own."""
    out: Annotated[str | None, Unset("FOLDER")] = None
    """Folder of the run; runs/PRESET unless given."""
    labels: Flag = False
    """Train class-conditionally, on the classes of the data: its sub-folders, or the digits' own."""
    held_out: Annotated[str | None, Unset("DATA")] = None
    """Data whose loss decides which checkpoint is the best; digits means the held-out thousand."""
    length: Annotated[int | None, Unset("INT"), COUNT] = None
    """States of a piece of text; 64 unless given."""
    tokenizer: Annotated[str | None, Unset("FILE")] = None
    """tokenizer.json by which text is cut into tokens, in place of characters."""
    fold: Flag = False
    """Read text as small letters and blanks alone, 27 symbols."""
    init: Annotated[str | None, Unset("RUN")] = None
    """Run whose averaged weights a new training starts from, such as digits for the bundled model."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def instead(args: list[str]) -> tuple[Any, list[str]]:
    """The command and its words: the door for data of one's own where no preset is named."""
    from scorefield.cli import own

    words = own.words_for(args)
    return (sys.modules[__name__], args) if words is None else (own, words)


def prepare(args: list[str]) -> tuple[list[str], Any]:
    """Allow optimiser options without their prefix, and take the defaults from the preset.

    Raises:
        InputError: the preset is unknown.
    """
    from scorefield.cli.parse import read
    from scorefield.training.recipes import BEGIN, recipe, recipe_names

    short = {f.name.replace("_", "-") for f in fields(OptimConfig)} - {f.name for f in fields(TrainConfig)}
    arguments = [_with_prefix(word, short) for word in args]
    if "-h" in args or "--help" in args:
        known = [word for word in args if word in recipe_names()]
        name = known[0] if known else ""
        return arguments, Options(preset=name, config=recipe(name).config if known else TrainConfig())
    try:
        name = read(Options, arguments, "scorefield train").preset
    except InputError as error:
        missing = str(error).startswith("PRESET is missing")
        raise (InputError(f"PRESET is missing; {BEGIN}") if missing else error) from None
    return arguments, Options(preset=tyro.MISSING, config=recipe(name).config)


def _with_prefix(word: str, short: set[str]) -> str:
    name, equals, value = word.partition("=")
    if name.startswith("--") and name[2:].replace("_", "-") in short:
        return f"--optim.{name[2:]}{equals}{value}"
    return word


def _reading(options: Options, codec: Any) -> dict[str, Any]:
    """How a preset of states is to read its data.

    Raises:
        InputError: an option that means nothing there.
    """
    for name in ("levels", "range", "grey", "skip_broken"):
        if getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} means nothing for preset {options.preset}; leave it out")
    named = {"length": options.length, "tokenizer": options.tokenizer, "fold": options.fold or None, "codec": codec}
    return {name: value for name, value in named.items() if value is not None}


def _source(options: Options, chosen: Recipe) -> str:
    """The name of the data.

    Raises:
        InputError: none, or options of text for a preset of something else.
    """
    source = options.data or chosen.data
    if source is None:
        raise InputError(
            f"--data is missing; preset {options.preset} has no data of its own, so give a folder or a file"
        )
    states = chosen.open is not None and options.preset != "speech"
    if not states and (options.length or options.tokenizer or options.fold):
        raise InputError(
            f"--length, --tokenizer and --fold are for text, and preset {options.preset} is not; leave them out"
        )
    return source


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.cli.options import pick_device
    from scorefield.training import train
    from scorefield.training.recipes import recipe
    from scorefield.training.run import RUN_FILE, load, load_weights

    chosen = recipe(options.preset)
    source = _source(options, chosen)
    out = options.out or f"runs/{options.preset}"
    device = pick_device(options.device)
    processes = launched()

    def opened(name: str, shape: tuple[int, ...] | None, train: bool) -> Dataset:
        if chosen.open is not None:
            return chosen.open(name, train=train, **_reading(options, None if train else data.codec))
        return read_data(options, name, shape, train=train, labels=options.labels)

    data = opened(source, chosen.shape, True)
    held_out = None if options.held_out is None else opened(options.held_out, data.shape, False)
    model = chosen.build(data, options.config.seed, options.labels)
    if options.init is not None and not (Path(out) / RUN_FILE).exists():
        load_weights(model, load(options.init).state_dict(), options.init)
    try:
        done = train(
            model,
            data,
            out=out,
            config=options.config,
            loss=chosen.loss,
            held_out=held_out,
            device=device,
            progress=processes.main,
        )
    except DivergedError:
        if processes.main:
            raise
        sys.exit(1)  # every process knows, and one of them tells
    state = "finished" if done.finished else f"stopped by {done.stopped}; the same command goes on from here"
    loss = f", loss {done.loss:.4g}" if done.loss == done.loss else ""
    values = {"out": out, "step": done.step, "steps": done.steps, "finished": done.finished}
    text = f"{out}: step {done.step} of {done.steps}{loss}, {state}"
    return Result(text, values | {"loss": done.loss if done.loss == done.loss else None})
