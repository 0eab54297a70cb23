"""The picture of a restoration: before, measurement, samples, mean and standard deviation in a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHOWN = 4
"""Samples in the row, at most."""
SIDE = 112
"""Pixels to which small tiles are enlarged."""


def write_panel(
    path: str, samples: Tensor, low: float, high: float, seen: Tensor, before: Tensor | None = None
) -> None:
    """Write the row as a picture; arguments as in `panel`.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    from scorefield.cli.files import write_samples

    tiles = panel(samples, low, high, seen, before)
    write_samples(path, tiles, low, high, len(tiles), zoom=max(1, SIDE // max(tiles.shape[-2:])))


def panel(samples: Tensor, low: float, high: float, seen: Tensor, before: Tensor | None = None) -> Tensor:
    """Tiles (K, C, H, W) in [low, high]; mean and standard deviation only of several samples.

    Main arguments:
        samples: (n, C, H, W) in [low, high]. seen, before: intensities (C', H', W') and (C, H, W).
        The standard deviation is shown relative to its largest value.
    """
    x = samples.detach().float().cpu()
    tiles = [] if before is None else [_tile(before, x, low, high)]
    tiles += [_tile(seen, x, low, high), *x[:SHOWN]]
    if len(x) > 1:
        std = x.std(0)
        tiles += [x.mean(0), low + (high - low) * std / std.amax().clamp_min(1e-12)]
    return torch.stack(tiles)


def _tile(intensities: Tensor, like: Tensor, low: float, high: float) -> Tensor:
    channels, height, width = like.shape[1:]
    image = intensities.detach().float().cpu().reshape(1, *intensities.shape[-3:])
    image = F.interpolate(image, (height, width), mode="nearest")[0]
    return low + (high - low) * image.expand(channels, height, width)
