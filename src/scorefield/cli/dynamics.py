"""scorefield dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scorefield.cli.options import COUNT, Common, Name, Result, Unset, check_writable
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.data import Series
    from scorefield.dynamics import Moments, Stationary, StochasticMap

SHARES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)
"""Where along each entry the table reads drift and diffusion: shares of the data below."""
POINTS, BINS = 41, 30


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Drift, diffusion and stationary density of an unknown dX = b(X) dt + s(X) dW from a time series of it.

    Rows are states in the order of time, columns their entries. A column called time or t is taken for the times; steps that do
    not take dt are then left out. What is found goes into a page of plots.

    Example: scorefield dynamics series.csv --dt 0.01 --out dynamics.html
    """

    series: Annotated[str, tyro.conf.Positional, Name("SERIES.csv")]
    """The series: fields apart by comma, semicolon or tab; the first line may name the columns."""
    dt: Annotated[float | None, Unset("TIME")] = None
    """Time from one row to the next, in any unit; the median step of the column of times unless given."""
    time: Annotated[str | None, Unset("COLUMN")] = None
    """Column of times."""
    path: Annotated[str | None, Unset("COLUMN")] = None
    """Column that tells several paths apart, which follow each other in the file."""
    neighbours: Annotated[int | None, Unset("INT"), COUNT] = None
    """Pairs of states that speak for a state: few follow the drift closely, many average more; 1,536 or a tenth of them."""
    labels: Annotated[int, COUNT] = 4000
    """Draws that the map of a state and noise to the next state is learned from."""
    steps: Annotated[int, COUNT] = 800
    """Steps of its training."""
    out: Annotated[str, Name("FILE.html")] = "dynamics.html"
    """Page with the plots."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.data import series
    from scorefield.dynamics import learn_flow_map, pairs_of

    if not options.out.endswith((".html", ".htm")):
        raise InputError(f"--out {options.out} is a page, whose name must end in .html")
    if options.dt is not None and not 0 < options.dt < math.inf:
        raise InputError(f"--dt={options.dt:g} is impossible; expected the time between rows, a positive number")
    found = series(options.series, time=options.time, path=options.path)
    dt = options.dt or _step(found, options.series)
    check_writable(options.out)
    x, after = pairs_of(found.values, dt, found.time, found.path)
    fm = learn_flow_map(
        x,
        after,
        dt,
        neighbours=options.neighbours,
        labels=options.labels,
        steps=options.steps,
        seed=options.seed,
        progress=False if options.json else None,
    )
    long_run = fm.stationary(seed=options.seed)
    tables = [_table(fm, i, name) for i, name in enumerate(found.columns)]
    density = [_density(long_run.samples[:, i]) for i in range(len(tables))] if long_run.settled else None
    _write(Path(options.out), options, found, fm, long_run, density)
    text = "\n".join([f"{options.series}: {len(x)} pairs of states, dt={dt:g}", *(t["text"] for t in tables)])
    text += f"\n{_told(found, long_run, dt)}\nplots: {options.out}"
    values: dict[str, Any] = {"pairs": len(x), "dt": dt, "columns": list(found.columns), "out": options.out}
    values["entries"] = [{k: v for k, v in t.items() if k != "text"} for t in tables]
    values["stationary"] = {
        "settled": long_run.settled,
        "steps": long_run.steps,
        "outside": long_run.outside,
        "escaping": long_run.escaping,
        "mean": long_run.samples.mean(0).tolist() if long_run.settled else None,
        "std": long_run.samples.std(0).tolist() if long_run.settled else None,
        "density": density,
    }
    return Result(text, values)


def _step(found: Series, name: str) -> float:
    if found.time is None:
        raise InputError(f"{name} has no column of times; give --dt, the time from one row to the next")
    steps = found.time.diff()
    return float((steps if found.path is None else steps[found.path.diff() == 0]).median())


def _along(fm: StochasticMap, entry: int, values: Tensor) -> Moments:
    """Moments along one entry, the others at their medians."""
    at = fm.states.median(0)[0].repeat(len(values), 1)
    at[:, entry] = values
    return fm.moments(at)


def _table(fm: StochasticMap, entry: int, name: str) -> dict[str, Any]:
    import torch

    at = torch.quantile(fm.states[:: 1 + len(fm.states) // 10**6, entry], torch.tensor(SHARES).to(fm.states))
    found = _along(fm, entry, at)
    columns = {
        "x": at,
        "drift": found.drift[:, entry],
        "drift_stderr": found.stderr[:, entry],
        "diffusion": found.diffusion[:, entry],
        "diffusion_stderr": found.diffusion_stderr[:, entry],
        "pairs": found.pairs,
    }
    values: dict[str, Any] = {"name": name} | {k: v.tolist() for k, v in columns.items()}
    lines = [f"{name:>12}  {'drift':>20}  {'diffusion':>20}  {'pairs':>6}"]
    for x, b, e, s, f, n in zip(*(v.tolist() for v in columns.values()), strict=True):
        lines.append(f"{x:12.4g}  {f'{b:.4g} +- {e:.2g}':>20}  {f'{s:.4g} +- {f:.2g}':>20}  {n:6.0f}")
    return values | {"text": "\n".join(lines)}


def _density(samples: Tensor) -> dict[str, list[float]]:
    """Midpoints of bins, density and its standard error by the number of paths."""
    low, high = float(samples.min()), float(samples.max())
    share = samples.float().histc(BINS, low, high).double() / len(samples)
    width = (high - low) / BINS
    error = (share * (1 - share) / len(samples)).sqrt()
    middle = [low + (i + 0.5) * width for i in range(BINS)]
    return {"x": middle, "density": (share / width).tolist(), "stderr": (error / width).tolist()}


def _told(found: Series, long_run: Stationary, dt: float) -> str:
    end = long_run.samples
    if long_run.settled:
        parts = [f"{n} {m:.4g}, {s:.4g}" for n, m, s in zip(found.columns, end.mean(0), end.std(0), strict=True)]
        few = f"; {100 * end_share:.0f} % of them beyond the data" if (end_share := long_run.outside) >= 0.01 else ""
        return f"stationary mean and deviation: {'; '.join(parts)} (paths forget their start in {long_run.steps} steps{few})"
    if long_run.escaping:
        return (
            f"no stationary density: {100 * long_run.outside:.0f} % of the paths leave the range of the data in "
            f"{long_run.steps} steps and do not come back"
        )
    time = f"{long_run.steps} steps ({long_run.steps * dt:g} of time)"
    told = f"no stationary density can be told; a longer series might tell it: in {time}"
    if long_run.gap < long_run.chance:
        return f"{told} {100 * long_run.outside:.0f} % of the paths go beyond the data, where nothing was learned"
    return (
        f"{told} of the series' {len(found.values)}, paths from the two ends of the data do not forget where they began "
        f"(they differ by {long_run.gap:.2g}; chance: {long_run.chance:.2g}), as those of a process without one"
    )


def _write(
    path: Path,
    options: Options,
    found: Series,
    fm: StochasticMap,
    long_run: Stationary,
    density: list[dict[str, list[float]]] | None,
) -> None:
    import torch

    from scorefield.report import Report

    lead = f"{len(fm.states)} pairs of states, dt={fm.dt:g}. {_told(found, long_run, fm.dt)}"
    page = Report(f"Dynamics of {Path(options.series).name}", lead)
    others = "" if len(found.columns) == 1 else ", the other entries at their medians"
    for i, name in enumerate(found.columns):
        low, high = torch.quantile(fm.states[:: 1 + len(fm.states) // 10**6, i], torch.tensor([0.01, 0.99]).double())
        at = torch.linspace(float(low), float(high), POINTS, dtype=torch.float64)
        m = _along(fm, i, at)
        for word, value, error, unit in (
            ("drift", m.drift[:, i], m.stderr[:, i], "per unit of time"),
            ("diffusion", m.diffusion[:, i], m.diffusion_stderr[:, i], "per root of time"),
        ):
            curves = {word: value, "+2 s.e.": value + 2 * error, "-2 s.e.": value - 2 * error}
            lines = {k: list(zip(at.tolist(), v.tolist(), strict=True)) for k, v in curves.items()}
            page.curves(f"{word} of {name}", f"Over {name}{others}, with two standard errors.", lines, (name, unit))
        series = _density(fm.states[:, i])
        drawn = {"the series": list(zip(series["x"], series["density"], strict=True))}
        if density:
            drawn = {"stationary": list(zip(density[i]["x"], density[i]["density"], strict=True))} | drawn
        page.curves(f"density of {name}", "Of paths after a long time, and of the series.", drawn, (name, "density"))
    page.write(path)
