"""One call that goes through all that can be wrong with a model, chapter by chapter, and a page of what it found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.open import open_data
from scorefield.diagnose.averages import other_averages
from scorefield.diagnose.chapter import FEWEST, ITEMS, LARGE_ITEMS, SMALL, TRAINING, Case, Chapter
from scorefield.diagnose.chapters import CHAPTERS, CHAPTERS_OF_MAPS
from scorefield.diagnose.kept import Kept
from scorefield.errors import InputError
from scorefield.evaluation.bits import model_input
from scorefield.flowmap import FlowMap
from scorefield.inputs import as_tensor, whole
from scorefield.model import ScoreModel
from scorefield.progress import Bar
from scorefield.randomness import whole_seed
from scorefield.report import Report, line_plot
from scorefield.sde import GaussianSDE
from scorefield.training.run import load, read_run


@dataclass(frozen=True)
class Diagnosis:
    """The chapters of a model, by name, and those that were left out, with the reason."""

    chapters: Mapping[str, Chapter]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{c.verdict:5}  {c.name:11}  {c.found}" for c in self.chapters.values()]
        lines += [f"{'':5}  {'':11}  {c.advice}" for c in self.chapters.values() if c.advice]
        return "\n".join(lines + [f"{'-':5}  {name:11}  left out: {why}" for name, why in self.left_out.items()])

    def values(self) -> dict[str, Any]:
        """All of it as JSON."""
        kept = ("verdict", "found", "advice", "threshold", "figures")
        chapters = {name: {k: getattr(c, k) for k in kept} for name, c in self.chapters.items()}
        return {"chapters": chapters, "left_out": dict(self.left_out)}

    def write(self, path: str | Path, title: str = "Diagnosis") -> None:
        """One self-contained page."""
        worst = [c.title for c in self.chapters.values() if c.verdict == "act"]
        page = Report(title, f"To act on: {' '.join(worst)}" if worst else "Nothing that calls for action was found.")
        page.verdicts("In short", [(c.title, c.verdict, c.found) for c in self.chapters.values()])
        for c in self.chapters.values():
            figure = line_plot(c.lines, c.labels, c.log_y) if c.lines else ""
            page.finding(c.title, c.verdict, (c.found, c.advice, c.threshold), figure + _rows(c))
        if self.left_out:
            page.table("Left out", ("chapter", "reason"), list(self.left_out.items()))
        page.write(Path(path))


def _rows(chapter: Chapter) -> str:
    """The single figures of a chapter, those of its curves apart, as a table; a pair is a figure and its standard error."""
    rows = ""
    for name, value in chapter.figures.items():
        if isinstance(value, float):
            rows += f"<tr><td>{escape(name)}</td><td>{value:.3g}</td></tr>"
        elif isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, float) for v in value):
            rows += f"<tr><td>{escape(name)}</td><td>{value[0]:.3g} ± {value[1]:.2g}</td></tr>"
    return f"<table><tbody>{rows}</tbody></table>" if rows else ""


WANTED = {
    "data": "held-out data",
    "train": "the training data",
    "others": "a run that keeps more than its average of the weights",
}
"""What a chapter may lack, in words."""


def report(
    source: ScoreModel | str | Path,
    data: Any = None,
    train: Tensor | None = None,
    only: Sequence[str] | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: bool | None = None,
    keep: str | Path | None = None,
    overwrite: bool = False,
) -> Diagnosis:
    """Is the start right, the score calibrated, a gradient, the flow one with the SDE, does it memorise; what can be trusted?

    Main arguments:
        source: a model, or a run by folder or name.
        data: held-out items in the model's range, (N, *); for a run also the name of data as on the command line, whose
            part for training is then compared with the held-out one, where the two are apart.
        train: items that a model was trained on, (M, *).
        only: names of chapters, of start, calibration, precision, averages, curl, gap, memory, samplers, trajectory,
            likelihood, posterior, width; all but the last by default. Of a flow map, which has no score, start and width.

    Other arguments:
        n: samples that are drawn; by default 2000 of up to 64 entries, else 64. seed: of everything.
        device: for a run. progress: as in `sample`.
        keep: file in which chapters are kept as they come, so that the same call goes on after a kill; chapters of other
            weights, data, n or seed are computed anew. overwrite: compute all of them anew.

    Raises:
        InputError: an unknown chapter, a file that holds something else, or data that do not fit the model.
    """
    unknown = set(only or ()) - set(CHAPTERS)
    if unknown:
        raise InputError(f"unknown chapter {', '.join(sorted(unknown))}; choose among {', '.join(CHAPTERS)}")
    if n is not None:
        n = whole(n, "n", "the number of samples")
    case = _case(source, data, train, n, whole_seed(seed), device)
    usual = [name for name in CHAPTERS if isinstance(case.model, FlowMap) or name != "width"]
    names = usual if only is None else [name for name in CHAPTERS if name in only]
    left_out = {name: why for name in names if (why := _why_not(case, name))}
    kept = Kept(None if keep is None else Path(keep), case, overwrite)
    with Bar("diagnosis", progress) as bar:
        for i, name in enumerate(names):
            if name not in left_out and name not in kept.chapters:
                kept.add(CHAPTERS[name][0](case))
            bar((i + 1) / len(names))
    return Diagnosis({name: kept.chapters[name] for name in names if name not in left_out}, left_out)


def _why_not(case: Case, name: str) -> str:
    """Why a chapter is left out; "" where it is not."""
    missing = [word for word in CHAPTERS[name][1] if getattr(case, word) is None]
    if isinstance(case.model, FlowMap) and name not in CHAPTERS_OF_MAPS:
        return "it needs a score, and a flow map has none"
    if missing:
        return f"it needs {WANTED[missing[0]]}"
    return ""


def _case(
    source: ScoreModel | str | Path, data: Any, train: Tensor | None, n: int | None, seed: int, device: str
) -> Case:
    if not isinstance(source, ScoreModel | str | Path):
        raise InputError(f"source is a {type(source).__name__}; give a model, or a run by folder or name")
    model = source if isinstance(source, ScoreModel) else load(source, device=device)
    if not isinstance(model.sde, GaussianSDE):
        raise InputError(f"diagnosis needs a GaussianSDE, with alpha and sigma, not {type(model.sde).__name__}")
    if isinstance(data, str | Path):
        if isinstance(source, ScoreModel):
            raise InputError("data by name needs a run, which knows its range; give a tensor of items")
        data, train = _of_run(source, str(data))
    items, seen = (None if x is None else as_tensor(x, "data").to(model.device) for x in (data, train))
    event = _event(model, [x for x in (items, seen) if x is not None])
    small = math.prod(event) <= SMALL
    items = None if items is None else items[: ITEMS if small else LARGE_ITEMS]
    others = None if isinstance(source, ScoreModel) else other_averages(source, device)
    return Case(model, items, None if seen is None else seen[:TRAINING], n or (2000 if small else 64), seed, others)


def _event(model: ScoreModel, sets: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of one item, which model and data share."""
    shapes = [tuple(x.shape[1:]) for x in sets]
    event = model.shape or next(iter(shapes), None)
    if event is None:
        raise InputError("the model does not know its event shape; give data")
    for x, shape in zip(sets, shapes, strict=True):
        if shape != event:
            raise InputError(f"data has items of shape {shape} and the model makes {event}")
        if len(x) < FEWEST:
            raise InputError(
                f"data has {len(x)} items; start, calibration, precision, curl, likelihood and width need {FEWEST} or more, "
                f"memory {FEWEST} of training as well; gap, samplers, trajectory and posterior none"
            )
        _check_range(model, x)
    return event


