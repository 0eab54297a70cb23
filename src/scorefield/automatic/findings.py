"""What data is: its kind, its numbers, and the form in which a network takes it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.data import array, as_dataset, images, open_data, table
from scorefield.data.dataset import Dataset, to_range
from scorefield.data.images import SUFFIXES
from scorefield.data.pixels import has_colour, quiet_pillow
from scorefield.data.scale import Scale
from scorefield.data.states import BINS, categories
from scorefield.data.tables import few_values, holds_words
from scorefield.density.mixture import choose
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.gaussians import Kind as Covariances
from scorefield.gaussians import Mixture, Principal, Stationary, fit_principal, fit_stationary
from scorefield.training.batches import step_generator
from scorefield.training.run import RunInfo, to_go_on

Kind = Literal["picture", "vector", "signal", "volume", "table", "states"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Law: TypeAlias = "Mixture | Principal | Stationary"
FEWEST = 20
"""Items below which nothing can be learned and held out."""
LOOKED_AT = 4096
"""Items at most that the figures are taken from."""
LARGEST = {"vector": 20_000, "table": 20_000, "signal": 2**20, "picture": 3 * 2**20, "volume": 2**22}
"""Entries of an item that the networks chosen here can take."""
MOST_HELD_OUT = 2000
"""Items held out at most."""
WHITENED = 512
"""Entries of vectors that are whitened at most."""
MANY = 1_000_000
"""Rows times squared columns above which a mixture is judged on two folds in place of four."""
SMALL = 64
"""Entries of vectors up to which mixtures and kernels mean anything."""
DIRECTED, DIRECTED_ROWS, DIRECTIONS = 2**14, 2048, 512
"""Entries of signals and volumes that have a Gaussian at most, the rows it is fitted to, and its directions."""
WORTH = 0.01
"""Held-out nats a row above which kernels on the rows join the mixture, as every row is a component then."""
SMOOTH = 0.6
"""Correlation of neighbouring entries from which on long vectors are taken for signals."""


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        data, held_out: what to train on and what to judge by, in the form that a network takes, (C, *) or (D,); float
            data with a scale, of the former.
        kind: what it is taken for. sigma_data: standard deviation of its entries in the model's units.
        constant: entries that are the same in every item that was looked at.
        notes: what was changed, in words.
        law: what the network stands beside, fitted to `data` in the model's units: of short vectors a Gaussian mixture, of
            signals and volumes a Gaussian, stationary or of few directions.
        known: the run that goes on with this data. Its scale is taken, and its checkpoint holds the law: nothing is fitted.
    """

    data: Dataset
    held_out: Dataset
    kind: Kind
    sigma_data: float
    constant: int
    notes: tuple[str, ...] = ()
    law: Law | None = None
    known: RunInfo | None = None

    @property
    def classes(self) -> int:
        """Classes of all items, those included that are only among the held-out ones; 0 where there are none."""
        parts = [d.labels for d in (self.data, self.held_out) if d.labels is not None]
        return max((len(self.data.classes), *(int(labels.max()) + 1 for labels in parts)), default=0)

    def __str__(self) -> str:
        d = self.data
        many = {"picture": "pictures", "vector": "vectors", "signal": "signals", "volume": "volumes"}
        many |= {"table": "rows", "states": "rows"}
        side = " x ".join(map(str, d.shape))
        classes = f", {self.classes} classes" if d.labels is not None else ""
        values = f"{d.levels} levels" if d.levels else "floats"
        notes = "".join(f"; {note}" for note in self.notes)
        held = f"{self.held_out.size:,} of them held out"
        count = d.size + self.held_out.size
        if self.kind == "states":
            values = f"up to {d.levels} states a column"
        return f"{d.name}: {count:,} {many[self.kind]} of {side}, {held}, {values}{classes}{notes}"


