"""Datasets of other libraries: torch and torchvision (items by index), Hugging Face (tables with columns)."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.labels import class_labels
from scorefield.data.pixels import MODES, image_tensor
from scorefield.errors import InputError, ScorefieldWarning, closest

IMAGE_COLUMNS = ("image", "img", "pixel_values", "images", "x", "data")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


def sequence(
    source: Any,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    convert: bool = True,
    name: str = "data",
) -> Dataset:
    """Items by index, as torch and torchvision datasets hand them out: x or (x, label, ...).

    Main arguments:
        source: anything with a length and an index; x is a tensor or array, uint8 or float, or a Pillow image.
        size, channels: of Pillow images, which are turned upright, cropped and resized as by `images`; those of the
            first one unless given.

    Other arguments:
        convert: turn colour images to grey when channels=1; False refuses them.
        name: what messages call it.

    Raises:
        InputError: no items, items of different shapes, or something else than the above.
    """
    if not len(source):
        raise InputError(f"{name} is empty; give at least one item")

    lock = threading.Lock()  # foreign code may hold a file or a connection that two threads must not share

    def pair(i: int) -> tuple[Any, Any]:
        with lock:
            item = source[i]
        if isinstance(item, tuple | list):
            return item[0], item[1] if len(item) > 1 else None
        return item, None

    with kept_randomness():
        first, label = pair(0)
    convert_one, shape, levels = _converter(first, size, channels, convert, name)
    labels, classes = None, tuple(str(c) for c in getattr(source, "classes", ()) or ())
    if label is not None:
        labels, words = _targets(source, lambda i: pair(i)[1], name)
        classes = classes or words

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([convert_one(pair(i)[0], i) for i in indices])

    drawn = _draws(lambda: read([0]))
    return Dataset(
        name, shape, len(source), read, levels=levels, labels=labels, classes=classes, slow=True, random=drawn
    )


def huggingface(
    source: Any,
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    convert: bool = True,
    name: str | None = None,
) -> Dataset:
    """A `datasets.Dataset` with a column of images (or of arrays of one shape) and perhaps one of labels.

    Main arguments:
        image: the column with the data; the first column of images unless given.
        label: the column with classes; one of usual name unless given.
        size, channels, convert, name: as in `sequence`.

    Raises:
        InputError: no such column, a dataset without length (streamed), no rows, or rows of different shapes.
    """
    name = name or str(getattr(getattr(source, "info", None), "dataset_name", None) or "data")
    if hasattr(source, "keys"):
        raise InputError(f"{name} has the splits {', '.join(map(str, source.keys()))}; choose one (split=...)")
    if not hasattr(source, "__len__"):
        raise InputError(f"{name} is streamed and has no length; load it without streaming, or store it as tar shards")
    if not len(source):
        raise InputError(f"{name} is empty; give at least one row")
    kinds = {column: type(feature).__name__ for column, feature in source.features.items()}
    data = _column(image, kinds, [c for c, kind in kinds.items() if kind == "Image"], IMAGE_COLUMNS, name)
    if data is None:
        raise InputError(f"{name} has no column of images; name one of {', '.join(kinds)} (image=...)")
    pictured = kinds[data] == "Image"
    wanted = source.select_columns([data]).with_format(None if pictured else "numpy")
    convert_one, shape, levels = _converter(wanted[0][data], size, channels, convert, name)

    def read(indices: Sequence[int]) -> Tensor:
        rows = wanted[list(indices)][data]
        return torch.stack([convert_one(row, i) for i, row in zip(indices, rows, strict=True)])

    target = _column(label, kinds, [c for c, kind in kinds.items() if kind == "ClassLabel"], LABEL_COLUMNS, name)
    labels, classes = (None, ()) if target is None else class_labels(list(source[target]), len(source), name)
    classes = tuple(getattr(source.features[target], "names", ())) or classes if target is not None else ()
    return Dataset(name, shape, len(source), read, levels=levels, labels=labels, classes=classes, slow=True)


def _targets(source: Any, label: Callable[[int], Any], name: str) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels and their names; none, with a warning, where they are no classes, which matters only to networks with some."""
    known = getattr(source, "targets", None)  # torchvision's; reading every item for its label would be slow
    if known is None or len(known) != len(source):
        with kept_randomness():
            known = [label(i) for i in range(len(source))]
    try:
        return class_labels(known, len(source), name)
    except InputError as error:
        warnings.warn(f"{error}; going on without labels", ScorefieldWarning, stacklevel=3)
        return None, ()


def _draws(read: Callable[[], Tensor]) -> bool:
    """Whether reading draws from a global generator of random numbers, or gives something else the second time."""
    with kept_randomness():
        before = _states()
        first = read()
        if _states() != before:
            return True
        return bytes(read().numpy().tobytes()) != bytes(first.numpy().tobytes())


def _states() -> tuple[bytes, str, int]:
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), repr(numpy_state), hash(random.getstate())


@contextmanager
def kept_randomness() -> Iterator[None]:
    """Leave the global generators of torch (on the CPU), NumPy and Python as they were."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def seed_all(seed: int) -> None:
    """Start the global generators of torch (on the CPU), NumPy and Python from a seed."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def _converter(
    first: Any, size: int | tuple[int, int] | None, channels: int | None, convert: bool, name: str
) -> tuple[Callable[[Any, int], Tensor], tuple[int, ...], int | None]:
    """How to make a raw tensor of an item that is like the first one; its shape; its number of levels."""
    if isinstance(first, Image.Image):
        channels = channels or {"1": 1, "L": 1, "I;16": 1, "I": 1}.get(first.mode, 3)
        if channels not in MODES:
            raise InputError(f"channels={channels} is unknown; choose 1 (grey), 3 (colour) or 4 (colour with opacity)")
        frame = (size, size) if isinstance(size, int) else size
        shape = tuple(image_tensor(first, channels, frame).shape)

        def picture(item: Any, i: int) -> Tensor:
            if not isinstance(item, Image.Image):
                raise InputError(f"item {i} of {name} is a {type(item).__name__}; the first is an image")
            found = image_tensor(item, channels, frame, convert, f"item {i} of {name}")
            if found.shape != shape:
                raise InputError(f"item {i} of {name} has shape {tuple(found.shape)}, the first {shape}; give a size")
            return found

        return picture, shape, 256
    try:
        value = torch.as_tensor(first)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"items of {name} are of type {type(first).__name__}; give tensors, arrays or Pillow images"
        ) from None
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise InputError(f"items of {name} have dtype {value.dtype}; give uint8 or float tensors")

    def tensor(item: Any, i: int) -> Tensor:
        found = torch.as_tensor(item)
        if found.shape != value.shape:
            raise InputError(
                f"item {i} of {name} has shape {tuple(found.shape)}; the first has {tuple(value.shape)}; "
                "make them equal"
            )
        return found

    return tensor, tuple(value.shape), 256 if value.dtype == torch.uint8 else None


def _column(given: str | None, kinds: dict[str, str], typed: list[str], usual: Sequence[str], name: str) -> str | None:
    if given is not None:
        if given not in kinds:
            raise InputError(f"{name} has no column {given!r}{closest(given, kinds)}")
        return given
    return next(iter([*typed, *(c for c in usual if c in kinds)]), None)
