"""What a word on the command line says of an operator: numbers, kernels, masks. Each operator reads its own in `from_word`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.data.images import read_image
from scorefield.errors import InputError

CENTRE = 0.08
"""Share of each side of the Fourier plane, around frequency zero, that a random mask always has."""
DARK, BRIGHT, FEW = 64, 191, 0.1
"""A mask has at most this share of pixels that are neither black nor white, such as the edges that a resizing softens."""


def number(value: str, above: float, most: float) -> float:
    """A number above `above`, up to `most`.

    Raises:
        InputError: another one, or none.
    """
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not above < found <= most:
        raise InputError(f"{value!r} is impossible; expected a number above {above:g}, up to {most:g}")
    return found


def whole_number(value: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`.

    Raises:
        InputError: another one, or none.
    """
    if not (value.isdecimal() and least <= int(value) <= most):
        raise InputError(f"{value!r} is impossible; expected a whole number from {least} to {most}")
    return int(value)


def gaussian_kernel(sigma: float) -> Tensor:
    """A Gaussian of two dimensions and sum 1, cut at three standard deviations, float64."""
    i = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, dtype=torch.float64)
    line = torch.exp(-(i**2) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def read_mask(path: str, sides: Sequence[int], *, resize: bool = False, invert: bool = False) -> Tensor:
    """A mask (1, H, W) from an image: white is known and black is not, or the reverse.

    Raises:
        InputError: not an image, one of another size, a photograph, or a mask that leaves nothing to do.
    """
    pixels = read_image(path, 1, (sides[0], sides[1]) if resize else None)
    if tuple(pixels.shape[1:]) != tuple(sides):
        raise InputError(
            f"{path} is {pixels.shape[2]} x {pixels.shape[1]} pixels and the run has {sides[1]} x {sides[0]}; resize it"
        )
    between = float(((pixels > DARK) & (pixels < BRIGHT)).float().mean())
    if between > FEW:
        raise InputError(
            f"{path} is not a mask: {100 * between:.0f} % of its pixels are neither black nor white; paint what is known "
            "white and the rest black"
        )
    known = (pixels >= 128) != invert
    if bool(known.all()) or not bool(known.any()):
        what = "nothing to fill in" if bool(known.all()) else "nothing that is known"
        raise InputError(f"{path} leaves {what}; white is known and black is filled in")
    return known


def fourier_columns(fraction: float, sides: Sequence[int], seed: int) -> Tensor:
    """Whole columns of the Fourier plane, as a scanner takes them: the middle ones and random others."""
    width = sides[-1]
    wanted = max(1, round(fraction * width))
    frequency = torch.fft.fftfreq(width).abs()
    middle = frequency <= max(CENTRE / 2, 0.5 / width) if wanted > 1 else frequency == 0
    order = torch.rand(width, generator=torch.Generator().manual_seed(seed)) - 2.0 * middle - 1.0 * (frequency == 0)
    columns = torch.zeros(width, dtype=torch.bool)
    columns[order.argsort()[:wanted]] = True
    return columns.expand(*sides).clone()
