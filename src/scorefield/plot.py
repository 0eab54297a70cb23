"""Pictures: grids of images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.files import atomic_file


def to_pixels(x: Tensor, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Images (N, C, H, W) or (N, H, W) with values in [low, high] as uint8 (N, H, W, C), C being 1 or 3.

    Raises:
        ValueError: another shape or number of channels.
    """
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(x.shape)}; expected (N, H, W), (N, 1, H, W) or (N, 3, H, W)")
    unit = ((x.detach().float().cpu() - low) / (high - low)).nan_to_num(0.0).clamp(0, 1)
    pixels: np.ndarray = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def image_grid(
    x: Tensor, columns: int | None = None, low: float = -1.0, high: float = 1.0, zoom: int = 1, gap: int = 2
) -> Image.Image:
    """A grid of images (N, C, H, W) in rows of `columns` (a square by default), each enlarged `zoom` times."""
    pixels = to_pixels(x, low, high)
    n, height, width, channels = pixels.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    pixels = pixels.repeat(zoom, 1).repeat(zoom, 2)
    height, width = height * zoom, width * zoom
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 128, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a picture so that a half-written file is never seen; the format follows the suffix.

    Raises:
        ValueError: a suffix that Pillow does not know.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"cannot write {path}: unknown picture format; use .png or .jpg")
    with atomic_file(path) as file:
        image.save(file, format=kind)
