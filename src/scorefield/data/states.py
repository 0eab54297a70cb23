"""Data of integers with a meaning: text by character or token, tables of categories, and how to write them again."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.tables import read_words, rows_of
from scorefield.errors import InputError, cannot_read

BINS = 16
"""States of a column of numbers, which hold as many rows each."""
CATEGORIES = 64
"""Different words in a column, at most; more are no categories."""


class Codec(Protocol):
    """What states stand for."""

    @property
    def states(self) -> int: ...

    def write(self, x: Tensor) -> list[str]:
        """One text for each sample of states (B, *)."""
        ...


@dataclass(frozen=True)
class Characters:
    """One state for each character.

    Main arguments:
        symbols: the characters, in the order of their states.
        fold: letters are lowered, and every other character and run of them becomes one blank: 27 symbols.
    """

    symbols: tuple[str, ...]
    fold: bool = False

    @property
    def states(self) -> int:
        """Number of characters."""
        return len(self.symbols)

    @cached_property
    def _number(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols)}

    def read(self, text: str, name: str) -> Tensor:
        """States of a text, (N,) int64.

        Raises:
            InputError: a character that is not among the symbols.
        """
        text = folded(text) if self.fold else text
        number = self._number
        try:
            return torch.tensor([number[c] for c in text], dtype=torch.int64, device="cpu")
        except KeyError as error:
            raise InputError(
                f"{name} has the character {error.args[0]!r}, which the {len(self.symbols)} characters of the run lack; "
                "give text of the same alphabet"
            ) from None

    def write(self, x: Tensor) -> list[str]:
        """One text for each sample of states (B, L)."""
        return ["".join(self.symbols[i] for i in row) for row in x.flatten(1).tolist()]


@dataclass(frozen=True)
class Tokens:
    """The tokens of a tokenizer file of the package tokenizers (tokenizer.json), which is needed to read and write."""

    path: str
    count: int

    @property
    def states(self) -> int:
        """Number of tokens."""
        return self.count

    @cached_property
    def _tokenizer(self) -> Any:
        return _tokenizer(self.path)

    def read(self, text: str, name: str) -> Tensor:
        """States of a text, (N,) int64."""
        return torch.tensor(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64, device="cpu")

    def write(self, x: Tensor) -> list[str]:
        """One text for each sample of states (B, L)."""
        return [self._tokenizer.decode(row, skip_special_tokens=False) for row in x.flatten(1).tolist()]


@dataclass(frozen=True)
class Columns:
    """A table: one position for each column.

    Main arguments:
        names: of the columns.
        values: what the states of each column stand for: words, or for numbers the middle of a range.
        edges: upper ends of the ranges of a column of numbers; empty for words.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[float, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of states of each column."""
        return tuple(len(v) for v in self.values)

    @property
    def states(self) -> int:
        """The largest number of states of a column."""
        return max(self.sizes)

    def read(self, rows: Sequence[Sequence[str]], name: str) -> Tensor:
        """States of rows of words, (N, columns) int64.

        Raises:
            InputError: a word that a column does not have, or no number where there is one.
        """
        columns = []
        for j, (values, edges) in enumerate(zip(self.values, self.edges, strict=True)):
            words = [row[j] for row in rows]
            if edges:
                numbers = [_number(word, f"{name}, column {self.names[j]}") for word in words]
                columns.append(torch.from_numpy(np.searchsorted(np.array(edges[:-1]), numbers, side="left")))
                continue
            number = {value: i for i, value in enumerate(values)}
            for word in words:
                if word not in number:
                    raise InputError(
                        f"{name} has {word!r} in column {self.names[j]}, where the run knows {', '.join(values[:6])}"
                        f"{', ...' if len(values) > 6 else ''}; give a table of the same categories"
                    )
            columns.append(torch.tensor([number[word] for word in words], device="cpu"))
        return torch.stack(columns, 1).long()

    def rows(self, x: Tensor) -> list[list[str]]:
        """A word for each column, for each sample of states (B, columns)."""
        return [[self.values[j][i] for j, i in enumerate(row)] for row in x.flatten(1).tolist()]

    def write(self, x: Tensor) -> list[str]:
        """One line of comma-separated values for each sample of states (B, columns)."""
        return lines_of(self.rows(x))


def text(
    path: str | Path,
    length: int = 64,
    *,
    codec: Characters | Tokens | None = None,
    tokenizer: str | Path | None = None,
    fold: bool = False,
    stride: int | None = None,
) -> Dataset:
    """A text file in UTF-8 as pieces of `length` states.

    Main arguments:
        length: states of an item.
        codec: that of a run, to read other text as it did; by default the characters that occur.
        tokenizer: a tokenizer.json, for tokens in place of characters (needs the package tokenizers).
        fold: 27 symbols, a blank and small letters, as in text8.
        stride: states from the start of one item to that of the next, `length` by default: no state is in two.

    Raises:
        InputError: no such file, not UTF-8 text, or too short.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        words = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8; convert it, or give a .npy file of integers") from None
    if "\0" in words:
        raise InputError(f"{path} is not text: it holds zero bytes; give a text file, or a .npy file of integers")
    if not words.strip():
        raise InputError(f"{path} is empty; give a text file with at least {length + 1} characters")
    if codec is None:
        if tokenizer is not None:
            codec = Tokens(str(tokenizer), _tokenizer(str(tokenizer)).get_vocab_size())
        else:
            codec = Characters(tuple(sorted(set(folded(words) if fold else words))), fold)
    states = codec.read(words, str(path))
    if len(states) < length:
        raise InputError(
            f"{path} has {len(states)} states and an item has {length}; give more text, or a shorter length"
        )
    if codec.states < 2:
        raise InputError(f"{path} holds one character only, over and over; give text to learn from")
    step = length if stride is None else stride
    starts = torch.arange(0, len(states) - length + 1, step, device="cpu")
    windows = states.unfold(0, length, 1)

    def read(indices: Sequence[int]) -> Tensor:
        return windows[starts[torch.as_tensor(list(indices), device="cpu")]]

    return Dataset(
        str(path), (length,), len(starts), read, levels=codec.states, codec=codec, names=lambda i: f"{int(starts[i])}"
    )


def categories(path: Any, *, codec: Columns | None = None, name: str | None = None) -> Dataset:
    """A table with a header row (.csv, .tsv) as states: words as they are, numbers by ranges of equally many rows.

    Main arguments:
        path: of the file, or a pandas DataFrame.
        codec: that of a run, to read another table as it did.

    Other arguments:
        name: what messages call it.

    Raises:
        InputError: no such file, rows of different lengths, a missing value, a column of too many different words, another
            header.
    """
    names, rows = _rows(path)
    path = name or ("data" if hasattr(path, "columns") else str(path))
    for i, row in enumerate(rows):
        if "" in row:
            column = names[row.index("")]
            raise InputError(
                f"row {i + 1} of {path} has no value in column {column!r}; fill it in (a word such as none is a category "
                "too) or leave the row out"
            )
    if codec is None:
        found = [_column([row[j] for row in rows], name, str(path)) for j, name in enumerate(names)]
        codec = Columns(tuple(names), tuple(v for v, _ in found), tuple(e for _, e in found))
    elif tuple(names) != codec.names:
        raise InputError(
            f"{path} has the columns {', '.join(names)} and the run {', '.join(codec.names)}; give the same"
        )
    states = codec.read(rows, str(path))
    if codec.states < 2:
        raise InputError(f"{path} has the same row over and over; give a table to learn from")
    return Dataset(
        str(path),
        (len(names),),
        len(states),
        lambda indices: states[torch.as_tensor(list(indices), device="cpu")],
        levels=codec.states,
        columns=tuple(names),
        codec=codec,
    )


def binarised(data: Dataset) -> Dataset:
    """Integer data as two states: 1 in the upper half of the levels.

    Raises:
        InputError: data without levels.
    """
    if data.levels is None:
        raise InputError(f"{data.name} holds floating-point numbers; binarised data is made of integers")
    half, read = (data.levels + 1) // 2, data.read
    return replace(data, levels=2, read=lambda indices: (read(indices) >= half).long())


def open_states(
    source: str,
    *,
    length: int = 64,
    codec: Any = None,
    train: bool = True,
    levels: int | None = None,
    fold: bool = False,
    tokenizer: str | None = None,
) -> Dataset:
    """The data called `source` as states: .txt by character, .csv by column, everything else as `open_data` opens it.

    Main arguments:
        length: states of an item of text. codec: that of a run; it decides how files are read.
        train: which part of the digits. levels: 2 binarises what has more. fold, tokenizer: as in `text`.

    Raises:
        InputError: no such data, or not of integers.
    """
    from scorefield.data.open import open_data

    suffix = Path(source).suffix.lower()
    if isinstance(codec, Columns) or (codec is None and suffix in (".csv", ".tsv")):
        return categories(source, codec=codec)
    written = codec is not None or suffix in (".txt", ".text", ".md", ".rst", ".py", "")
    if written and source != "digits" and not Path(source).is_dir():
        return text(source, length, codec=codec, fold=fold, tokenizer=tokenizer)
    if fold or tokenizer is not None:
        raise InputError(f"{source} is no text; fold and tokenizer are for text files")
    data = open_data(source, train=train)
    if data.levels is None:
        raise InputError(f"{source} holds floating-point numbers; a jump process takes states, integers from 0")
    return binarised(data) if levels == 2 and data.levels > 2 else data


def lines_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines of comma-separated values."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue().splitlines()


def folded(words: str) -> str:
    """Small letters, and one blank for every run of anything else."""
    return " ".join("".join(c if "a" <= c <= "z" else " " for c in words.lower()).split())


def _tokenizer(path: str) -> Any:
    try:
        from tokenizers import Tokenizer  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError(f"{path} needs the package tokenizers; install it with pip install tokenizers") from None
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the package raises plain exceptions
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}; give a tokenizer.json") from error


def _rows(source: Any) -> tuple[list[str], list[list[str]]]:
    """Names of the columns of a file with a header or of a data frame, and its rows as words."""
    if hasattr(source, "columns"):
        names, rows = rows_of(source)
        return names, [[str(word).strip() for word in row] for row in rows]
    names, *rows = read_words(Path(source))
    if not rows:
        raise InputError(f"{source} is empty; give a header and at least one row")
    return names, rows


def _column(words: list[str], name: str, path: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """What the states of a column stand for, and the upper ends of ranges of numbers."""
    different = sorted(set(words))
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.array([math.nan])
    if np.isfinite(numbers).all() and len(different) > BINS:
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:]))
        where = np.searchsorted(edges[:-1], numbers, side="left")
        middles = [f"{np.median(numbers[where == k]):g}" for k in range(len(edges))]
        return tuple(middles), tuple(edges.tolist())
    if len(different) > CATEGORIES:
        raise InputError(
            f"{path}: column {name} has {len(different)} different words; leave it out, or group them to at most {CATEGORIES}"
        )
    if np.isfinite(numbers).all():
        different = sorted(different, key=float)
    return tuple(different), ()


def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where} has {word!r}, which is no number; repair or remove the row")
    return value
