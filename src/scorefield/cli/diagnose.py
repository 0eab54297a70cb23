"""scorefield diagnose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import scorefield as sf
from scorefield.bundled import results_folder
from scorefield.cli.data import open_items
from scorefield.cli.options import COUNT, Flag, Name, OfRun, Result, Unset, check_writable, pick_device
from scorefield.evaluation.bits import model_input


@dataclass(frozen=True, kw_only=True)
class Options(OfRun):
    """What is wrong with a run: its start, its score at each noise level, flow beside SDE, memory, samplers; with advice.

    Example: scorefield diagnose runs/digits --data digits --only start,calibration
    """

    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, a .npy, .npz or .csv file, .tar shards, torchvision:NAME or hf:NAME."""
    only: Annotated[str | None, Unset("NAME[,NAME...]")] = None
    """Chapters: start, calibration, precision, averages, curl, gap, memory, samplers, trajectory, likelihood, posterior, width;
    those that suit the run unless given."""
    n: Annotated[int | None, Unset("INT", "-n"), COUNT] = None
    """Samples to draw; 2000 of up to 64 entries, 64 of larger ones unless given."""
    out: Annotated[str | None, Unset("FILE")] = None
    """The page; RUN/diagnose.html unless given. Chapters are kept beside it, so that the same command goes on after a kill."""
    overwrite: Flag = False
    """Compute all chapters anew."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    out = options.out or str(results_folder(options.run) / "diagnose.html")
    check_writable(out)
    only = None if options.only is None else [word.strip() for word in options.only.split(",")]
    info = sf.training.read_run(options.run)
    items = open_items(options.data, info)
    # Networks of `fit` take a form of their own, whose part for training is not kept apart.
    data = options.data if info.scale is None else model_input(items, range(min(1000, items.size)), info.range, 0)
    found = sf.diagnose.report(
        options.run,
        data,
        only=only,
        n=options.n,
        seed=options.seed,
        device=pick_device(options.device),
        keep=Path(out).with_suffix(".chapters.json"),
        overwrite=options.overwrite,
    )
    found.write(out, f"Diagnosis of {options.run}")
    return Result(f"{found}\n{out}", found.values() | {"out": out})
