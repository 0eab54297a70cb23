"""One rule for what belongs to single samples: conditions, operators, hooks, solvers and models follow their samples.

A frozen dataclass names in `per_sample` its fields that have one row for each sample, or one row for all; in `per_event`
those that broadcast with x (B, *), and so have rows only if they have as many dimensions. Its other fields are walked.
What cannot be said so has methods `take(index, ndim)` and `held(ndim)` of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def take(value: T, index: Tensor, ndim: int = 0) -> T:
    """`value` for some of the samples of a batch; what holds nothing for single samples comes back as it is.

    Main arguments:
        index: integers, the samples. ndim: number of dimensions of the batch (B, *), where it is known.

    Raises:
        ValueError: a field has fewer rows than the samples asked for.
    """
    own = _method(value, "take")
    if own is not None:
        taken: T = own(index, ndim)
        return taken
    changed: dict[str, Any] = {}
    for name, part, rows in _parts(value, ndim):
        if rows > 1:
            if index.numel() and int(index.max()) >= rows:
                raise ValueError(
                    f"{name} has {rows} rows but more samples are asked for; give one row, or one for each sample"
                )
            changed[name] = part[index.to(part.device)]
        elif rows == 0 and (part_taken := take(part, index, ndim)) is not part:
            changed[name] = part_taken
    return replace(value, **changed) if changed else value  # type: ignore[type-var]


def held(value: Any, ndim: int = 0) -> int | None:
    """Number of samples that `value` holds conditions for; None where it holds none, or one for all.

    Raises:
        ValueError: two fields are for different numbers of samples.
    """
    own = _method(value, "held")
    if own is not None:
        found: int | None = own(ndim)
        return found
    counts = {}
    for name, part, rows in _parts(value, ndim):
        count = held(part, ndim) if rows == 0 else rows
        if count is not None and count > 1:
            counts[name] = count
    return agreed(counts)


def bound(value: T, shape: tuple[int, ...], interval: tuple[float, float] | None = None) -> T:
    """`value` for events of that shape, where it has something to settle: a method `bind(shape)`.

    Where the model's data lies in a known interval, a method `check_units(shape, interval)` may warn of other units.
    """
    bind = _method(value, "bind")
    settled: T = value if bind is None else bind(shape)
    check = _method(settled, "check_units")
    if check is not None and interval is not None:
        check(shape, interval)
    return settled


def agreed(counts: dict[str, int]) -> int | None:
    """The one number of samples that several conditions are for.

    Raises:
        ValueError: they differ.
    """
    if len(set(counts.values())) > 1:
        words = ", ".join(f"{name} is for {count} samples" for name, count in counts.items())
        raise ValueError(f"{words}: give one row for all, or as many as there are samples")
    return next(iter(counts.values()), None)


def _parts(value: Any, ndim: int) -> Iterator[tuple[str, Any, int]]:
    """(name, field, number of rows) of a dataclass; 0 rows for fields that are to be walked."""
    if not is_dataclass(value) or isinstance(value, type):
        return
    for field in fields(value):
        part = getattr(value, field.name)
        if not field.init:
            continue
        if not isinstance(part, Tensor):
            yield field.name, part, 0
        elif field.name in getattr(value, "per_sample", ()):
            yield field.name, part, part.shape[0] if part.ndim else 1
        elif field.name in getattr(value, "per_event", ()):
            yield field.name, part, part.shape[0] if part.ndim >= max(ndim, 1) else 1


def _method(value: Any, name: str) -> Any:
    """A method of that name that a class of ours or of a user's has; tensors and arrays have a `take` of another kind."""
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return None
    return getattr(value, name, None) if callable(getattr(type(value), name, None)) else None
