"""A table that grows while it is computed, and is taken up again where a kill left it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorefield.errors import InputError, cannot_read, cannot_write
from scorefield.files import atomic_file, flush

SETTINGS = "settings"
INDEX = "index"
SUFFIXES = (".csv", ".jsonl")
NOT_OURS = "it is not a table of this command"


@dataclass(frozen=True)
class Table:
    """Rows 0, 1, 2, ... of a .csv or .jsonl file, each with the settings by which it was computed.

    What is not a finite number is empty in .csv and null in .jsonl.

    Main arguments:
        path: the file; it appears with the first row.
        columns: names and types (int, float or str) of what is computed; an index comes first, the settings last.
        settings: all that decides the values, in a line; rows with another one belong to something else.
    """

    path: Path
    columns: Mapping[str, type]
    settings: str

    def resume(self, batch: int, n: int, overwrite: bool = False) -> list[dict[str, Any]]:
        """The finished rows of an earlier attempt, of which unfinished batches are dropped; n are wanted in all.

        Raises:
            InputError: the file holds something else.
        """
        if overwrite or not self.path.exists():
            self.path.unlink(missing_ok=True)
            return []
        text = self._text()
        lines = text.splitlines(keepends=True)
        torn = lines.pop() if lines and not lines[-1].endswith("\n") else ""
        begin = ",".join(self._names()) if self.path.suffix.lower() == ".csv" else f'{{"{INDEX}": 0'
        first = lines[0] if lines else torn
        if not (first.startswith(begin) or (first == torn and begin.startswith(torn))):
            raise self._other(NOT_OURS)
        head = 1 if self.path.suffix.lower() == ".csv" else 0
        rows = self._parse(lines)
        kept = len(rows) if len(rows) >= n else len(rows) // batch * batch  # so that batches are those of one run
        if kept == 0:
            self.path.unlink()
        elif (whole := "".join(lines[: kept + head])) != text:
            with atomic_file(self.path, "w") as file:
                file.write(whole)
        return rows[:kept]

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows at the end, on the disk when this returns.

        Raises:
            OutputError: the disk is full or the place not writable.
        """
        buffer = io.StringIO()
        if self.path.suffix.lower() == ".csv":
            table = csv.DictWriter(buffer, self._names(), lineterminator="\n")
            if not self.path.exists():
                table.writeheader()
            table.writerows({**_finite(row), SETTINGS: self.settings} for row in rows)
        else:
            for row in rows:
                buffer.write(json.dumps({**_finite(row), SETTINGS: self.settings}) + "\n")
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(buffer.getvalue())
                flush(file)
        except OSError as error:
            self._cut(size)
            raise cannot_write(self.path, error) from error

    def _cut(self, size: int) -> None:
        if size:
            os.truncate(self.path, size)
        else:
            self.path.unlink(missing_ok=True)

    def _names(self) -> list[str]:
        return [INDEX, *self.columns, SETTINGS]

    def _text(self) -> str:
        try:
            return self.path.read_text("utf-8")
        except OSError as error:
            raise cannot_read(self.path, error) from error
        except UnicodeDecodeError as error:
            raise self._other(NOT_OURS) from error

    def _parse(self, lines: Sequence[str]) -> list[dict[str, Any]]:
        try:
            raw = (
                list(csv.DictReader(lines, strict=True))
                if self.path.suffix.lower() == ".csv"
                else [*map(json.loads, lines)]
            )
            rows = []
            for i, row in enumerate(raw):
                if list(row) != self._names() or int(row[INDEX]) != i:
                    raise ValueError(row)
                if row[SETTINGS] != self.settings:
                    raise self._other(f"its rows were computed with {row[SETTINGS]}, not {self.settings}")
                rows.append({INDEX: i, **{name: _typed(row[name], kind) for name, kind in self.columns.items()}})
        except InputError:
            raise
        except (ValueError, TypeError, csv.Error) as error:
            raise self._other(NOT_OURS) from error
        return rows

    def _other(self, fault: str) -> InputError:
        return InputError(f"cannot continue {self.path}: {fault}; choose another --out, or pass --overwrite")


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _typed(text: Any, kind: type) -> Any:
    return math.nan if kind is float and text in (None, "") else kind(text)


def one_line(text: str) -> str:
    """A name without characters that would break a line or cannot be written."""
    return "".join(c if c.isprintable() else "?" for c in text)
