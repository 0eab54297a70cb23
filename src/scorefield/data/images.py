"""Folders of images: nested, of mixed sizes and modes, rotated as their EXIF data says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.errors import InputError, ScorefieldWarning, cannot_read

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
CACHE_BYTES = (
    2**29
)  # decoded items are kept up to this size in all: a small set is then decoded once, not once an epoch


class BrokenImage(InputError):
    """A file that is not an image, or an image that is cut off."""


def images(
    folder: str | Path,
    size: int | tuple[int, int] = 32,
    *,
    channels: int = 3,
    labels: bool = False,
    skip_broken: bool = False,
    convert: bool = True,
) -> Dataset:
    """All images in a folder and its sub-folders as uint8 (channels, height, width), in the order of their paths.

    Images are turned upright (EXIF), cropped in the centre to the wanted aspect and resized (bicubic, antialiased).
    16-bit images are reduced to 8 bits; transparent pixels are laid on white unless channels=4.

    Main arguments:
        size: height and width, or one number for both.
        channels: 1 grey, 3 colour, 4 colour with opacity.
        labels: the class of an image is the sub-folder of `folder` it is in.

    Other arguments:
        skip_broken: leave out files that are not images, with a warning, instead of stopping. One that turns out to be
            cut off only when it is decoded is replaced by the next image.
        convert: turn colour images to grey when channels=1; False refuses them.

    Raises:
        InputError: no such folder, no image in it, a broken image, or (labels=True) an image outside every sub-folder.
    """
    root = Path(folder)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InputError(f"size={size} is impossible; give a positive number of pixels")
    if channels not in MODES:
        raise InputError(f"channels={channels} is unknown; choose 1 (grey), 3 (colour) or 4 (colour with opacity)")
    paths = _checked(root, _image_files(root), skip_broken)
    classes, targets = _classes(root, paths) if labels else ((), None)
    shape = (channels, height, width)
    load = _cached(root, paths, shape, skip_broken, convert)
    return Dataset(
        name=str(folder),
        shape=shape,
        size=len(paths),
        read=lambda indices: torch.stack([load(i) for i in indices]),
        levels=256,
        labels=targets,
        classes=classes,
        names=lambda i: str(paths[i].relative_to(root)),
        slow=True,
    )


def read_image(path: str | Path, channels: int, size: tuple[int, int] | None = None, convert: bool = True) -> Tensor:
    """One image file as uint8 (channels, height, width), treated as by `images`; size=None keeps its own.

    Raises:
        InputError: the file is missing or unreadable.
        BrokenImage: it is not an image, is cut off, or (convert=False) is in colour where grey is expected.
    """
    file = Path(path)
    try:
        with quiet_pillow(), Image.open(file) as opened:
            return image_tensor(opened, channels, size, convert, str(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise cannot_read(path, error) from error
    except BrokenImage:
        raise
    except Exception as error:  # a damaged file can raise anything from within a decoder
        raise BrokenImage(f"{path} {_fault(file, error)}") from error


def image_tensor(
    opened: Image.Image, channels: int, size: tuple[int, int] | None, convert: bool = True, name: str = "image"
) -> Tensor:
    """A Pillow image as uint8 (channels, height, width), treated as by `images`; size=None keeps its own.

    Raises:
        BrokenImage: (convert=False) it is in colour where grey is expected.
    """
    if not convert and channels == 1 and _has_colour(opened):
        raise BrokenImage(f"{name} has 3 channels (it is in colour) and 1 (grey) is expected; convert it first")
    picture = _to_mode(ImageOps.exif_transpose(opened), MODES[channels])
    if size is not None and picture.size != (size[1], size[0]):
        picture = ImageOps.fit(picture, (size[1], size[0]), method=Image.Resampling.BICUBIC)
    pixels = np.array(picture, dtype=np.uint8)
    return torch.from_numpy(pixels.reshape(picture.height, picture.width, channels)).permute(2, 0, 1).contiguous()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Let pictures of any size through without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _has_colour(picture: Image.Image) -> bool:
    if picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;"):
        return False
    red, green, blue = (np.asarray(band) for band in picture.convert("RGB").split())
    return not (np.array_equal(red, green) and np.array_equal(green, blue))


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow clips 16-bit values at 255 instead of scaling them.
        wide = np.asarray(picture).astype(np.float64)
        top = 65535.0 if wide.max(initial=0.0) > 255 else 255.0
        picture = Image.fromarray(np.round(wide.clip(0, top) * (255 / top)).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("float pixels of unknown range")
    if mode != "RGBA" and (picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert(mode)


def _image_files(root: Path) -> list[Path]:
    if not root.exists():
        raise InputError(f"cannot read {root}: it does not exist; check the path")
    if not root.is_dir():
        raise InputError(f"cannot read {root}: it is not a folder; give a folder of images")

    def stop(error: OSError) -> None:
        raise cannot_read(error.filename or root, error) from error

    def walk() -> Iterator[Path]:
        for place, folders, files in os.walk(root, onerror=stop, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            yield from (Path(place) / f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith("."))

    found = sorted(walk())
    if not found:
        raise InputError(f"cannot read {root}: no images in it or its sub-folders; looked for {', '.join(SUFFIXES)}")
    return found


def _checked(root: Path, paths: list[Path], skip_broken: bool) -> list[Path]:
    """The files whose headers are those of an image; looking at all of them first spares a failure hours later."""
    with ThreadPoolExecutor(8) as pool:
        faults = list(pool.map(_header_fault, paths))
    broken = [(p, f) for p, f in zip(paths, faults, strict=True) if f]
    if broken and not skip_broken:
        path, fault = broken[0]
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise BrokenImage(
            f"cannot read {root}: {path.relative_to(root)} {fault}{more}; remove it or skip broken files (skip_broken)"
        )
    if len(broken) == len(paths):
        raise BrokenImage(f"cannot read {root}: none of its {len(paths)} image files is an image")
    if broken:
        message = f"{root}: {len(broken)} of {len(paths)} files left out, first {broken[0][0].relative_to(root)}"
        warnings.warn(message, ScorefieldWarning, stacklevel=3)
    return [p for p, f in zip(paths, faults, strict=True) if not f]


def _header_fault(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path):
                return ""
    except Exception as error:  # a damaged file can raise anything from within a decoder
        return _fault(path, error)


def _fault(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "cannot be opened (permission denied)"
    try:
        with open(path, "rb") as file:
            start = file.read(6)
    except OSError as reading:
        return f"cannot be opened ({reading.strerror})"
    if not start:
        return "is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image (starts with {start.decode('ascii', 'backslashreplace')!r})"
    return f"is damaged ({' '.join(str(error).split()) or type(error).__name__})"


def _cached(
    root: Path, paths: Sequence[Path], shape: tuple[int, int, int], skip_broken: bool, convert: bool
) -> Callable[[int], Tensor]:
    channels, height, width = shape
    small = len(paths) * channels * height * width <= CACHE_BYTES
    kept: dict[int, Tensor] = {}

    def decode(i: int) -> Tensor:
        for attempt in range(len(paths)):
            path = paths[(i + attempt) % len(paths)]
            try:
                return read_image(path, channels, (height, width), convert)
            except BrokenImage as error:
                if not skip_broken:
                    remedy = "" if ";" in str(error) else "; remove it or skip broken files (skip_broken)"
                    raise BrokenImage(f"cannot read {root}: {error}{remedy}") from error
        raise BrokenImage(f"cannot read {root}: none of its {len(paths)} image files is an image")

    def load(i: int) -> Tensor:
        item = kept.get(i)
        if item is None:
            item = decode(i)
            if small:
                kept[i] = item
        return item

    return load


def _classes(root: Path, paths: Sequence[Path]) -> tuple[tuple[str, ...], Tensor]:
    parts = [p.relative_to(root).parts for p in paths]
    for path, part in zip(paths, parts, strict=True):
        if len(part) < 2:
            raise InputError(
                f"{path} is outside every sub-folder of {root}, so it has no class; move it or drop labels"
            )
    classes = sorted({part[0] for part in parts})
    index = {name: i for i, name in enumerate(classes)}
    return tuple(classes), torch.tensor([index[part[0]] for part in parts])
