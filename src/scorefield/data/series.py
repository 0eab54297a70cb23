"""Time series: a CSV file whose rows are states, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.data.tables import number, read_rows
from scorefield.errors import InputError, closest

TIMES = ("time", "t")
"""What a column of times is usually called."""


@dataclass(frozen=True)
class Series:
    """States in the order of time.

    Attributes:
        values: (T, d), float64. columns: names of the entries.
        time: (T,) or None. path: (T,), the number of the path that a row belongs to, or None.
    """

    values: Tensor
    columns: tuple[str, ...]
    time: Tensor | None
    path: Tensor | None


def series(file: str | Path, *, time: str | None = None, path: str | None = None) -> Series:
    """The rows of a CSV file as states of a process.

    Main arguments:
        file: fields apart by comma, semicolon or tab; the first line may name the columns.
        time: column of times; one called time or t unless given. path: column that tells several paths apart, if any.

    Raises:
        InputError: no such file or column, a value that is missing or no number, a column that never changes, or times that
            do not rise.
    """
    columns, rows = read_rows(Path(file))
    usual = next((c for c in columns if c.lower() in TIMES), None)
    at_time, at_path = (_place(columns, name, word, file) for name, word in ((time or usual, "time"), (path, "path")))
    state = [i for i in range(len(columns)) if i not in (at_time, at_path)]
    if not state or len(rows) < 2:
        raise InputError(f"{file} has {len(rows)} rows of {len(state)} columns of states; give at least two of one")
    name, names = str(file), tuple(columns[i] for i in state)
    values = _states(names, [[row[i] for i in state] for row in rows], name, at_time)
    paths = None if at_path is None else _numbered([str(row[at_path]).strip() for row in rows])
    clock = None
    if at_time is not None:
        clock = _clock([row[at_time] for row in rows], columns[at_time], paths, name)
    return Series(values, names, clock, paths)


def _states(names: Sequence[str], rows: Sequence[Sequence[str]], name: str, at_time: int | None) -> Tensor:
    """Fields as numbers, (T, D), each column of which changes."""
    fields = [[_state(v, c, k, name, at_time) for c, v in zip(names, row, strict=True)] for k, row in enumerate(rows)]
    values = torch.tensor(fields, dtype=torch.double, device="cpu")
    for column, constant in zip(names, (values == values[0]).all(0).tolist(), strict=True):
        if constant:
            raise InputError(f"column {column!r} of {name} never changes, so it has no dynamics; leave it out")
    return values


def _numbered(words: Sequence[str]) -> Tensor:
    """The number of each word, in the order in which they come."""
    known = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return torch.tensor([known[word] for word in words], device="cpu")


def _state(field: str, column: str, row: int, name: str, at_time: int | None) -> float:
    """A field as a number; what may be done about a missing one depends on whether a gap would be seen."""
    try:
        return number(field, column, row, name)
    except InputError as error:
        seen = "fill it in, or leave the row out: steps across the gap are not used"
        unseen = "fill it in: without a column of times a row that is left out would be an unseen gap"
        told = unseen if at_time is None else seen
        raise InputError(str(error).replace("fill it in or leave the row out", told)) from error


def _place(columns: Sequence[str], name: str | None, word: str, file: str | Path) -> int | None:
    if name is None:
        return None
    if name not in columns:
        raise InputError(
            f"{file} has no column {name!r} for {word}{closest(name, columns)}; it has {', '.join(columns)}"
        )
    return columns.index(name)


def _clock(fields: Sequence[str], column: str, paths: Tensor | None, name: str) -> Tensor:
    """Times that rise along each path, (T,)."""
    time = torch.tensor(
        [number(field, column, k, name) for k, field in enumerate(fields)], dtype=torch.double, device="cpu"
    )
    _check_rising(time, paths, name)
    return time


def _check_rising(time: Tensor, path: Tensor | None, name: str) -> None:
    falls = time.diff() <= 0
    if path is not None:
        falls = falls & (path.diff() == 0)
    if bool(falls.any()):
        k = int(falls.nonzero()[0])
        what = "the same time as" if float(time[k + 1]) == float(time[k]) else "an earlier time than"
        raise InputError(f"row {k + 2} of {name} has {what} the row before; sort the rows and remove duplicates")
