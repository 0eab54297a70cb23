"""scorefield statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scorefield.cli.options import COUNT, Arrays, Common, Flag, Name, Result, Unset, plural
from scorefield.errors import InputError

if TYPE_CHECKING:
    from scorefield.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class Options(Arrays, Common):
    """What one pass over data tells: range, mean, sigma_data, constant pixels, and sigma_max by the greatest distance.

    Example: scorefield statistics photos/ --size 64
    """

    data: Annotated[str, tyro.conf.Positional, Name("DATA")]
    """digits, a folder of images, a .npy, .npz or .csv file, .tar shards, torchvision:NAME?..., or hf:NAME?..."""
    size: Annotated[int | None, Unset("PIXELS"), COUNT] = None
    """Height and width that images are brought to; 32 unless given."""
    channels: Annotated[int | None, Unset("INT"), COUNT] = None
    """1 grey, 3 colour; 3 unless given."""
    compare: int = 5000
    """Items among which the greatest distance is sought."""
    skip_broken: Flag = False
    """Leave out files that are not images."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.data import statistics

    if options.compare < 2:
        raise InputError(f"--compare={options.compare} is impossible; expected 2 or more")
    data = _opened(options)
    found = statistics(data, compare=options.compare, seed=options.seed)
    unit = found.to((0.0, 1.0))
    exact = found.compared == found.count
    pairs = "all pairs" if exact else f"pairs of {found.compared} items, so at least"
    stored = "as stored" if data.scale is None else "each column standardised"
    where = stored if found.range is None else "on [-1, 1]"
    lines = [
        f"{options.data}: {plural(found.count, 'item')} of shape {found.shape}"
        + (f", {plural(len(found.labels), 'class' if len(found.labels) == 1 else 'classe')}" if found.labels else ""),
        f"range {found.low:.4g} to {found.high:.4g}, mean {found.mean:.4f}, sigma_data {found.std:.4f} ({where})",
        f"sigma_max {unit.distance:.4g} for VE ({stored if found.range is None else 'data on [0, 1]'}; {pairs})",
    ]
    if found.constant:
        remedy = "leave them out" if data.columns else "dequantise integer data (--dequantize), or drop them"
        lines.append(f"warning: {_constant(data, found.constant)} never change; {remedy}: they have no density")
    if found.repeats:
        lines.append(f"warning: {found.repeats}")
    values = {**asdict(found), "shape": list(found.shape), "sigma_data": found.std, "sigma_max": unit.distance}
    return Result("\n".join(lines), values | {"exact": exact})


def _opened(options: Options) -> Dataset:
    from scorefield.data import open_data, table

    if options.size is not None or options.channels is not None:
        shape = (options.channels or 3, options.size or 32, options.size or 32)
    elif options.data.lower().endswith((".csv", ".tsv")) and Path(options.data).exists():
        return table(options.data, constant=True)
    else:
        shape = None
    rest: dict[str, Any] = {"levels": options.levels, "range": options.range, "skip_broken": options.skip_broken}
    return open_data(options.data, shape, convert=True, **rest)


def _constant(data: Dataset, count: int) -> str:
    """How many entries are constant, and of a table which."""
    if not data.columns:
        return plural(count, "entry" if count == 1 else "entrie")
    x = data.read(range(data.size))
    names = [name for name, same in zip(data.columns, (x == x[0]).all(0).tolist(), strict=True) if same]
    return f"{plural(count, 'column')} ({', '.join(names)})"
