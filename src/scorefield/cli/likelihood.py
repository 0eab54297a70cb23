"""scorefield likelihood."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import scorefield as sf
from scorefield import parallel
from scorefield.bundled import results_folder
from scorefield.cli.data import check_tolerance, open_items
from scorefield.cli.figures import check_figure, write_values
from scorefield.cli.files import check_suffix
from scorefield.cli.options import COUNT, Batches, Flag, Items, OfRun, Result, Unset, check_writable, open_run, plural
from scorefield.cli.states import holds_states, open_run_states, ranged
from scorefield.cli.table import SUFFIXES, Table, one_line
from scorefield.errors import InputError
from scorefield.evaluation.bits import item_likelihoods
from scorefield.progress import Bar

COLUMNS: dict[str, type] = {
    "name": str,
    "bits_per_dim": float,
    "nats": float,
    "nats_stderr": float,
    "nfe": int,
}


@dataclass(frozen=True, kw_only=True)
class Options(Batches, Items, OfRun):
    """Likelihood of data under a run by the probability flow: bits per dimension, with standard errors.

    Example: scorefield likelihood runs/digits --data digits -n 100 --out bits.csv
    """

    n: Annotated[int | None, Unset("INT", "-n"), COUNT] = None
    """Only the first so many items."""
    trace: Literal["hutchinson", "exact"] = "hutchinson"
    """Estimated or exact divergence; exact costs one pass for each dimension."""
    probes: Annotated[int, COUNT] = 1
    """Random probes for each item; from two on it has a standard error of its own, with one that column is empty."""
    tolerance: float = 1e-5
    """Relative and absolute tolerance of the solver."""
    out: Annotated[str | None, Unset("FILE")] = None
    """A row for each item, .csv or .jsonl; in RUN, named by data and settings, unless given. After a kill it is taken up."""
    overwrite: Flag = False
    """Begin anew where the file holds other rows."""
    plot: Annotated[str | None, Unset("FILE")] = None
    """Also draw the values, as .png, .svg or .pdf."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    check_tolerance(options.tolerance)
    info = sf.training.read_run(options.run)
    if options.out is not None:
        check_suffix(options.out, SUFFIXES)
        check_writable(options.out)
    if options.plot is not None:
        check_figure(options.plot)
        check_writable(options.plot)
    data = _data(options, info)
    info, model = open_run(options.run, options.device)
    n = min(len(data), options.n or len(data))
    begin, settings = time.monotonic(), _settings(options, data, model)
    out = options.out or str(results_folder(options.run) / _file_name(options.data, settings))
    check_writable(out)
    table = Table(Path(out), COLUMNS, settings)
    processes, size = parallel.join(model.device.type), options.batch_size
    rows = processes.broadcast(table.resume(size, n, options.overwrite) if processes.main else [])
    with Bar("likelihood", None if processes.main else False) as bar:
        # Every process takes one batch of each round, so that the batches are those of a single process.
        for start in range(len(rows), n, size * processes.count):
            first = start + processes.rank * size
            index = range(first, min(first + size, n))
            fresh = _likelihoods(options, model, data, index, info) if index else []
            fresh = processes.gather(fresh)
            if processes.main:
                table.append(fresh)
                rows += fresh
                bar(len(rows) / n)
    if not processes.main:
        return Result("")
    if options.plot is not None:
        write_values(options.plot, rows[:n], data.levels is not None)
    return _summary(rows[:n], out, n, time.monotonic() - begin, data, holds_states(info))


def _data(options: Options, info: Any) -> Any:
    """The data, of the run's kind."""
    if not holds_states(info):
        return open_items(options.data, info, grey=options.grey, skip_broken=options.skip_broken)
    if options.trace != "hutchinson" or options.tolerance != Options.tolerance:
        raise InputError(f"--trace and --tolerance follow a flow, which {options.run} has not; leave them out")
    return open_run_states(options.data, info)


def _likelihoods(options: Options, model: Any, data: Any, index: range, info: Any) -> list[dict[str, Any]]:
    """A row for each item; lower bounds under a run of states, by as many draws as there are probes."""
    from scorefield.randomness import SeedRows

    if holds_states(info):
        x, seed = data.read(index).to(model.device), SeedRows(options.seed, index)
        lp = sf.discrete.bound(model, x, options.probes, seed=seed, progress=False)
        return _rows(lp, lp.nats, index, data)
    solver = sf.Dopri5(options.tolerance, options.tolerance)
    chosen: dict[str, Any] = {"trace": options.trace, "probes": options.probes, "solver": solver, "seed": options.seed}
    return _rows(*item_likelihoods(model, data, index, info.range, **chosen), index, data)


def _settings(options: Options, data: Any, model: Any) -> str:
    """All that decides the rows, but for the number of them and the size of batches."""
    from scorefield.model import weights_hash

    named = {"model": weights_hash(model)[:12], "data": data.fingerprint()}
    named |= {name: str(getattr(options, name)) for name in ("trace", "probes", "tolerance", "seed")}
    return " ".join(f"{name}={value}" for name, value in named.items())


def _file_name(data: str, settings: str) -> str:
    """A name that says what the rows were made of, so that those of other data or settings lie beside them."""
    stem = re.sub(r"[^\w.-]+", "-", Path(data).stem or "data").strip("-.") or "data"
    return f"likelihood-{stem[:60]}-{hashlib.sha256(settings.encode()).hexdigest()[:6]}.csv"


def _rows(lp: Any, nats: Any, index: Sequence[int], data: Any) -> list[dict[str, Any]]:
    bits = -nats / (lp.dims * math.log(2))
    return [
        {
            "index": i,
            "name": one_line(data.item_name(i)),
            "bits_per_dim": float(bits[k]),
            "nats": float(nats[k]),
            "nats_stderr": float(lp.stderr[k]),
            "nfe": int(lp.nfe[k]),
        }
        for k, i in enumerate(index)
    ]


def _summary(rows: Sequence[Mapping[str, Any]], out: str, n: int, seconds: float, data: Any, bound: bool) -> Result:
    """Means over the items whose trajectory arrived; the others have NaN in the file.

    Main arguments:
        bound: whether the nats are lower bounds, so that bits are upper ones.
    """
    done = [row for row in rows if math.isfinite(row["nats"])]

    def mean_and_error(key: str) -> tuple[float | None, float | None]:
        values = [row[key] for row in done]
        if not values:
            return None, None
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
        return mean, math.sqrt(variance / len(values)) if n > 1 else None

    (bits, bits_error), (nats, nats_error) = mean_and_error("bits_per_dim"), mean_and_error("nats")
    calls = sum(row["nfe"] for row in rows) / n
    mean, error, unit = (bits, bits_error, "bits/dim") if data.levels is not None else (nats, nats_error, "nats")
    least = "at most " if bound else ""
    figure = "no figure" if mean is None else f"{least}{mean:.4f}" + (f" ± {error:.4f}" if error else "") + f" {unit}"
    lost = f", {n - len(done)} of them without a finite likelihood" if len(done) < n else ""
    text = f"{figure}, {plural(n, 'item')}{lost}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    ranges = ranged(data.codec)
    if ranges:
        some = ", ".join(ranges)
        text += f"\nof the ranges into which numbers fall ({some}), so that it does not compare with a density of the numbers"
    values: dict[str, Any] = {
        "bits_per_dim": bits,
        "stderr": bits_error,
        "nats": nats,
        "n": n,
        "unfinished": n - len(done),
    }
    values |= {"bound": bound, "ranges": ranges}
    return Result(text, values | {"nfe": calls, "seconds": seconds, "out": out})