def _check_range(model: ScoreModel, x: Tensor) -> None:
    """Refuse pictures that are plainly not in the range of the model.

    Raises:
        InputError: values beyond it by a tenth of its width, or all of them in its upper half.
    """
    low, high = model.data_range or model.sde.range
    least, most = float(x.min()), float(x.max())
    if not math.isfinite(least + most):
        raise InputError("data has values that are not finite numbers")
    if len(x.shape) != 4 or x.shape[1] not in (1, 3):
        return
    beyond = max(low - least, most - high) > 0.1 * (high - low)
    if beyond or least >= 0.5 * (low + high) - 1e-6:
        raise InputError(f"data lies in [{least:g}, {most:g}] and the model expects [{low:g}, {high:g}]; rescale it")


def _of_run(run: str | Path, name: str) -> tuple[Tensor, Tensor | None]:
    """Held-out and training items in the range of a run; no training items where the two are one set."""
    info = read_run(run)
    known = info.data.get("range")
    span = None if not known else (float(known[0]), float(known[1]))
    levels = info.levels if info.levels != 256 else None
    parts: list[Dataset] = [
        open_data(name, info.shape, train=training, levels=levels, range=span, convert=True)
        for training in (False, True)
    ]
    held_out, seen = parts
    first = [
        model_input(part, range(min(most, part.size)), info.range, 0)
        for part, most in zip(parts, (ITEMS, TRAINING), strict=True)
    ]
    return first[0], first[1] if held_out.fingerprint() != seen.fingerprint() else None
