"""Arrays of any dimension: in memory, memory-mapped from .npy, or from .npz; and the embedded digits."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, Range
from scorefield.data.labels import class_labels
from scorefield.errors import InputError, cannot_read, named

TRAIN_DIGITS = 9000


def digits(train: bool = True) -> Dataset:
    """Handwritten digits, 28 x 28 in 256 grey levels, with their labels: 9,000 to train on or 1,000 held out.

    The first 10,000 training images of MNIST (Y. LeCun, C. Cortes, C. J. C. Burges; CC BY-SA 3.0), shuffled once.
    """
    pixels, labels = _digits()
    part = slice(None, TRAIN_DIGITS) if train else slice(TRAIN_DIGITS, None)
    return array(pixels[part], labels=labels[part], name="digits" if train else "held-out digits")


@cache
def _digits() -> tuple[Tensor, Tensor]:
    with resources.files("scorefield.data").joinpath("mnist10k.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        return torch.from_numpy(stored["images"]).unsqueeze(1), torch.from_numpy(stored["labels"]).long()


def _levels_of(dtype: torch.dtype, levels: int | None, name: str) -> int | None:
    """Number of values that integer data takes; None for floats."""
    if dtype.is_floating_point:
        if levels is not None:
            raise InputError(
                f"{name} holds floats, so levels={levels} has no meaning; convert it to integers or drop levels"
            )
        return None
    if levels is None and dtype != torch.uint8:
        raise InputError(f"{name} holds {dtype} integers of unknown range; give levels= or store uint8 or floats")
    return 256 if levels is None else levels


def array(
    source: str | Path | np.ndarray | Tensor,
    *,
    levels: int | None = None,
    range: Range | None = None,
    labels: Any = None,
    image: bool = False,
    key: str | None = None,
    name: str | None = None,
) -> Dataset:
    """Items along the first axis of an array (N, *): a tensor, a NumPy array, or a .npy (memory-mapped) or .npz file.

    Main arguments:
        levels: integer data takes the values 0 .. levels - 1; 256 for uint8.
        range: values of float data that go to the ends of the model's range; None leaves them as they are.
        labels: class of every item, (N,): whole numbers from 0 or words; or one-hot rows (N, K). A .npz may hold them as
            "labels".

    Other arguments:
        image: read (N, H, W) as one channel and (N, H, W, C) as channels last; the result is (C, H, W).
        key: which array of a .npz; needed when it holds several and none is called "images", "x" or "data".
        name: what messages call it.

    Raises:
        InputError: a file that cannot be read, no items, objects instead of numbers, or an impossible range.
    """
    if isinstance(source, str | Path):
        values: Any
        name = name or str(source)
        values, stored_labels = _load(Path(source), key)
        labels = stored_labels if labels is None else labels
    else:
        values = source.detach().cpu() if isinstance(source, Tensor) else source
        if (
            isinstance(values, Tensor) and values.dtype == torch.bfloat16
        ):  # which NumPy, and so a fingerprint, does not know
            values = values.float()
    name = name or "data"
    shape, levels = _checked(values, levels, range, name)
    moved = _image_axes(shape, name) if image else None
    classes = (None, ()) if labels is None else class_labels(labels, shape[0], name)
    return Dataset(
        name=name,
        shape=shape[1:] if moved is None else tuple(1 if a is None else shape[a] for a in moved),
        size=shape[0],
        read=_reader(values, moved, name, levels),
        levels=levels,
        range=range,
        labels=classes[0],
        classes=classes[1],
        slow=isinstance(values, np.memmap),
    )


def _checked(values: Any, levels: int | None, range: Range | None, name: str) -> tuple[tuple[int, ...], int | None]:
    """Shape and levels of an array that can be data."""
    shape, dtype = tuple(int(n) for n in values.shape), _dtype(values, name)
    if len(shape) < 2 or not shape[0] or 0 in shape:
        axis = (
            "; add an axis: x[None] is one item, x[:, None] are items of one number"
            if len(shape) == 1 and shape[0]
            else ""
        )
        raise InputError(
            f"{name} has shape {shape}; expected (N, ...) with at least one item of at least one number{axis}"
        )
    if range is not None and not range[0] < range[1]:
        raise InputError(f"range={range} of {name} is empty; give (low, high) with low < high")
    return shape, _levels_of(dtype, levels, name)


def _reader(values: Any, moved: tuple[int | None, ...] | None, name: str, levels: int | None) -> Any:
    def read(indices: Sequence[int]) -> Tensor:
        if isinstance(values, Tensor):
            raw = values[torch.as_tensor(list(indices), device="cpu")]
        else:
            rows = values[np.asarray(indices, dtype=np.int64)]
            wide = (
                rows.dtype.kind == "u" and rows.dtype.itemsize > 1
            )  # torch has little arithmetic for uint16 and above
            raw = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64 if wide else rows.dtype.newbyteorder("=")))
        if moved is not None:
            raw = raw.unsqueeze(1) if moved[0] is None else raw.permute(0, *(a for a in moved if a is not None))
        if levels is not None and (levels < 256 or raw.dtype != torch.uint8):
            if raw.numel() and not 0 <= int(raw.min()) <= int(raw.max()) < levels:
                raise InputError(f"{name} holds values outside 0 .. {levels - 1}; give the right number of levels")
        elif levels is None and not bool(torch.isfinite(raw).all()):
            bad = next(i for i, row in zip(indices, raw, strict=True) if not bool(torch.isfinite(row).all()))
            raise InputError(_not_finite(values, bad, name))
        return raw.contiguous()

    return read


def _not_finite(values: Any, one: int, name: str) -> str:
    """What is wrong with an array of which one item is known to hold NaN or infinity."""
    size = len(values)
    chunks = (np.asarray(values[i : i + 1024]).reshape(min(1024, size - i), -1) for i in range(0, size, 1024))
    bad = np.flatnonzero(np.concatenate([~np.isfinite(chunk).all(1) for chunk in chunks]))
    if len(bad) == 1:
        return f"item {one} of {name} holds a value that is not finite; remove or repair it"
    which = f"{len(bad):,} of {size:,} items of {name}"
    return f"{which} hold values that are not finite ({named(bad.tolist())}); remove or repair them"


def _image_axes(shape: tuple[int, ...], name: str) -> tuple[int | None, ...]:
    """Axes of the stored array that become channel, height, width; None for a missing channel axis."""
    if len(shape) == 3:
        return None, 1, 2
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        return 3, 1, 2
    if len(shape) == 4:
        return 1, 2, 3
    raise InputError(f"{name} has shape {shape}; images are (N, H, W), (N, C, H, W) or (N, H, W, C)")


def _dtype(values: Any, name: str) -> torch.dtype:
    if isinstance(values, Tensor):
        dtype = values.dtype
    else:
        if values.dtype.kind not in "uif":
            raise InputError(f"{name} holds {values.dtype}; expected integers or floats")
        try:
            dtype = torch.from_numpy(np.empty(0, values.dtype.newbyteorder("="))).dtype
        except TypeError as error:
            raise InputError(f"{name} holds {values.dtype}, which torch cannot hold; convert it to float32") from error
    if dtype.is_complex or dtype == torch.bool:
        raise InputError(f"{name} holds {dtype}; expected integers or floats")
    return dtype


def _load(path: Path, key: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        archive = np.load(path, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise InputError(f"cannot read {path}: it is not a .npz archive; rename it to .npy or save it again")
        with archive as stored:
            chosen = _choose([str(n) for n in stored.files], key, path)
            return stored[chosen], stored["labels"] if "labels" in stored.files and chosen != "labels" else None
    except OSError as error:
        raise cannot_read(path, error) from error
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, KeyError, SyntaxError) as error:
        reason = "it holds Python objects" if "object" in str(error).lower() else "it is damaged or not a NumPy file"
        raise InputError(f"cannot read {path}: {reason}; save it with numpy.save or numpy.savez") from error


def _choose(names: list[str], key: str | None, path: Path) -> str:
    if key is not None:
        if key in names:
            return key
        raise InputError(f"{path} holds no array {key!r}; it holds {', '.join(names)}")
    data = [n for n in names if n != "labels"]
    preferred = [n for n in ("images", "x", "data") if n in names] or (data if len(data) == 1 else [])
    if preferred:
        return str(preferred[0])
    raise InputError(f"{path} holds several arrays ({', '.join(names)}); name one with key=, or call it 'images'")