def find(
    source: Any,
    kind: Kind | None = None,
    size: int | None = None,
    labels: bool = False,
    skip_broken: bool = False,
    seed: int = 0,
    run: str | Path | None = None,
) -> Findings:
    """Open data and look at it.

    Main arguments:
        source: a path or name as on the command line, a Dataset, or anything that `as_dataset` takes.
        kind: what it is; by its shape unless given.
        size: side of pictures of a folder; that of the smallest, at most 32, unless given.
        labels: whether the classes are wanted.
        seed: decides which items are held out: a tenth, at most 2,000.
        run: a folder, whose run goes on where it holds one.

    Raises:
        InputError: data that cannot be read, too little of it, too large items, or entries that never change.
        CheckpointError: the run has begun with other data.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    data = _enough(_opened(source, size, labels, skip_broken, kind), labels)
    if data.codec is not None:
        return _going_on(_states(data, kind, seed), seed, run)
    kind = kind or _kind(data)
    data = _with_channel(data, kind)
    entries = math.prod(data.shape)
    if entries > LARGEST[kind]:
        advice = "--size" if kind == "picture" else "another kind (signal, picture or volume), or fewer entries"
        raise InputError(
            f"{data.name} has {kind}s of {entries:,} entries; {LARGEST[kind]:,} are possible: give {advice}"
        )
    data, notes = _cropped(data, kind)
    data, held_out = _parted(data, seed)
    found = _going_on(Findings(data, held_out, kind, 1.0, 0, notes), seed, run)
    raw = data.read(spread_over(data.size))
    if raw.is_floating_point() and not bool(torch.isfinite(raw).all()):
        raise InputError(f"{data.name} holds values that are not finite; remove or repair them")
    if data.levels is None:
        known = None if found.known is None else found.known.scale
        scale, law = _scaled(data, raw, kind, seed) if known is None else (known, None)
        data, held_out = replace(data, scale=scale), replace(held_out, scale=scale)
        found = replace(found, data=data, held_out=held_out, law=law)
    x = to_range(raw, data, (-1.0, 1.0))
    constant = int((raw.amax(0) == raw.amin(0)).sum())
    if constant == entries:
        raise InputError(f"all items of {data.name} are the same; give data that varies")
    return replace(found, sigma_data=max(float(x.std()), 1e-3), constant=constant)


def _going_on(found: Findings, seed: int, run: str | Path | None) -> Findings:
    return found if run is None else replace(found, known=to_go_on(Path(run), found.data, seed))


def _parted(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """What is trained on, and a tenth of the items that is held out."""
    order = torch.randperm(data.size, generator=step_generator(seed, "held out", 0), device="cpu").tolist()
    held = min(MOST_HELD_OUT, max(2, data.size // 10))
    return data.subset(sorted(order[held:])), data.subset(sorted(order[:held]))


def _states(data: Dataset, kind: Kind | None, seed: int) -> Findings:
    """A table with columns of words: every column is a position, numbers fall into ranges."""
    if kind not in (None, "table", "states"):
        raise InputError(f"{data.name} holds words, which are no {kind}s; leave out kind={kind}")
    binned = [name for name, edges in zip(data.codec.names, data.codec.edges, strict=True) if edges]
    notes: tuple[str, ...] = ("columns of words are states, of a masked process",)
    if binned:
        some = ", ".join(binned[:3]) + (", ..." if len(binned) > 3 else "")
        notes += (
            f"numbers ({some}) fall into {BINS} ranges of equally many rows, and come back as the middles of these",
            "nats are those of words and ranges, not to be compared with a density's",
        )
    train, held_out = _parted(data, seed)
    return Findings(train, held_out, "states", 0.0, 0, notes)


def _enough(data: Dataset, labels: bool) -> Dataset:
    if labels and data.labels is None:
        raise InputError(f"{data.name} has no classes; give sub-folders, or a column or array of labels")
    if data.size < FEWEST:
        raise InputError(f"{data.name} has {data.size} {'item' if data.size == 1 else 'items'}; give at least {FEWEST}")
    return data if labels else replace(data, labels=None, classes=())


def _opened(source: Any, size: int | None, labels: bool, skip_broken: bool, kind: Kind | None) -> Dataset:
    if _is_table(source) and not labels and (kind == "states" or holds_words(source)):
        return categories(source)
    if kind == "states":
        raise InputError(
            "kind=states is for tables (a .csv file or a DataFrame); for other states name a preset, such as text"
        )
    if isinstance(source, str | Path):
        return _named(str(source), size, labels, skip_broken)
    if isinstance(source, Tensor | np.ndarray) and source.ndim:
        whole = source.dtype in (torch.uint8, np.uint8)
        return array(source, image=whole and source.ndim in (3, 4)) if source.ndim > 1 else array(source[:, None])
    if hasattr(source, "to_numpy") and (hasattr(source, "columns") or hasattr(source, "index")):
        return table(source, labels=labels)
    return as_dataset(source)


def _is_table(source: Any) -> bool:
    """Whether data is a data frame or a file of a table."""
    if isinstance(source, str | Path):
        return Path(source).suffix.lower() in (".csv", ".tsv") and Path(source).is_file()
    return hasattr(source, "to_numpy") and hasattr(source, "columns")


def _named(source: str, size: int | None, labels: bool, skip_broken: bool) -> Dataset:
    path = Path(source)
    suffix = path.suffix.lower()
    if source != "digits" and path.is_dir():
        return _folder(path, size, labels, skip_broken)
    if suffix in (".npz", ".npy"):
        opened = open_data(source, labels=labels)
        picture = opened.levels is not None and len(opened.shape) in (2, 3)
        return array(path, image=True, labels=opened.labels) if picture else opened
    if path.is_file() and suffix in SUFFIXES:
        raise InputError(f"{source} is one picture; give a folder of at least {FEWEST}")
    return open_data(source, labels=labels)


def _folder(path: Path, size: int | None, labels: bool, skip_broken: bool) -> Dataset:
    """Pictures in colour only where there is some, of the side of the smallest but at most 32 unless given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = images(path, 8, skip_broken=skip_broken)
    sides, colour = [], False
    for i in spread_over(names.size, 64):
        with quiet_pillow(), Image.open(path / names.item_name(i)) as opened:
            sides.append(min(opened.size))
            if not colour:
                opened.thumbnail((64, 64))
                colour = has_colour(opened)
    side = size or max(8, min(32, min(sides)) // 8 * 8)
    return images(path, side, channels=3 if colour else 1, labels=labels, skip_broken=skip_broken)


def spread_over(count: int, most: int = LOOKED_AT) -> Sequence[int]:
    """Indices spread over a data set."""
    return range(count) if count <= most else [int(i) for i in np.linspace(0, count - 1, most)]


def _kind(data: Dataset) -> Kind:
    shape = data.shape
    if data.columns:
        return "table"
    if len(shape) == 1:
        return "signal" if shape[0] >= 128 and _neighbours(data) > SMOOTH else "vector"
    if len(shape) == 2:
        near = min(shape) >= 8 and max(shape) <= 4 * min(shape)
        return "picture" if data.levels is not None or near else "signal"
    if len(shape) == 3:
        return "picture" if data.levels is not None or shape[0] <= 16 else "volume"
    if len(shape) == 4:
        return "volume"
    raise InputError(f"{data.name} has items of shape {shape}; give vectors, signals, pictures or volumes")


def _neighbours(data: Dataset) -> float:
    """Correlation of neighbouring entries about the mean of each."""
    x = data.read(spread_over(data.size, 256)).double()
    x = x - x.mean(0)
    return float((x[:, 1:] * x[:, :-1]).mean() / x.square().mean().clamp(min=1e-300))


def _with_channel(data: Dataset, kind: Kind) -> Dataset:
    dims = {"vector": 1, "table": 1, "signal": 2, "picture": 3, "volume": 4}[kind]
    shape = data.shape
    if dims == 1:
        return data if len(shape) == 1 else _mapped(data, (math.prod(shape),), lambda x: x.flatten(1))
    if len(shape) == dims - 1:
        return _mapped(data, (1, *shape), lambda x: x.unsqueeze(1))
    if len(shape) != dims:
        raise InputError(f"{data.name} has items of shape {shape}, which are no {kind}s; leave out kind={kind}")
    return data


def in_form(data: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Data in the form that a run takes: flattened, with a channel, its rim cut off.

    Raises:
        InputError: its items are of another shape.
    """
    return data if data.shape == shape else _mapped(data, shape, into(shape, data.shape, data.name))


def into(shape: tuple[int, ...], given: tuple[int, ...], name: str = "x") -> Callable[[Tensor], Tensor]:
    """What brings items of a given shape, (B, *given), to that of a run: flattened, with a channel, their rim cut off.

    Raises:
        InputError: they are of another shape.
    """
    if len(shape) == 1 and math.prod(given) == shape[0]:
        return lambda x: x.flatten(1)
    full = (1, *given) if len(given) == len(shape) - 1 else given
    unit = 2 ** (levels_of(min(shape[1:])) - 1) if len(shape) > 1 else 1
    fits = len(full) == len(shape) and full[0] == shape[0]
    if fits and all(0 <= old - new < unit for old, new in zip(full[1:], shape[1:], strict=True)):
        cut = _middle(full[1:], shape[1:])
        return lambda x: x.reshape(len(x), *full)[(slice(None), slice(None), *cut)]
    raise InputError(f"{name} has items of shape {given} and {shape} is expected; reshape or resize them first")


def levels_of(side: int) -> int:
    """Levels of a U-Net for this side, the coarsest of at least 7."""
    return max(1, min(4, int(math.log2(side / 7)) + 1)) if side >= 14 else 1


def _cropped(data: Dataset, kind: Kind) -> tuple[Dataset, tuple[str, ...]]:
    """Sides that the levels of the network divide, by cutting the rim off."""
    if kind in ("vector", "table"):
        return data, ()
    unit = 2 ** (levels_of(min(data.shape[1:])) - 1)
    sides = [side // unit * unit for side in data.shape[1:]]
    if sides == list(data.shape[1:]):
        return data, ()
    old, cut = " x ".join(map(str, data.shape[1:])), _middle(data.shape[1:], sides)
    kept = ", ".join(f"{side.start}:{side.stop}" for side in cut)
    note = f"cut from {old} to its middle, [{kept}], so that the network can halve its sides"
    shape = (data.shape[0], *sides)
    return _mapped(data, shape, into(shape, data.shape)), (note,)


def _middle(old: Sequence[int], new: Sequence[int]) -> list[slice]:
    return [slice((o - n) // 2, (o - n) // 2 + n) for o, n in zip(old, new, strict=True)]


def _mapped(data: Dataset, shape: tuple[int, ...], change: Any) -> Dataset:
    read = data.read
    return replace(data, shape=shape, read=lambda index: change(read(index)).contiguous())


def _scaled(data: Dataset, raw: Tensor, kind: Kind, seed: int) -> tuple[Scale, Law | None]:
    """Columns of vectors are straightened, and whitened where that is best; all else is brought to unit spread.

    Vectors of few entries, without classes, have a mixture as well, in the units of the scale; signals and volumes a
    Gaussian.
    """
    x = raw.double()
    if kind in ("vector", "table"):
        _refuse_dead(data, x)
        if (told := few_values(x, data.name, data.columns)) is not None:
            warnings.warn(told, ScorefieldWarning, stacklevel=4)
        return _of_columns(x, data.labels is None, seed)
    scale = Scale(x.mean(), x.std(correction=0).clamp(min=1e-12))
    if kind == "picture" or x[0].numel() > DIRECTED:
        return scale, None
    z = scale.forward(x[:DIRECTED_ROWS])
    one, two = fit_principal(z.flatten(1), DIRECTIONS, seed), fit_stationary(z, seed)
    return scale, one[0] if one[1] > two[1] else two[0]


def _refuse_dead(data: Dataset, x: Tensor) -> None:
    """Refuse columns of x (N, D) that never change."""
    dead = (x.std(0, correction=0) <= 1e-9 * x.mean(0).abs().clamp(min=1e-30)).nonzero().flatten().tolist()
    if dead:
        some = ", ".join(data.columns[i] if data.columns else str(i) for i in dead[:3]) + (
            ", ..." if len(dead) > 3 else ""
        )
        raise InputError(
            f"{len(dead)} entries of {data.name} never change ({some}), so they have no density; leave them out"
        )


def _of_columns(x: Tensor, alike: bool, seed: int) -> tuple[Scale, Law | None]:
    """The scale of rows x (N, D), and their mixture where they are short and `alike`, of no classes."""
    n, d = x.shape
    if d > WHITENED:
        return Scale(x.mean(0), x.std(0, correction=0)), None
    alone, enough = Scale.of_columns(x, whiten=False), n >= 5 * d
    short = alike and d <= SMALL and enough
    apart = d > 1 and enough and float(torch.linalg.eigvalsh(torch.corrcoef(x.T)).min()) > 1e-6
    together = Scale.of_columns(x, shrink=short) if apart else alone
    if not short:
        return together, None
    many = n * d * d > MANY
    folds = torch.randperm(n, generator=step_generator(seed, "folds", 0), device="cpu").chunk(2 if many else 4)
    spaces: dict[Covariances, Scale] = {"full": together, "tied": together, "diag": together if many else alone}
    chosen = choose(x, folds, spaces, seed)
    return chosen.scale, chosen.with_kernels if chosen.kernel_gain > WORTH else chosen.mixture
