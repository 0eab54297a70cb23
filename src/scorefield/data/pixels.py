"""From a Pillow image of any mode and depth to uint8 pixels, by one rule for a whole data set."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from scorefield.errors import InputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TOPS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Largest values of 8, 10, 12, 14 and 16 bits."""
Span = tuple[float, float]


class BrokenImage(InputError):
    """A file that is not an image, or an image that is cut off."""


def image_tensor(
    opened: Image.Image,
    channels: int,
    size: tuple[int, int] | None,
    convert: bool = True,
    name: str = "image",
    span: Span | None = None,
) -> Tensor:
    """A Pillow image as uint8 (channels, height, width); size=None keeps its own.

    It is turned upright (EXIF), cropped in the centre to the wanted aspect and resized (bicubic, antialiased); transparent
    pixels are laid on white unless channels=4.

    Other arguments:
        span: values of deep pixels (more than 8 bits, signed, float) that become 0 and 255; by `common_span` of this
            image unless given.

    Raises:
        BrokenImage: (convert=False) it is in colour where grey is expected.
    """
    if not convert and channels == 1 and has_colour(opened):
        raise BrokenImage(f"{name} has 3 channels (it is in colour) and 1 (grey) is expected; convert it first")
    picture = _to_mode(ImageOps.exif_transpose(opened), MODES[channels], span)
    if size is not None and picture.size != (size[1], size[0]):
        picture = ImageOps.fit(picture, (size[1], size[0]), method=Image.Resampling.BICUBIC)
    pixels = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(picture.height, picture.width, channels)).permute(2, 0, 1).contiguous()


def is_deep(picture: Image.Image) -> bool:
    """Whether pixels have more than 8 bits, a sign or a fraction."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;")


def extremes(picture: Image.Image) -> tuple[float, float, bool]:
    """Least and greatest pixel of a deep image, and whether pixels are floats.

    Raises:
        ValueError: a pixel that is not finite.
    """
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("a pixel is not finite")
    return low, high, picture.mode == "F"


def common_span(found: Sequence[tuple[float, float, bool]]) -> Span:
    """The values that become 0 and 255 in every deep image of a data set, from the `extremes` of each.

    Whole numbers without a sign go from 0 to the end of the least depth (8, 10, 12, 14, 16 bits) that holds them all,
    floats within [0, 1] from 0 to 1, all else from its least to its greatest value.
    """
    low, high = min(f[0] for f in found), max(f[1] for f in found)
    if any(f[2] for f in found):
        return (0.0, 1.0) if low >= 0 and high <= 1 else (low, max(high, low + 1e-12))
    if low < 0:
        return low, max(high, low + 1)
    return 0.0, next((top for top in TOPS if high <= top), high)


def has_colour(picture: Image.Image) -> bool:
    """Whether the channels of an image differ."""
    if picture.mode in ("1", "L", "LA", "La") or is_deep(picture):
        return False
    red, green, blue = (np.asarray(band) for band in _plain(picture).convert("RGB").split())
    return not (np.array_equal(red, green) and np.array_equal(green, blue))


def _to_mode(picture: Image.Image, mode: str, span: Span | None) -> Image.Image:
    picture = _plain(picture)
    if is_deep(picture):
        found = extremes(picture)
        low, high = span or common_span([found])
        unit = (np.asarray(picture).astype(np.float64) - low) / (high - low)
        picture = Image.fromarray(np.round(255 * unit.clip(0, 1)).astype(np.uint8))
    if mode != "RGBA" and (picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert(mode)


def _plain(picture: Image.Image) -> Image.Image:
    """An image that Pillow can convert: CIELAB it leaves to its colour management."""
    if picture.mode != "LAB":
        return picture
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(picture, to_rgb)
    assert converted is not None
    return converted


_open = threading.Lock()
_inside, _limit = 0, Image.MAX_IMAGE_PIXELS


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Let pictures of any size through, without a warning or a refusal; Pillow's limit is back when the last thread leaves."""
    global _inside, _limit
    with _open:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _open:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit
