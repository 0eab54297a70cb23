"""From integer levels to floats, and from log-densities back to probabilities of the integers."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.dtypes import wide, wide_dtype
from scorefield.randomness import Seed, source


def levels_width(levels: int, low: float, high: float) -> float:
    """Number of levels per unit of the data's range.

    Raises:
        ValueError: fewer than one level, or an empty range.
    """
    if levels < 1 or not low < high:
        raise ValueError(f"levels={levels}, low={low}, high={high}: at least one level and low < high are needed")
    return levels / (high - low)


def dequantize(x: Tensor, levels: int = 256, low: float = -1.0, high: float = 1.0, seed: Seed = None) -> Tensor:
    """Integer levels 0 .. levels - 1 to the range [low, high] with uniform noise of one level's width (Theis et al. 2016).

    Main arguments:
        x: integers of any dtype, (B, *). seed: as in `sample`.

    Returns:
        float32, like x.

    Raises:
        ValueError: a value outside 0 .. levels - 1.
    """
    check_levels(x, levels)
    noise = source(seed, x.shape[0]).normal(x.shape, torch.float64, torch.device("cpu"))
    inside = torch.special.ndtr(noise).to(wide_dtype(x)).to(x.device)
    filled: Tensor = low + (wide(x) + inside) / levels_width(levels, low, high)
    return filled.float()


def check_levels(x: Tensor, levels: int) -> None:
    """Refuse values that are not levels 0 .. levels - 1."""
    level = wide(x)  # a comparison of uint8 with 256 would wrap around
    if not x.is_meta and bool(((level < 0) | (level >= levels)).any()):
        raise ValueError(f"x has values outside 0 .. {levels - 1}: these are not the levels of quantised data")
