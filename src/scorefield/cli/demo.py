"""scorefield demo."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from dataclasses import dataclass
from typing import Annotated

from scorefield.cli.options import COUNT, Common, Name, Result, Unset, pick_device
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Train on the embedded digits, sample, score and inpaint, and write one page about it.

    Example: scorefield demo --out runs/demo
    """

    out: Annotated[str, Name("FOLDER")] = "runs/demo"
    """Folder for report.html, the pictures and the run."""
    steps: Annotated[int | None, Unset("INT"), COUNT] = None
    """Training steps; planned by the clock unless given."""
    minutes: float = 4.0
    """Minutes of training; the rest takes two more on two cores."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.demo import main

    if not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes={options.minutes} is impossible; expected a positive number, such as 4")
    if options.device is not None:
        use_everywhere(pick_device(options.device))
    # The table that demo prints would spoil the one JSON object.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        figures = main(options.out, steps=options.steps, minutes=options.minutes, seed=options.seed)
    return Result("", figures)


def use_everywhere(device: str) -> None:
    """Make a device the one that training picks by itself in this process."""
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)
