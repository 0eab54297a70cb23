"""scorefield likelihood."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scorefield.cli.common import Common, Flag, Name, Result, Unset, check_count, check_writable, open_run, plural
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Likelihood of data under a run by the probability flow: bits per dimension, with standard errors.

    Example: scorefield likelihood runs/digits --data digits -n 100 --out bits.csv
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote."""
    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, an image, or a .npy or .npz file."""
    n: Annotated[int | None, Unset("INT", "-n")] = None
    """Only the first so many items."""
    trace: Literal["hutchinson", "exact"] = "hutchinson"
    """Estimated or exact divergence; exact costs one pass for each dimension."""
    probes: int = 1
    """Random probes for each item; two or more give it a standard error of its own."""
    tolerance: float = 1e-5
    """Relative and absolute tolerance of the solver."""
    seed: int = 0
    """Of the probes and of the dequantisation noise."""
    batch_size: int = 50
    """Items at a time."""
    grey: Flag = False
    """Turn colour images to grey where the run is grey."""
    skip_broken: Flag = False
    """Leave out files that are not images."""
    out: Annotated[str | None, Unset("FILE")] = None
    """One row for each item, .csv or .jsonl; RUN/likelihood.csv unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.data import open_data
    from scorefield.likelihood import log_prob
    from scorefield.progress import Bar
    from scorefield.solve.ode import Dopri5
    from scorefield.train import read_run

    for name in ("n", "probes", "batch_size"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    if not 0 < options.tolerance < 1:
        raise InputError(
            f"--tolerance={options.tolerance} is impossible; expected a number between 0 and 1, such as 1e-5"
        )
    info = read_run(options.run)
    out = options.out or f"{options.run}/likelihood.csv"
    if Path(out).suffix not in (".csv", ".jsonl"):
        raise InputError(f"cannot write {out}: unknown suffix {Path(out).suffix!r}; use .csv or .jsonl")
    data = open_data(
        options.data,
        info.shape,
        train=False,
        levels=info.levels if info.levels != 256 else None,
        range=tuple(info.data["range"]) if info.data.get("range") else None,
        convert=options.grey,
        skip_broken=options.skip_broken,
    )
    if data.levels != info.levels:
        raise InputError(
            f"{options.data} has {data.levels or 'no'} levels and the run was trained with {info.levels or 'none'}; "
            "convert it to the same kind"
        )
    check_writable(out)
    info, model = open_run(options.run, options.device)
    n = min(len(data), options.n or len(data))
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    solver = Dopri5(options.tolerance, options.tolerance)
    with Bar("likelihood") as bar:
        for start in range(0, n, options.batch_size):
            index = range(start, min(start + options.batch_size, n))
            x = _scaled(data, index, info, options.seed).to(model.device)
            seeds = [_item_seed(options.seed, i) for i in index]
            lp = log_prob(model, x, options.trace, options.probes, seed=seeds, solver=solver, progress=False)
            rows += _rows(lp, index, data, info)
            bar(len(rows) / n)
    _write(out, rows)
    return _summary(rows, out, n, time.monotonic() - begin, data.levels is not None)


def _item_seed(seed: int, index: int) -> int:
    from scorefield.train.order import derived_seed

    return derived_seed(seed, "likelihood", index)


def _scaled(data: Any, index: Sequence[int], info: Any, seed: int) -> Any:
    """Items in the model's range; dequantisation noise is a function of (seed, index), whatever the batches."""
    import torch

    from scorefield.data.dataset import to_range
    from scorefield.train.order import step_generator

    uniform = None
    if data.levels is not None:
        draws = [torch.rand(data.shape, generator=step_generator(seed, "dequantize", i)) for i in index]
        uniform = torch.stack(draws)
    return to_range(data.read(index), data, info.range or (0.0, 1.0), uniform)


def _rows(lp: Any, index: Sequence[int], data: Any, info: Any) -> list[dict[str, Any]]:
    dims = math.prod(data.shape)
    if data.levels is None:
        nats = lp.nats
        if data.range is not None:  # a density per unit of the data, not of the model's range
            (low, high), (start, end) = info.range, data.range
            nats = nats + dims * math.log((high - low) / (end - start))
        bits = -nats / (dims * math.log(2))
    else:
        low, high = info.range
        bits = lp.bits_per_dim(data.levels, low, high)
        nats = -bits * (dims * math.log(2))
    return [
        {
            "index": i,
            "name": data.item_name(i),
            "bits_per_dim": float(bits[k]),
            "nats": float(nats[k]),
            "nats_stderr": float(lp.stderr[k]),
            "nfe": int(lp.nfe[k]),
        }
        for k, i in enumerate(index)
    ]


def _write(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    from scorefield.data.files import atomic_file

    with atomic_file(path, "w") as file:
        if path.endswith(".csv"):
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        else:
            for row in rows:
                strict = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
                file.write(json.dumps(strict) + "\n")


def _summary(rows: Sequence[Mapping[str, Any]], out: str, n: int, seconds: float, discrete: bool) -> Result:
    def mean_and_error(key: str) -> tuple[float, float]:
        values = [row[key] for row in rows]
        mean = sum(values) / n
        variance = sum((v - mean) ** 2 for v in values) / max(n - 1, 1)
        return mean, math.sqrt(variance / n)

    (bits, bits_error), (nats, nats_error) = mean_and_error("bits_per_dim"), mean_and_error("nats")
    calls = sum(row["nfe"] for row in rows) / n
    error = f" ± {bits_error:.4f}" if n > 1 else ""
    figure = f"{bits:.4f}{error} bits/dim" if discrete else f"{nats:.4f} ± {nats_error:.4f} nats"
    text = f"{figure}, {plural(n, 'item')}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    values = {"bits_per_dim": bits, "stderr": bits_error if n > 1 else None, "nats": nats, "n": n, "nfe": calls}
    return Result(text, values | {"seconds": seconds, "out": out})
