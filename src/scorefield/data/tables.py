"""Tables: CSV files and data frames of numbers, each column standardised."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.labels import class_labels
from scorefield.data.scale import Scale
from scorefield.errors import InputError, cannot_read, named

REPEATS = 0.2
"""Different values by rows at which a column is no continuous number; or the share of rows that hold one and the same."""
LABELS = ("label", "class", "target", "species", "y")
"""What a column of classes is usually called."""


def table(source: Any, *, labels: bool | str = False, name: str | None = None, constant: bool = False) -> Dataset:
    """The rows of a CSV file or of a pandas DataFrame or Series as vectors, with mean and deviation of each column.

    Main arguments:
        source: a path (fields apart by comma, semicolon or tab; the first line may name the columns), or a table.
        labels: the column of classes, which is then no part of the vectors; True finds one called label, class, target,
            species or y, or the only one that holds words.

    Other arguments:
        name: what messages call it. constant: take columns that never change, too.

    Raises:
        InputError: no such file, fewer than two rows, a column of words, a missing value, or a column that never changes.
    """
    if isinstance(source, str | Path):
        name = name or str(source)
        columns, rows = read_rows(Path(source))
    else:
        name = name or "data"
        columns, rows = rows_of(source)
    if len(rows) < 2:
        raise InputError(f"{name} has {len(rows)} rows; give at least two")
    targets: tuple[Tensor | None, tuple[str, ...]] = (None, ())
    if labels:
        at = _label_column(columns, rows, labels, name)
        targets = class_labels([_plain(row[at]) for row in rows], len(rows), name)
        columns = [c for i, c in enumerate(columns) if i != at]
        rows = [[v for i, v in enumerate(row) if i != at] for row in rows]
    values, mean, std = _numbers(columns, rows, name, constant)
    stored = torch.from_numpy(values)
    return Dataset(
        name=name,
        shape=(len(columns),),
        size=len(rows),
        read=lambda wanted: stored[torch.as_tensor(list(wanted), device="cpu")],
        labels=targets[0],
        classes=targets[1],
        columns=tuple(columns),
        scale=Scale(torch.from_numpy(mean), torch.from_numpy(std)),
    )


def holds_words(source: Any) -> bool:
    """Whether a column of a CSV file or of a DataFrame holds something else than numbers, missing values aside."""
    columns, rows = read_rows(Path(source)) if isinstance(source, str | Path) else rows_of(source)
    present = ([v for v in (row[j] for row in rows) if str(v).strip()] for j in range(len(columns)))
    return any(not all(_is_number(v) for v in values) for values in present)


def few_values(x: Tensor, name: str, columns: Sequence[str] = ()) -> str | None:
    """Which columns of rows x (N, D) repeat few values, so that they have no density, and what is right then; None if none."""
    ordered = x.detach().cpu().double().sort(0).values
    different = 1 + (ordered[1:] > ordered[:-1]).sum(0)
    often = max(2, math.ceil(REPEATS * len(x))) - 1
    repeated = (ordered[often:] == ordered[:-often]).any(0)
    found = ((different <= REPEATS * len(x)) | repeated).nonzero().flatten().tolist()
    if not found:
        return None
    shown = []
    for i in found[:3]:
        count = int(different[i])
        few = count <= REPEATS * len(x)
        called = columns[i] if len(columns) else f"column {i}"
        shown.append(f"{called} ({f'{count} different values' if few else 'one value again and again'})")
    more = f" and {len(found) - 3} more columns" if len(found) > 3 else ""
    return (
        f"{name}: {', '.join(shown)}{more} of {len(x):,} rows: a density of what repeats has no bound and says little; "
        "spread each value by uniform noise of one unit, or learn a table as states (sf.fit(table, kind='states'), "
        "train --data FILE --kind states)"
    )


def _numbers(
    columns: list[str], rows: list[list[Any]], name: str, constant: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fields as numbers (N, C), with mean and deviation of each column; a constant one is refused, or has deviation 1."""
    if len(bad := [i + 1 for i, row in enumerate(rows) if any(_is_missing(v) for v in row)]) > 1:
        raise InputError(
            f"{len(bad):,} of {len(rows):,} rows of {name} lack a finite number ({named(bad)}); fill them in or leave them out"
        )
    values = np.array(
        [[number(v, c, i, name) for v, c in zip(row, columns, strict=True)] for i, row in enumerate(rows)]
    )
    mean, std = values.mean(0), values.std(0)
    for column, spread, centre in zip(columns, std, mean, strict=True):
        if not spread > 1e-9 * max(abs(centre), 1e-30):
            if not constant:
                raise InputError(f"column {column!r} of {name} never changes, so it has no density; leave it out")
            std[columns.index(column)] = 1.0
    return values, mean, std


