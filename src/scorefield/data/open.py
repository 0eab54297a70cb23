"""Data named on a command line, checked against a shape."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from scorefield.data.arrays import array, digits
from scorefield.data.dataset import Dataset, Range
from scorefield.data.images import SUFFIXES, images, read_image
from scorefield.data.libraries import huggingface, sequence
from scorefield.data.shards import REMOTE, shards
from scorefield.data.tables import table
from scorefield.errors import InputError, ScorefieldError, closest

FORMS = "a folder of images, a .npy, .npz or .csv file, .tar shards, torchvision:NAME, hf:NAME, or 'digits'"


def as_dataset(data: Any, levels: int | None = None) -> Dataset:
    """A Dataset from one, from a tensor, array or list (N, *), a pandas table, a path or name as on the command line, a
    Hugging Face dataset, or anything with a length and an index that gives x or (x, label), x being a tensor or a Pillow
    image, as torch and torchvision datasets do.

    Float values are taken as they are; integers have `levels`, where that is given, else 256 if they are uint8.

    Raises:
        InputError: something else, or nothing in it.
    """

    if isinstance(data, Dataset):
        return _not_empty(data)
    if isinstance(data, Tensor | np.ndarray):
        return array(data, levels=levels if _is_whole(data) else None)
    if isinstance(data, str | Path):
        return open_data(str(data))
    if hasattr(data, "to_numpy") and (hasattr(data, "columns") or hasattr(data, "index")):
        return table(data)
    if isinstance(data, list | tuple) and data and isinstance(data[0], list | int | float | np.number):
        return _of_list(data)
    if hasattr(data, "features") and hasattr(data, "column_names"):
        return huggingface(data)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(
            f"data is a {type(data).__name__}; give a Dataset, an array or table (N, *), a path, or a sequence of tensors"
        )
    return sequence(data)


def _is_whole(data: Tensor | np.ndarray) -> bool:
    return not torch.is_floating_point(data) if isinstance(data, Tensor) else data.dtype.kind in "iu"


def _not_empty(data: Dataset) -> Dataset:
    if not data.size:
        raise InputError(f"{data.name} is empty; give at least one item")
    return data


def _of_list(data: Sequence[Any]) -> Dataset:
    try:
        return array(np.asarray(data, dtype=np.float32))
    except (ValueError, TypeError):
        raise InputError("data is a list whose items are not numbers of one shape; give an array (N, *)") from None


def open_data(
    source: str,
    shape: tuple[int, ...] | None = None,
    *,
    train: bool = True,
    levels: int | None = None,
    range: Range | None = None,
    labels: bool = False,
    convert: bool = False,
    skip_broken: bool = False,
    span: Range | None = None,
) -> Dataset:
    """The dataset called `source`.

    "digits"                            the embedded digits
    folder/                             a folder of images, nested
    x.npy, x.npz                        an array
    x.csv, x.tsv                        a table of numbers, standardised; with labels, its column of classes apart
    x.png                               one image
    shards/{000..127}.tar               tar shards; also http(s) addresses, and "*"
    torchvision:CIFAR10?root=data       a class of torchvision.datasets with its arguments
    hf:ylecun/mnist?split=train         a Hugging Face dataset, or a folder that save_to_disk wrote; also image=, label=
                                        (columns) and config=

    Main arguments:
        shape: event shape that the items must have; images are resized to it, arrays are not. None takes what comes.
        train: which part of the digits.

    Other arguments:
        levels, range: see `array`.
        labels: whether the classes are wanted (the sub-folders of a folder).
        convert: turn colour images to grey where grey is expected.
        skip_broken, span: see `images`.

    Raises:
        InputError: no such data, or a shape that does not fit.
    """
    path = Path(source)
    sides = shape if shape and len(shape) == 3 else None
    channels, height, width = sides or (3, 32, 32)
    if source == "digits":
        data = digits(train)
    elif source.startswith(("torchvision:", "hf:")):
        data = _library(source, sides, convert)
    elif _is_archive(source):
        data = shards(
            source, (height, width), channels=channels, labels=labels, skip_broken=skip_broken, convert=convert
        )
    elif source.startswith(REMOTE) or not path.exists():
        raise InputError(f"cannot read {source}: it does not exist; give {FORMS}")
    elif path.suffix.lower() in (".csv", ".tsv"):
        data = table(path, labels=labels)
    elif path.suffix.lower() in (".npy", ".npz"):
        data = array(path, levels=levels, range=range, image=sides is not None)
    elif _is_text(path):
        raise InputError(
            f"{source} is text, which is learned by its characters: scorefield train text --data {source} "
            "(sf.data.states.text in Python); rows of numbers go into a .csv file"
        )
    elif shape and not sides:
        raise InputError(f"{source} holds images, and items of shape {shape} are expected; give a .npy file of them")
    else:
        rest = {"labels": labels, "skip_broken": skip_broken, "convert": convert}
        data = _pictures(source, (height, width), channels=channels, span=span, **rest)
    if shape is not None and data.shape != shape:
        raise InputError(f"{source} {_mismatch(data.shape, shape)}")
    return data


def _is_archive(source: str) -> bool:
    return (source.partition("?")[0] if source.startswith(REMOTE) else source).endswith(".tar")


def _is_text(path: Path) -> bool:
    """Whether a file that has no name of an image begins with words."""
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return False
    try:
        with path.open("rb") as file:
            start = file.read(1024).decode("utf-8")
    except UnicodeDecodeError as error:  # bytes of another kind, or a letter that the end has cut
        return error.start > 1000
    except OSError:
        return False
    return bool(start) and all(c.isprintable() or c.isspace() for c in start)


def _pictures(source: str, size: tuple[int, int], *, channels: int, span: Range | None, **options: Any) -> Dataset:
    """A folder of images, or one image."""
    path = Path(source)
    if path.is_dir():
        return images(path, size, channels=channels, span=span, **options)
    raw = read_image(path, channels, size, options["convert"], span)
    return replace(array(raw.unsqueeze(0), name=source), names=lambda _: source)


def _library(source: str, sides: tuple[int, ...] | None, convert: bool) -> Dataset:
    options = {"convert": convert} | ({"size": sides[1:], "channels": sides[0]} if sides else {})
    kind, _, rest = source.partition(":")
    name, _, query = rest.partition("?")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise InputError(f"{source} cannot be understood; write {kind}:NAME?key=value&key=value") from None
    if not name:
        raise InputError(f"{source} names no dataset; write {kind}:NAME?key=value")
    return (_torchvision if kind == "torchvision" else _hub)(source, name, given, options)


def _torchvision(source: str, name: str, given: Mapping[str, str], options: Mapping[str, Any]) -> Dataset:
    try:
        known = importlib.import_module("torchvision.datasets")
    except ImportError:
        raise InputError(f"{source} needs torchvision; install it for your version of torch") from None
    names = list(getattr(known, "__all__", ()))
    if name not in names:
        raise InputError(f"{source}: torchvision has no dataset {name!r}{closest(name, names)}")
    try:
        opened = getattr(known, name)(**{key: _value(text) for key, text in given.items()})
    except Exception as error:  # each dataset complains in its own way
        raise InputError(f"cannot read {source}: {' '.join(str(error).split())}; check its arguments") from error
    return sequence(opened, name=source, **options)


def _hub(source: str, name: str, given: Mapping[str, str], options: Mapping[str, Any]) -> Dataset:
    for key in given:
        if key not in (known := ("split", "image", "label", "config")):
            raise InputError(f"{source}: unknown option {key!r}{closest(key, known)}")
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise InputError(f"{source} needs the package datasets; install scorefield[hub]") from None
    split = given.get("split", "train")
    try:
        if Path(name).is_dir() and any((Path(name) / f).exists() for f in ("state.json", "dataset_dict.json")):
            opened = library.load_from_disk(name)
            opened = opened[split] if hasattr(opened, "keys") and split in opened else opened
        else:
            opened = library.load_dataset(name, given.get("config"), split=split)
    except Exception as error:  # network, permissions, formats: all in their own way
        raise InputError(f"cannot read {source}: {' '.join(str(error).split())}; check name and split") from error
    try:
        return huggingface(opened, image=given.get("image"), label=given.get("label"), name=source, **options)
    except ScorefieldError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {source}: {' '.join(str(error).split())}; check its columns") from error


def _value(text: str) -> bool | int | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("-").isdigit() else text


def _mismatch(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(found) == len(wanted) == 3 and found[0] != wanted[0]:
        return f"has {found[0]} channels (items of shape {found}) and {wanted[0]} are expected; convert it first"
    return f"has items of shape {found} and {wanted} is expected; reshape or resize them first"
