"""What one pass over a dataset tells about how to train on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Range, to_range
from scorefield.data.open import as_dataset
from scorefield.data.tables import few_values
from scorefield.progress import Bar

CHUNK_NUMBERS = 2**22
"""Numbers in memory at a time."""


@dataclass(frozen=True)
class Statistics:
    """Figures of a dataset, in the range of a model for data of known bounds, else as stored.

    Attributes:
        count, shape: number and shape of the items.
        range: the model's range that the figures refer to; None for float data of unknown range.
        low, high: least and greatest entry.
        mean, std: of all entries; std is what preconditioned networks call sigma_data.
        constant: entries (of the event) that have the same value in every item; a density has no meaning for them.
        distance: greatest Euclidean distance between two items, of those that were compared. As sigma_max of a VE SDE
            it lets a chain pass from any item to any other (Song & Ermon 2020, Technique 1).
        compared: items whose distances were taken; less than `count` makes `distance` a lower bound.
        labels: number of items of each class; empty without labels.
        repeats: which columns of a table or of vectors repeat few values, of which there is no density, and what is right
            then, in words; empty where none does.
    """

    count: int
    shape: tuple[int, ...]
    range: Range | None
    low: float
    high: float
    mean: float
    std: float
    constant: int
    distance: float
    compared: int
    labels: tuple[int, ...] = ()
    repeats: str = ""

    def to(self, range: Range) -> Statistics:
        """The figures in another range; those of data of unknown range stay as they are."""
        if self.range is None:
            return self
        scale = (range[1] - range[0]) / (self.range[1] - self.range[0])

        def moved(value: float) -> float:
            return (value - self.range[0]) * scale + range[0] if self.range is not None else value

        return replace(
            self,
            range=range,
            low=moved(self.low),
            high=moved(self.high),
            mean=moved(self.mean),
            std=self.std * scale,
            distance=self.distance * scale,
        )


def statistics(
    data: Any, *, to: Range = (-1.0, 1.0), compare: int = 5000, seed: int = 0, progress: bool | None = None
) -> Statistics:
    """Count, range, mean, sigma_data, constant entries and the maximum pairwise distance, in one pass.

    Main arguments:
        data: as for `train`.
        to: range of the model; for VE it is (0, 1), for VP and sub-VP (-1, 1).
        compare: items among which the distance is sought, chosen by `seed` where there are more; all pairs of them.

    Raises:
        InputError: data that cannot be read.
    """
    items = as_dataset(data)
    chosen = torch.arange(items.size, device="cpu")
    if items.size > compare:
        draws = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(items.size, generator=draws, device=draws.device)[:compare].sort().values
    dims, kept, total, squares = math.prod(items.shape), [], 0.0, 0.0
    shift: Tensor | None = None
    low = high = torch.empty(0, device="cpu")
    step = max(1, CHUNK_NUMBERS // dims)
    with Bar("statistics", progress) as bar:
        for start in range(0, items.size, step):
            index = range(start, min(start + step, items.size))
            x = to_range(items.read(index), items, to).flatten(1)
            if shift is None:
                shift, low, high = x.double().mean(), x[0], x[0]
            centred = x.double() - shift  # or the variance of a small spread about a large mean would cancel
            total, squares = total + float(centred.sum()), squares + float(centred.square().sum())
            low, high = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0))
            inside = chosen[(chosen >= index.start) & (chosen < index.stop)] - index.start
            kept.append(x[inside])
            bar(index.stop / items.size)
    offset, n = total / (items.size * dims), items.size * dims
    assert shift is not None
    compared, vectors = torch.cat(kept), items.levels is None and len(items.shape) == 1
    return Statistics(
        count=items.size,
        shape=items.shape,
        range=to if items.scaled else None,
        low=float(low.min()),
        high=float(high.max()),
        mean=float(shift) + offset,
        std=math.sqrt(max(squares / n - offset**2, 0.0)),
        constant=int((low == high).sum()),
        distance=_greatest_distance(compared),
        compared=len(chosen),
        labels=() if items.labels is None else tuple(torch.bincount(items.labels.clamp(min=0)).tolist()),
        repeats=(few_values(compared, items.name, items.columns) or "") if vectors else "",
    )


def _greatest_distance(x: Tensor, chunk: int = 512) -> float:
    """Greatest Euclidean distance between two rows of x (N, D); the pair is found in float32 and measured in float64."""
    x = x - x.mean(0)
    norms = x.square().sum(1)
    best, pair = -math.inf, (0, 0)
    for start in range(0, len(x), chunk):
        rows = x[start : start + chunk]
        square = norms[start : start + chunk, None] + norms[start:] - 2 * rows @ x[start:].T
        value, place = square.flatten().max(0)
        if float(value) > best:
            best = float(value)
            pair = (start + int(place) // square.shape[1], start + int(place) % square.shape[1])
    return float(torch.linalg.vector_norm(x[pair[0]].double() - x[pair[1]].double()))
