"""report.html of a run: what it is, how the loss fell, what it draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from scorefield.report import Points, Report
from scorefield.training.log import read_log
from scorefield.training.run import read_run

SAMPLES = "samples"
REPORT_FILE = "report.html"
SHOWN = 6
"""Sample grids on the page, spread over the run."""


def write_report(run: str | Path) -> Path:
    """Write RUN/report.html from run.json, log.jsonl and the sample grids, and return its path.

    Raises:
        CheckpointError: the folder is not that of a run.
        OutputError: the folder is not writable.
    """
    folder, info = Path(run), read_run(run)
    lines = read_log(folder)
    steps = [line for line in lines if isinstance(line.get("loss"), float)]
    config: dict[str, Any] = dict(info.config.get("arguments", {}))
    report = Report(folder.resolve().name, _lead(steps, config))
    report.table("The run", ("", ""), _facts(info, steps, lines, config))
    curves = {"training": _series(lines, "loss"), "held out": _series(lines, "held_out_loss")}
    report.curves("Loss", "Mean of each interval of the log.", curves, ("step", "loss"), log_y=_positive(curves))
    if levels := _levels(steps):
        text = "Mean loss at each noise level: noise on the left, data on the right."
        report.curves("Loss by noise level", text, levels, ("log-SNR", "loss"), log_y=_positive(levels))
    norms = {"norm": _series(lines, "grad_norm")}
    report.curves("Gradient", "Norm before clipping.", norms, ("step", "norm"), log_y=_positive(norms))
    rates = {"lr": _series(lines, "lr")}
    report.curves("Learning rate", "Of each logged step.", rates, ("step", "learning rate"))
    for grid in _grids(folder):
        report.picture(f"Samples at step {int(grid.stem[5:]):,}", "Averaged weights, the same seeds.", grid)
    report.write(folder / REPORT_FILE)
    return folder / REPORT_FILE


def _lead(steps: list[dict[str, Any]], config: dict[str, Any]) -> str:
    if not steps:
        return "No step has been logged yet."
    last = steps[-1]
    return f"Step {last['step']:,} of {config.get('steps', last['step']):,}, loss {last['loss']:.4g}."


def _facts(
    info: Any, steps: list[dict[str, Any]], lines: list[dict[str, Any]], config: dict[str, Any]
) -> list[tuple[str, str]]:
    net = info.model.get("net") or {}
    sde = info.model.get("sde") or {}
    facts = [
        ("data", f"{info.data.get('name')}, {info.data.get('size', 0):,} items of shape {tuple(info.shape)}"),
        ("network", str(net.get("class", net.get("custom", "")))),
        ("SDE", str(sde.get("class", sde.get("custom", "")))),
        ("batch", str(config.get("batch_size", ""))),
        ("seed", str(config.get("seed", ""))),
    ]
    if steps:
        seconds = steps[-1].get("seconds") or 0.0
        facts.append(("time", f"{seconds / 60:.1f} min, {steps[-1].get('steps_per_second') or 0:.3g} steps/s at last"))
    held = [line["held_out_loss"] for line in lines if isinstance(line.get("held_out_loss"), float)]
    if held:
        facts.append(("held-out loss", f"{held[-1]:.4g}, at best {min(held):.4g}"))
    facts += [
        (f"rollback at step {line['rollback_from']:,}", f"to step {line['step']:,}: {line.get('reason', '')}")
        for line in lines
        if "rollback_from" in line
    ]
    return facts


def _series(lines: list[dict[str, Any]], name: str) -> Points:
    return [(float(line["step"]), line[name]) for line in lines if isinstance(line.get(name), float)]


def _positive(curves: dict[str, Points]) -> bool:
    values = [point[1] for points in curves.values() for point in points]
    return bool(values) and min(values) > 0


def _levels(steps: list[dict[str, Any]]) -> dict[str, Points]:
    """Loss by log-SNR over the first and the last tenth of the lines."""
    tenth = max(1, math.ceil(len(steps) / 10))
    curves = {}
    for name, part in (("first tenth", steps[:tenth]), ("last tenth", steps[-tenth:])):
        found: dict[float, list[float]] = {}
        for line in part:
            for level, value in line.get("levels", []):
                if isinstance(value, float):
                    found.setdefault(level, []).append(value)
        curves[name] = [(level, sum(values) / len(values)) for level, values in sorted(found.items())]
    return {name: points for name, points in curves.items() if points}


def _grids(folder: Path) -> list[Path]:
    found = sorted((folder / SAMPLES).glob("step-*.png"), key=lambda p: int(p.stem[5:]))
    if len(found) <= SHOWN:
        return found
    return [found[round(i * (len(found) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
