"""Folders of images: nested, of mixed sizes and modes, rotated as their EXIF data says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.pixels import MODES, BrokenImage, Span, common_span, extremes, image_tensor, is_deep, quiet_pillow
from scorefield.errors import InputError, ScorefieldWarning, cannot_read

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm")
CACHE_BYTES = (
    2**29
)  # decoded items are kept up to this size in all: a small set is then decoded once, not once an epoch


def images(
    folder: str | Path,
    size: int | tuple[int, int] = 32,
    *,
    channels: int = 3,
    labels: bool = False,
    skip_broken: bool = False,
    convert: bool = True,
    span: Span | None = None,
) -> Dataset:
    """All images in a folder and its sub-folders as uint8 (channels, height, width), in the order of their paths.

    Images are turned upright (EXIF), cropped in the centre to the wanted aspect and resized (bicubic, antialiased).
    Deep pixels (10 to 16 bits, signed, float) are brought to 8 bits by one rule for the whole folder (`common_span`), which
    is told; transparent pixels are laid on white unless channels=4.

    Main arguments:
        size: height and width, or one number for both.
        channels: 1 grey, 3 colour, 4 colour with opacity.
        labels: the class of an image is the sub-folder of `folder` it is in.

    Other arguments:
        skip_broken: leave out files that are not images, with a warning, instead of stopping. One that turns out to be
            cut off only when it is decoded is replaced by the next image.
        convert: turn colour images to grey when channels=1; False refuses them.
        span: values of deep pixels that become 0 and 255, in place of the rule; those of a run for its held-out data.

    Raises:
        InputError: no such folder, no image in it, a broken image, or (labels=True) an image outside every sub-folder.
    """
    root = Path(folder)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise InputError(f"size={size} is impossible; give a positive number of pixels")
    if channels not in MODES:
        raise InputError(f"channels={channels} is unknown; choose 1 (grey), 3 (colour) or 4 (colour with opacity)")
    paths, deep = _checked(root, _image_files(root), skip_broken)
    if deep and span is None:
        span = _common_span(root, deep)
    classes, targets = _classes(root, paths) if labels else ((), None)
    shape = (channels, height, width)
    load = _cached(root, paths, shape, skip_broken, convert, span)
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
        span=span,
    )


def read_image(
    path: str | Path,
    channels: int,
    size: tuple[int, int] | None = None,
    convert: bool = True,
    span: Span | None = None,
) -> Tensor:
    """One image file as uint8 (channels, height, width), treated as by `images`; size=None keeps its own.

    Raises:
        InputError: the file is missing or unreadable.
        BrokenImage: it is not an image, is cut off, or (convert=False) is in colour where grey is expected.
    """
    file = Path(path)
    try:
        with quiet_pillow(), Image.open(file) as opened:
            return image_tensor(opened, channels, size, convert, str(path), span)
    except (FileNotFoundError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise cannot_read(path, error) from error
    except (BrokenImage, MemoryError):  # the file is not to blame where memory runs out
        raise
    except Exception as error:  # a damaged file can raise anything from within a decoder
        raise BrokenImage(f"{path} {_fault(file, error)}") from error


def _image_files(root: Path) -> list[Path]:
    if not root.exists():
        raise InputError(f"cannot read {root}: it does not exist; check the path")
    if not root.is_dir():
        raise InputError(f"cannot read {root}: it is not a folder; give a folder of images")

    def stop(error: OSError) -> None:
        raise cannot_read(error.filename or root, error) from error

    def walk(place: Path, above: frozenset[Path]) -> Iterator[Path]:
        # Links are followed, but not to a folder that one is in already.
        above |= {place.resolve()}
        _, folders, files = next(os.walk(place, onerror=stop, followlinks=True))
        yield from (place / f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith("."))
        for folder in folders:
            if not folder.startswith(".") and (place / folder).resolve() not in above:
                yield from walk(place / folder, above)

    found = sorted(walk(root, frozenset()))
    if not found:
        speech = (root / "clean").is_dir() and (root / "noisy").is_dir()
        learned = f"its clean/ and noisy/ recordings are learned by scorefield train speech --data {root}"
        looked = learned if speech else f"looked for {', '.join(SUFFIXES)}"
        raise InputError(f"cannot read {root}: no images in it or its sub-folders; {looked}")
    return found


def _checked(root: Path, paths: list[Path], skip_broken: bool) -> tuple[list[Path], list[Path]]:
    """The files whose headers are those of an image, and those with deep pixels; looking at all of them first spares a
    failure hours later."""
    # One block around all threads: each with its own would put back filters that another has set.
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("ignore")
        heads = list(pool.map(_header, paths))
    broken = [(p, fault) for p, (fault, _, _) in zip(paths, heads, strict=True) if fault]
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
    stacks = [p for p, (_, _, pages) in zip(paths, heads, strict=True) if pages > 1]
    if stacks:
        message = (
            f"{root}: {len(stacks)} files hold several pages, first {stacks[0].relative_to(root)}; one is taken of each"
        )
        warnings.warn(message, ScorefieldWarning, stacklevel=3)
    good = [(p, deep) for p, (fault, deep, _) in zip(paths, heads, strict=True) if not fault]
    return [p for p, _ in good], [p for p, deep in good if deep]


def _header(path: Path) -> tuple[str, bool, int]:
    """What is wrong with an image file, whether its pixels are deep, and the pages of a TIFF."""
    try:
        with quiet_pillow(), Image.open(path) as opened:
            return "", is_deep(opened), getattr(opened, "n_frames", 1) if opened.format == "TIFF" else 1
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything from within a decoder
        return _fault(path, error), False, 1


def _common_span(root: Path, deep: list[Path]) -> Span:
    def look(path: Path) -> tuple[float, float, bool] | None:
        try:
            with quiet_pillow(), Image.open(path) as opened:
                return extremes(opened)
        except MemoryError:
            raise
        except Exception:  # it is told when the item is read
            return None

    with ThreadPoolExecutor(8) as pool:
        found = [value for value in pool.map(look, deep) if value is not None]
    span = common_span(found) if found else (0.0, 255.0)
    if span != (0.0, 255.0):
        few = f"; all of it lies within {min(f[0] for f in found):g} .. {max(f[1] for f in found):g}" if found else ""
        told = f"{root}: pixels from {span[0]:g} to {span[1]:g} of {len(deep)} deep images become 256 levels{few}"
        warnings.warn(told, ScorefieldWarning, stacklevel=3)
    return span


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
    root: Path,
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    skip_broken: bool,
    convert: bool,
    span: Span | None,
) -> Callable[[int], Tensor]:
    channels, height, width = shape
    small = len(paths) * channels * height * width <= CACHE_BYTES
    kept: dict[int, Tensor] = {}

    def decode(i: int) -> Tensor:
        for attempt in range(len(paths)):
            path = paths[(i + attempt) % len(paths)]
            try:
                return read_image(path, channels, (height, width), convert, span)
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
    return tuple(classes), torch.tensor([index[part[0]] for part in parts], device="cpu")