def rows_of(source: Any) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns of a data frame or series, and its rows; what is missing is an empty word."""
    frame = source if hasattr(source, "columns") else source.to_frame()
    rows = [["" if v is None or v != v else v for v in row] for row in frame.itertuples(index=False)]
    return [str(c) for c in frame.columns], rows


def read_rows(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns of a CSV file, and its other rows as words.

    Raises:
        InputError: as `read_words`.
    """
    return _headed(read_words(path))


def read_words(path: Path) -> list[list[str]]:
    """The rows of a CSV file, those without a word left out; fields apart by comma, semicolon or tab.

    Raises:
        InputError: no such file, not text, empty, or rows of unequal length.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: it is not text in UTF-8; save it as such") from error
    first = text.partition("\n")[0]
    apart = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    lines, rows = csv.reader(io.StringIO(text), delimiter=apart), list[list[str]]()
    for row in ([word.strip() for word in line] for line in lines):
        if any(row):
            rows.append(row)
            if len(row) != (wide := len(rows[0])):
                at = lines.line_num
                raise InputError(f"{path} has {len(row)} entries in line {at} and {wide} columns; make them equal")
    if not rows:
        raise InputError(f"{path} is empty; give a line for each row")
    return rows


def _headed(rows: list[list[str]]) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns, from the first row where it holds words, and the other rows."""
    named = any(not _is_number(word) and word for word in rows[0])
    columns = rows[0] if named else [f"column {i + 1}" for i in range(len(rows[0]))]
    return columns, [*rows[1:]] if named else [*rows]


def _label_column(columns: list[str], rows: list[list[Any]], labels: bool | str, name: str) -> int:
    if isinstance(labels, str):
        if labels not in columns:
            raise InputError(f"{name} has no column {labels!r}; it has {', '.join(columns)}")
        return columns.index(labels)
    usual = [i for i, c in enumerate(columns) if c.lower() in LABELS]
    words = [i for i in range(len(columns)) if not all(_is_number(row[i]) for row in rows)]
    found = usual or (words if len(words) == 1 else [])
    if not found:
        raise InputError(f"{name} has no column of classes; call one {', '.join(LABELS[:3])}")
    return found[0]


def _plain(value: Any) -> Any:
    """A class as a number where it is one, as a word otherwise, None where it is missing."""
    if isinstance(value, str):
        value = value.strip()
        return (float(value) if _is_number(value) else value) if value else None
    return value


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_missing(value: Any) -> bool:
    return not np.isfinite(float(value)) if _is_number(value) else not str(value).strip()


def number(value: Any, column: str, row: int, name: str) -> float:
    """A field as a finite number; `row` counts from 0.

    Raises:
        InputError: it is empty, a word, or not finite.
    """
    if isinstance(value, str) and not value.strip():
        raise InputError(f"row {row + 1} of {name} has no value in column {column!r}; fill it in or leave the row out")
    if not _is_number(value):
        raise InputError(
            f"column {column!r} of {name} holds words ({str(value)[:30]!r} in row {row + 1}); leave it out, "
            "take it as the classes (labels), or train the table as states (sf.fit, or the preset categories)"
        )
    found = float(value)
    if not np.isfinite(found):
        raise InputError(f"row {row + 1} of {name} holds {found} in column {column!r}; fill it in or leave the row out")
    return found
