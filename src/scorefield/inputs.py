"""What users hand over, as tensors: arrays, data frames and numbers; refused by name where it is not finite."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.differentiate import ordinary


def tensor_of(value: Any, name: str, hint: str = "", device: str | None = None) -> Tensor:
    """A tensor of what holds numbers: a tensor, a NumPy array, a data frame, a number or sequences of them.

    Main arguments:
        device: of what is no tensor yet, torch's default unless given.

    Raises:
        ValueError: no numbers, or some that are NaN or infinite; `hint` says what to do about those.
    """
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
            ready = np.require(array, requirements=["C", "W"]).reshape(
                array.shape
            )  # torch warns of what it may not write
            value = torch.as_tensor(ready, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}: {type(value).__name__} holds no numbers; give a tensor or an array") from None
    tensor: Tensor = ordinary(value)
    _check_entries(tensor, name, hint)
    return tensor


def as_tensor(value: Any, name: str = "x") -> Tensor:
    """A tensor as it is, and anything else by `tensor_of`."""
    return value if isinstance(value, Tensor) else tensor_of(value, name)


def check_event(x: Tensor, shape: tuple[int, ...] | None) -> None:
    """Refuse a batch (B, *) whose items are of another shape.

    Raises:
        ValueError: they are.
    """
    if x.ndim == 0 or tuple(x.shape[1:]) != shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; this model is over items of shape {shape}, (B, *)")


def _check_entries(value: Tensor, name: str, hint: str = "") -> None:
    """Refuse NaN and infinity, which an average or a solve would spread over everything.

    Raises:
        ValueError: some entries are not finite.
    """
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return
    bad = int((~torch.isfinite(value)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {value.numel()} entries are NaN or infinite{hint}")


def said(value: Any) -> str:
    """A dataclass in one short line: a tensor of more than four entries by its shape."""

    def word(part: Any) -> str:
        if not isinstance(part, Tensor):
            return repr(part)
        return repr(part.tolist()) if part.numel() <= 4 and not part.is_meta else f"tensor {tuple(part.shape)}"

    parts = ((f.name, getattr(value, f.name)) for f in fields(value) if f.repr)
    return f"{type(value).__name__}({', '.join(f'{name}={word(part)}' for name, part in parts)})"


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of Python, NumPy or torch."""
    return not isinstance(value, str | bytes) and _lies_in(value, lambda v: math.isfinite(float(v)))


def positive(**values: Any) -> None:
    """Refuse what is no positive number by the name of its keyword, NaN and infinity too.

    Raises:
        ValueError: such a value.
    """
    for name, value in values.items():
        if not _lies_in(value, lambda v: 0 < v < math.inf):
            raise ValueError(f"{name}={value!r} is impossible; expected a positive number")


def share(**values: Any) -> None:
    """Refuse what is no number from 0 to 1 by the name of its keyword, NaN too.

    Raises:
        ValueError: such a value.
    """
    for name, value in values.items():
        if not _lies_in(value, lambda v: 0 <= v <= 1):
            raise ValueError(f"{name}={value!r} is impossible; expected a number from 0 to 1")


def _lies_in(value: Any, inside: Callable[[Any], Any]) -> bool:
    try:
        return bool(inside(value))
    except (TypeError, ValueError, RuntimeError):
        return False


def whole(value: Any, name: str, what: str) -> int:
    """A number that counts something, from 1 up.

    Raises:
        ValueError: it is not whole, or not positive.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise ValueError(f"{name}={value!r}: give {what}, a whole number") from None
    if count < 1:
        raise ValueError(f"{name}={count}: at least one is needed ({what})")
    return count
