"""Pictures from the page and to it: pixels, files that commands can read, and tiles of HTML."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.data.images import read_image
from scorefield.errors import InputError
from scorefield.files import atomic_file
from scorefield.plot import image_grid, to_pixels

SIDE = 168
"""Pixels to which the longer side of a small picture is enlarged, at least."""
HEAD = "data:image/png;base64,"


def data_url(picture: Image.Image) -> str:
    """A picture as an address that holds it."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return HEAD + base64.b64encode(content.getvalue()).decode()


def from_data_url(text: str, channels: int) -> Tensor:
    """Pixels (C, H, W), uint8, of such an address.

    Raises:
        InputError: it is none.
    """
    try:
        if not text.startswith(HEAD):
            raise ValueError
        with Image.open(io.BytesIO(base64.b64decode(text[len(HEAD) :]))) as opened:
            pixels = np.array(opened.convert({1: "L", 3: "RGB"}[channels]), np.uint8)
    except MemoryError:
        raise
    except Exception:
        raise InputError("there is no picture yet; draw or upload one") from None
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()


def picture_of(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W), uint8, as a picture."""
    values = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)


def for_pad(pad: str, pixels: Tensor) -> str:
    """What the script of the page takes to put pixels on a pad."""
    _, height, width = pixels.shape
    return json.dumps({pad: {"width": width, "height": height, "picture": data_url(picture_of(pixels))}})


def uploaded(path: str, shape: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Pixels (C, H, W) of an uploaded file, cropped and resized, and a word on what was done to it.

    Raises:
        InputError: it is not a picture; in one line, with the name that it had.
    """
    name = Path(path).name
    try:
        original = read_image(path, shape[0])
        pixels = read_image(path, shape[0], (shape[1], shape[2]))
    except InputError as error:
        raise InputError(f"{str(error).replace(path, name)}; upload a picture, such as a PNG or JPEG file") from error
    before = tuple(original.shape[1:])
    if before == (shape[1], shape[2]):
        return pixels, f"{name} is used as it is"
    return pixels, f"{name} was cropped and resized from {before[1]} x {before[0]} to {shape[2]} x {shape[1]}"


def kept(folder: Path, pixels: Tensor, stem: str) -> str:
    """The path of a file of these pixels (C, H, W), named by what it holds, so that the shown lines stay true."""
    name = hashlib.sha256(pixels.numpy().tobytes() + str(tuple(pixels.shape)).encode()).hexdigest()[:8]
    path = folder / f"{stem}-{name}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            picture_of(pixels).save(file, format="PNG")
    return str(path)


def zoom_for(height: int, width: int, side: int = SIDE) -> int:
    """How often a picture is enlarged, so that small ones can be seen."""
    return max(1, -(-side // max(height, width)))


def tile(x: Tensor, low: float, high: float) -> Image.Image:
    """One image (C, H, W) with values in [low, high]."""
    return picture_of(torch.from_numpy(to_pixels(x.unsqueeze(0), low, high)[0]).permute(2, 0, 1))


def sheet(x: Tensor, low: float, high: float, columns: int | None = None) -> Image.Image:
    """Images (N, C, H, W) in a grid, enlarged."""
    zoom = zoom_for(x.shape[-2], x.shape[-1], 84 if len(x) > 8 else SIDE)
    return image_grid(x, columns, low, high, zoom)


def image_tag(picture: Image.Image, caption: str) -> str:
    """A picture with its alternative text."""
    return f"<img alt='{escape(caption, quote=True)}' src='{data_url(picture)}'>"


def tiles(pictures: Sequence[tuple[str, Image.Image]], width: str = "9rem") -> str:
    """Pictures with captions side by side, as many in a row as fit."""
    figures = [
        f"<figure style='width:{width}'>{image_tag(p, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, p in pictures
    ]
    return f"<div class='sf-tiles'>{''.join(figures)}</div>"


def strip(rows: Sequence[Sequence[tuple[str, Image.Image]]]) -> str:
    """Rows of eight small pictures, one under the other."""
    figures = [
        f"<figure>{image_tag(p, caption or 'the same, denoised')}<figcaption>{escape(caption)}</figcaption></figure>"
        for row in rows
        for caption, p in row
    ]
    return f"<div class='sf-strip'>{''.join(figures)}</div>"


def heat(values: Tensor, limit: float) -> Image.Image:
    """A map (H, W) from 0 (black) over red and orange to `limit` (pale yellow); below 0 it turns blue."""
    unit = (values.double() / limit).clamp(-1, 1)
    warm = unit.clamp_min(0).unsqueeze(-1)
    stops = torch.tensor([[12, 10, 20], [120, 28, 80], [222, 90, 50], [250, 236, 170]], dtype=torch.float64)
    place = (warm * 3).clamp(0, 3 - 1e-9)
    left = place.floor().long().squeeze(-1)
    mix = stops[left] + (place - place.floor()) * (stops[left + 1] - stops[left])
    cold = (-unit).clamp_min(0).unsqueeze(-1)
    mix = mix * (1 - cold) + cold * torch.tensor([70.0, 120.0, 230.0], dtype=torch.float64)
    return Image.fromarray(mix.round().to(torch.uint8).numpy())
