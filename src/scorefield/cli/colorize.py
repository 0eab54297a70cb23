"""scorefield colorize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import scorefield as sf
from scorefield.cli.options import Flag, Name, Result, Unset
from scorefield.cli.restore import Restoring, Seen, by_method, check_method, images_of, restoration
from scorefield.errors import InputError

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance that most programs mean by grey (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class Options(Restoring):
    """Colours for a grey image, by the paper's replacement method or another (Song et al. 2021, App. I.3).

    The image --image is grey; with --simulate it has colours, of which the grey is taken.

    Example: scorefield colorize runs/cifar10 --image grey.png -n 4 --out colours.png
    """

    luma: Flag = False
    """Grey is luminance (0.299, 0.587, 0.114), as most programs make it, not the mean of the channels."""
    simulate: Flag = False
    """Take the grey version of the colour image --image."""
    method: Annotated[str, Name("NAME")] = "replace"
    """replace is the paper's; mmps has no bias; docs/inverse.md compares them."""
    noise: Annotated[float | None, Unset("FLOAT")] = None
    """Standard deviation of the grey's noise, of intensities from 0 to 1; 0.005 unless given, none with replace and repaint."""
    out: Annotated[str, Name("FILE")] = "colorized.png"
    """The colourings: .png (a grid if there are several), or .npy, .npz, .safetensors."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.inverse.restore import NOISELESS

    exact = options.method in NOISELESS
    if exact and options.noise:
        raise InputError(
            f"--noise={options.noise} is impossible with --method {options.method}, which takes grey for exact"
        )
    noise = (0.0 if exact else 0.005) if options.noise is None else options.noise
    check_method(options.method, noise)
    shape, interval = images_of(options.run)
    if shape[0] != 3:
        raise InputError(f"{options.run} has images of {shape[0]} channel; colours need a run of 3")
    operator = sf.Grayscale(LUMA) if options.luma else sf.Grayscale()
    seen = Seen(operator, shape, interval)
    draw, mode = by_method(options, options.method, operator), "simulate" if options.simulate else "read"
    return restoration(options, seen, options.panel, noise, draw, mode)  # type: ignore[arg-type]
