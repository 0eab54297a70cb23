"""Classes of items, in every form in which people keep them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.errors import InputError

MANY = 100_000
"""A label from which on few items cannot have so many classes: it is a number of another kind, such as a name of an item."""


def class_labels(values: Any, size: int, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Classes as (N,) int64, and their names where they were words.

    Main arguments:
        values: whole numbers from 0 (also as floats or booleans), words, or one-hot rows (N, K).
        size: N. name: what messages call the data.

    Raises:
        InputError: another number of them, a missing one, a negative or fractional one, or rows that are not one-hot.
    """
    found = _array(values)
    if found.ndim == 2 and found.shape[1] > 1 and len(found) == size and found.dtype.kind in "biuf":
        return _one_hot(found, name), ()
    found = found.reshape(len(found), -1)[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if found.shape != (size,):
        raise InputError(
            f"labels of {name} have shape {found.shape} and dtype {found.dtype}; expected {size} integers or words"
        )
    found = _of_one_kind(found, name) if found.dtype.kind == "O" else found
    if found.dtype.kind in "US":
        names, index = np.unique(found.astype(str), return_inverse=True)
        return torch.from_numpy(index.astype(np.int64)), tuple(str(w) for w in names)
    return _whole_numbers(found, name), ()


def _one_hot(rows: np.ndarray, name: str) -> Tensor:
    bad = np.flatnonzero(~(((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)))
    if len(bad):
        raise InputError(f"the label of item {bad[0]} of {name} is not one-hot; give one class an item")
    return torch.from_numpy(rows.argmax(1).astype(np.int64))


def _of_one_kind(found: np.ndarray, name: str) -> np.ndarray:
    """Objects as an array of words or of numbers."""
    missing = [i for i, v in enumerate(found) if v is None or v != v]
    if missing:
        raise InputError(f"item {missing[0]} of {name} has no label; give it one or leave it out")
    words = any(isinstance(v, str) for v in found)
    if not words and not all(isinstance(v, int | float | np.number) for v in found):
        raise InputError(f"labels of {name} are of several kinds; expected whole numbers from 0, or words")
    return np.array([str(v) for v in found]) if words else found.astype(float)


def _whole_numbers(found: np.ndarray, name: str) -> Tensor:
    if found.dtype.kind not in "biuf":
        raise InputError(f"labels of {name} hold {found.dtype}; expected whole numbers from 0, or words")
    for fault, what in ((~np.isfinite(found), "no label"), (found != np.floor(found), "a fractional label")):
        if fault.any():
            i = int(fault.argmax())
            raise InputError(f"item {i} of {name} has {what} ({found[i]}); expected whole numbers from 0, or words")
    if (found < 0).any():
        i = int((found < 0).argmax())
        raise InputError(f"item {i} of {name} has the label {int(found[i])}; expected whole numbers from 0, or words")
    if len(found) and found.max() >= max(MANY, 10 * len(found)):
        i, count = int(found.argmax()), int(found.max())
        raise InputError(
            f"item {i} of {name} has the label {count}, which would be one of {count + 1:,} classes of {len(found):,} items; "
            "number the classes from 0, or give words"
        )
    return torch.from_numpy(found.astype(np.int64))


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, Sequence) and not isinstance(values, str):
        values = [v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in values]
        if any(v is None for v in values):
            kept: np.ndarray = np.empty(len(values), dtype=object)
            kept[:] = values
            return kept
    try:
        return np.asarray(values)
    except ValueError:  # rows of different lengths
        return np.asarray(list(values), dtype=object)


def with_classes_of(held_out: Dataset, data: Dataset) -> Dataset:
    """Held-out data whose classes have the numbers that they have in the training data.

    Raises:
        InputError: no labels where the training data has some, or a class that the training data lacks.
    """
    if data.labels is None:
        return held_out
    if held_out.labels is None:
        raise InputError(f"{held_out.name} has no labels and {data.name} has; give both or neither")
    if not held_out.classes or not data.classes or held_out.classes == data.classes:
        return held_out
    number = {name: i for i, name in enumerate(data.classes)}
    used = held_out.labels.unique().tolist()
    for i in used:
        if held_out.classes[i] not in number:
            raise InputError(
                f"{held_out.name} has the class {held_out.classes[i]!r}, which {data.name} lacks; "
                "remove it, or train on it"
            )
    table = torch.tensor([number.get(name, -1) for name in held_out.classes], device="cpu")
    return replace(held_out, labels=table[held_out.labels], classes=data.classes)
