"""Samples to files; the suffix decides the format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scorefield.errors import InputError
from scorefield.files import atomic_file

ARRAYS = (".npy", ".npz", ".safetensors")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether items of a shape can be shown as pictures."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def check_format(path: str, shape: tuple[int, ...]) -> None:
    """Refuse a suffix that cannot hold samples of a shape.

    Raises:
        InputError: an unknown suffix, or a picture of what is not an image.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ARRAYS + PICTURES:
        raise InputError(f"cannot write {path}: unknown suffix {suffix!r}; use one of {', '.join(PICTURES + ARRAYS)}")
    if suffix in PICTURES and not is_image(shape):
        raise InputError(f"cannot write {path}: items of shape {shape} are not images; use one of {', '.join(ARRAYS)}")


def write_samples(path: str, x: Tensor, low: float, high: float, columns: int | None = None, zoom: int = 1) -> None:
    """Write samples (N, *) with values in [low, high]: a picture as a grid, enlarged `zoom` times, arrays as they are.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    suffix, values = Path(path).suffix.lower(), x.detach().float().cpu().contiguous()
    content = io.BytesIO()
    if suffix == ".npy":
        np.save(content, values.numpy())
    elif suffix == ".npz":
        np.savez(content, images=values.numpy())
    elif suffix == ".safetensors":
        import safetensors.torch

        content.write(safetensors.torch.save({"samples": values}))
    else:
        _encode_picture(content, _grid(values, low, high, columns, zoom), suffix)
    with atomic_file(path) as file:
        file.write(content.getvalue())


def _grid(x: Tensor, low: float, high: float, columns: int | None, zoom: int) -> Any:
    from scorefield.plot import image_grid

    if len(x) == 1:
        return image_grid(x, 1, low, high, zoom, gap=0)
    return image_grid(x, columns, low, high, zoom)


def _encode_picture(content: io.BytesIO, picture: Any, suffix: str) -> None:
    # In memory: Pillow loses the reason of a failure (a full disk) when it writes to a file itself.
    from PIL import Image

    picture.save(content, format=Image.registered_extensions()[suffix])
