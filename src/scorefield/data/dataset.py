"""The one dataset type, and how its raw items become a batch in the range of a model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from scorefield.data.scale import Scale
from scorefield.errors import InputError

Range = tuple[float, float]
SMALL = 2**22
"""Values of data up to which a resumed run compares all of them; a 64th of it where reading is slow."""


@dataclass(frozen=True, repr=False)
class Dataset:
    """Items of one shape, stored as integers 0 .. levels - 1 or as floats.

    Main arguments:
        name: what messages call it, usually its path.
        shape: event shape of an item, without the batch.
        size: number of items.
        read: raw items at the given indices: sequence of B ints -> (B, *shape), integer or float.
        levels: number of integer values; None for float data.
        range: values of float data that correspond to the ends of the model's range; None leaves float data as it is.

    Other arguments:
        labels: class of every item, (size,) int64.
        classes: names of the classes.
        columns: names of the entries of a table.
        scale: how `to_range` brings float data to the units of the model, as it standardises tables.
        names: what one item is called, such as its file name; None for its index.
        slow: reading an item takes so long (decoding, a disk) that it is worth doing ahead.
        span: values of deep pixels that became 0 and 255, where pictures had more than 8 bits.
        random: reading an item draws random numbers (augmentation), so that it differs each time.
        groups: sizes of the runs of items that lie together (shards), which training visits a few at a time.
        codec: what integers stand for, where they are text or categories (see `data.states`), or the transform of spectra.
        paired: items are read as (2 C, *) for a shape (C, *): x_0, and behind it y, which training passes to the network.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    read: Callable[[Sequence[int]], Tensor]
    levels: int | None = None
    range: Range | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    scale: Scale | None = None
    names: Callable[[int], str] | None = None
    slow: bool = False
    span: Range | None = None
    random: bool = False
    groups: tuple[int, ...] = ()
    codec: Any = None
    paired: bool = False

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        values = f"{self.levels} levels" if self.levels else "numbers"
        classes = "" if self.labels is None else f", {len(self.labels.unique())} classes"
        return f"Dataset({self.name!r}, {self.size:,} items of {self.shape}, {values}{classes})"

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Tensor | Dataset:
        """A raw item (*shape), or the dataset of a slice."""
        if isinstance(index, slice):
            return self.subset(range(self.size)[index])
        return self.read([range(self.size)[index]])[0]

    def subset(self, indices: Sequence[int]) -> Dataset:
        """The dataset of some of the items, in the given order."""
        read, names = self.read, self.names
        return replace(
            self,
            size=len(indices),
            read=lambda wanted: read([indices[i] for i in wanted]),
            labels=None if self.labels is None else self.labels[torch.as_tensor(list(indices), device="cpu")],
            names=lambda i: names(indices[i]) if names else str(indices[i]),
            groups=(),
        )

    def item_name(self, index: int) -> str:
        """What to call an item in messages and tables."""
        return self.names(index) if self.names else str(index)

    @property
    def scaled(self) -> bool:
        """Whether items have known bounds, so that `to_range` maps them to the range of a model."""
        return self.levels is not None or self.range is not None

    def tensor(self, to: Range = (-1.0, 1.0)) -> Tensor:
        """All items as float32 in the range `to`, (size, *shape)."""
        return to_range(self.read(range(self.size)), self, to)

    def fingerprint(self) -> str:
        """A short hash of the size, the shape, the labels and a few items, by which a resumed run knows its data again.

        Items that are random differ each time and do not count.
        """
        about: tuple[object, ...] = (self.size, self.shape, self.levels, self.range, self.groups, self.classes)
        about = (*about, self.random, self.columns, *([] if self.codec is None else [self.codec]))
        digest = hashlib.sha256(repr(about).encode())  # the groups, since the order of training depends on them
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().tobytes())
        if not self.random:
            probes = sorted({self.size * i // 8 for i in range(8)} | {self.size - 1})
            digest.update(self.read(probes).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def contents(self) -> str | None:
        """A short hash of every value, where all can be read in no time; None of data that is large or random."""
        if self.random or self.size * math.prod(self.shape) > (SMALL // 64 if self.slow else SMALL):
            return None
        return hashlib.sha256(self.read(range(self.size)).contiguous().numpy().tobytes()).hexdigest()[:16]


def to_range(raw: Tensor, data: Dataset, to: Range | None, uniform: Tensor | None = None) -> Tensor:
    """Raw items (B, *) as float32, their lowest value at to[0] and their highest at to[1]; with to=None, as int64 states.

    With `uniform`, numbers in [0, 1) like raw, integers are dequantised: level k goes to its place in the cell
    [k, k + 1) / levels of the range (Theis et al. 2016, sec. 3.1), so that a density of the result bounds the
    probability of the integers. Without, level k sits at k / (levels - 1). With a scale, float data is brought to
    its units; other float data of unknown range stays as it is.

    Raises:
        InputError: states are wanted of data that is not of integers.
    """
    if to is None:
        if raw.is_floating_point():
            raise InputError(f"{data.name} holds floating-point numbers; a jump process takes states, integers from 0")
        return raw.long()
    low, high = to
    if data.levels is not None:
        if uniform is None:
            return raw.float() * ((high - low) / (data.levels - 1)) + low
        return (raw.float() + uniform) * ((high - low) / data.levels) + low
    if data.range is not None:
        start, end = data.range
        return (raw.float() - start) * ((high - low) / (end - start)) + low
    if data.scale is not None:
        return data.scale.to_model(raw)
    return raw.float()


def flip_where(chosen: Tensor, x: Tensor) -> Tensor:
    """Mirror the chosen items, (B,) booleans, left to right (the last axis of x, (B, *))."""
    return torch.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
