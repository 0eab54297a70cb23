"""scorefield train without a preset: the door for data of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from scorefield.cli.options import COUNT, Common, Flag, Name, Result, Unset
from scorefield.errors import InputError
from scorefield.parallel import launched


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Train a model of your own data; what the data is and what this machine can do decide how, and the result is judged.

    The same command again goes on within the same total. `scorefield train PRESET --help` lists the options of presets.

    Example: scorefield train --data photos/ --out runs/photos --minutes 10
    """

    data: Annotated[str, Name("DATA")]
    """A folder of images, a .npy, .npz or .csv file, .tar shards, digits, torchvision:NAME or hf:NAME."""
    out: Annotated[str | None, Unset("FOLDER")] = None
    """Folder of the run; runs/ and the name of the data unless given."""
    minutes: Annotated[float | None, Unset("FLOAT")] = None
    """Time for all of it; 10 unless given."""
    steps: Annotated[int | None, Unset("INT"), COUNT] = None
    """Training steps, in place of minutes."""
    size: Annotated[int | None, Unset("PIXELS"), COUNT] = None
    """Side of the pictures of a folder; that of the smallest, at most 32, unless given."""
    kind: Literal["auto", "picture", "vector", "signal", "volume", "table", "states"] = "auto"
    """What the data is, where its shape tells wrongly."""
    labels: Flag = False
    """Train class-conditionally, on sub-folders, the labels of an .npz, or a column of classes."""
    like: Annotated[str | None, Unset("RUN")] = None
    """Run whose choices are taken; with its --steps it is repeated exactly."""
    skip_broken: Flag = False
    """Leave out files that are not images."""
    fast: Flag = False
    """Do not judge the result."""


def words_for(args: Sequence[str]) -> list[str] | None:
    """The arguments of this door, where a command line names data and no preset; else None."""
    from scorefield.training.recipes import recipe_names

    help_only = not [word for word in args if word not in ("-h", "--help")]
    if help_only or not args:
        return None
    if not args[0].startswith("-") and args[0] not in recipe_names() and Path(args[0]).exists():
        return ["--data", *args]
    given = {word.partition("=")[0] for word in args}
    return None if "--data" not in given or _positional(args) else list(args)


def _positional(args: Sequence[str]) -> bool:
    """Whether a word is neither an option nor its value."""
    flags = {"--labels", "--skip-broken", "--fast", "--json", "--debug", "--grey", "-h", "--help"}
    taken = False
    for word in args:
        if word.startswith("--") or word == "-h":
            taken = word not in flags and "=" not in word
        elif taken or _is_number(word):
            taken = False
        else:
            return True
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.automatic import fit
    from scorefield.cli.options import pick_device

    out = options.out or f"runs/{Path(options.data.rstrip('/')).stem or 'own'}"
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    passed = ("minutes", "steps", "size", "labels", "skip_broken", "like", "seed")
    if launched().count > 1:
        raise InputError("data of your own is trained by one process; name a preset to use several")
    done = fit(
        options.data,
        out=out,
        kind=None if options.kind == "auto" else options.kind,
        device=pick_device(options.device),
        judged=not options.fast,
        **{name: given[name] for name in passed},
    )
    run = done.run
    state = "finished" if run.finished else f"stopped by {run.stopped}"
    if run.stopped == "a callback":
        state = "ended early, since the held-out loss had long been rising"
    elif not run.finished:
        state += "; the same command goes on from here"
    text = f"{out}: step {run.step:,} of {run.steps:,}, {state}"
    values = {"out": out, "step": run.step, "finished": run.finished, "stopped": run.stopped}
    judged = {} if done.judgement is None else {"judgement": done.judgement.values()}
    return Result(text, {**values, **judged})
