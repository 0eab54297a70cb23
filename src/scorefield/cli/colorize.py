"""scorefield colorize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.options import Common, Flag, Name, Result, Unset
from scorefield.inverse.restore import MethodName


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Colours for a grey image, by the paper's replacement method or another (Song et al. 2021, App. I.3).

    Example: scorefield colorize runs/cifar10 --image grey.png -n 4 --out colours.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder of a run on colour images."""
    image: Annotated[str, Name("FILE")]
    """The grey image, of the size of the run's images. With --simulate, a colour image to take the grey of."""
    luma: Flag = False
    """Grey is luminance (0.299, 0.587, 0.114), as most programs make it, not the mean of the channels."""
    simulate: Flag = False
    """Take the grey version of the colour image --image."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Number of different colourings."""
    method: MethodName = "replace"
    """replace is the paper's; mmps has no bias; docs/inverse.md compares them."""
    noise: Annotated[float | None, Unset("FLOAT")] = None
    """Standard deviation of the grey's noise, of intensities from 0 to 1; 0.005 unless given, none with replace and repaint."""
    steps: Annotated[int | None, Unset("INT")] = None
    """Steps; the method's own number unless given."""
    seed: int = 0
    """Decides the colours."""
    batch_size: int = 16
    """Colourings at a time."""
    resize: Flag = False
    """Crop and resize a colour image to the size of the run's images."""
    out: Annotated[str, Name("FILE")] = "colorized.png"
    """The colourings: .png (a grid if there are several), or .npy, .npz, .safetensors."""
    panel: Annotated[str | None, Unset("FILE")] = None
    """Also write before, grey, colourings, mean and standard deviation in a row."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.cli.measured import Work, solve
    from scorefield.cli.operators import gray
    from scorefield.errors import InputError
    from scorefield.inverse.restore import NOISELESS

    exact = options.method in NOISELESS
    if exact and options.noise:
        raise InputError(
            f"--noise={options.noise} is impossible with --method {options.method}, which takes grey for exact"
        )
    noise = (0.0 if exact else 0.005) if options.noise is None else options.noise
    return solve(Work(options, options.panel), lambda *about: gray(options.luma, *about), noise)
