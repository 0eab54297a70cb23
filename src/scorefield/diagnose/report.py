"""One call that goes through all that can be wrong with a model, chapter by chapter, with a verdict and an advice each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.open import open_data
from scorefield.diagnose.calibration import calibration, curl, memory
from scorefield.diagnose.gap import flow_gap
from scorefield.diagnose.samplers import compare_samplers
from scorefield.dtypes import exact
from scorefield.errors import InputError
from scorefield.evaluation.bits import model_input
from scorefield.evaluation.metrics import Estimate
from scorefield.flowmap import FlowMap
from scorefield.inputs import as_tensor
from scorefield.model import ScoreModel
from scorefield.prior import Prior
from scorefield.progress import Bar
from scorefield.report import Points, Report
from scorefield.sampling import sample
from scorefield.sde import GaussianSDE
from scorefield.solve.exponential import DPMSolver
from scorefield.training.run import load, read_run

Verdict = Literal["good", "watch", "act"]
ITEMS, LARGE_ITEMS, TRAINING = 1000, 160, 4000
"""Held-out items that are looked at, at most; those of many entries; and items of training, which samples are compared with."""
SMALL = 64
"""Entries up to which thousands of samples cost nothing."""
SURE = 4.0
"""Standard errors that a figure must be away from where it should be, before anything is said."""
COMPARED, COMPARED_STEPS, COMPARED_TOLERANCE = ("DDIM", "Heun", "DPMSolver", "UniPC"), (4, 8, 16, 32), 1e-5
"""Samplers that are compared, at so many steps, and the tolerance of what they are compared with."""


@dataclass(frozen=True)
class Chapter:
    """One question to a model.

    Attributes:
        name, title: as `only` takes it, and in words.
        verdict: "good", "watch" or "act". found: what, in one sentence. advice: what to do; "" where nothing is.
        threshold: when the verdict changes. figures: the numbers.
        lines, labels: a figure of named curves and what its axes are.
    """

    name: str
    title: str
    verdict: Verdict
    found: str
    advice: str
    threshold: str
    figures: Mapping[str, Any]
    lines: Mapping[str, Points] = field(default_factory=dict)
    labels: tuple[str, str] = ("", "")


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
        page = Report(title, f"To act on: {', '.join(worst)}." if worst else "Nothing that calls for action was found.")
        rows = [(c.title, c.verdict) for c in self.chapters.values()]
        page.table(
            "Verdicts", ("question", "verdict"), rows + [(n, f"left out: {w}") for n, w in self.left_out.items()]
        )
        for c in self.chapters.values():
            text = " ".join(part for part in (c.found, c.advice, c.threshold) if part)
            if c.lines:
                page.curves(f"{c.title}: {c.verdict}", text, c.lines, c.labels)
            else:
                cells = [(name, ", ".join(f"{v:.3g}" for v in _listed(value))) for name, value in c.figures.items()]
                page.table(f"{c.title}: {c.verdict}", ("figure", "value, standard error"), cells, text)
        page.write(Path(path))


@dataclass(frozen=True)
class _Case:
    model: ScoreModel
    data: Tensor | None
    train: Tensor | None
    n: int
    seed: int


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
) -> Diagnosis:
    """Is the start right, the score calibrated, a gradient, the flow one with the SDE, does it memorise, which sampler?

    Main arguments:
        source: a model, or a run by folder or name.
        data: held-out items in the model's range, (N, *); for a run also the name of data as on the command line, whose
            part for training is then compared with the held-out one, where the two are apart.
        train: items that a model was trained on, (M, *).
        only: names of chapters, of start, calibration, curl, gap, memory, samplers, width; all but the last by default. Of a
            flow map, which has no score, start and width.

    Other arguments:
        n: samples that are drawn; by default 2000 of up to 64 entries, else 64. seed: of everything.
        device: for a run. progress: as in `sample`.

    Raises:
        InputError: an unknown chapter, or data that do not fit the model.
    """
    unknown = set(only or ()) - set(CHAPTERS)
    if unknown:
        raise InputError(f"unknown chapter {', '.join(sorted(unknown))}; choose among {', '.join(CHAPTERS)}")
    case = _case(source, data, train, n, seed, device)
    chapters, left_out = {}, {}
    with Bar("diagnosis", progress) as bar:
        mapped = isinstance(case.model, FlowMap)
        names = [name for name in CHAPTERS if (only is None and (mapped or name != "width")) or name in (only or ())]
        for i, name in enumerate(names):
            ask, needs = CHAPTERS[name]
            missing = [word for word in needs if getattr(case, word) is None]
            if mapped and name not in CHAPTERS_OF_MAPS:
                left_out[name] = "it needs a score, and a flow map has none"
            elif missing:
                left_out[name] = f"it needs {'held-out data' if 'data' in missing else 'the training data'}"
            else:
                chapters[name] = ask(case)
            bar((i + 1) / len(names))
    return Diagnosis(chapters, left_out)


def _case(
    source: ScoreModel | str | Path, data: Any, train: Tensor | None, n: int | None, seed: int, device: str
) -> _Case:
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
    return _Case(model, items, None if seen is None else seen[:TRAINING], n or (2000 if small else 64), seed)


def _event(model: ScoreModel, sets: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of one item, which model and data share."""
    shapes = [tuple(x.shape[1:]) for x in sets]
    event = model.shape or next(iter(shapes), None)
    if event is None:
        raise InputError("the model does not know its event shape; give data")
    for x, shape in zip(sets, shapes, strict=True):
        if shape != event:
            raise InputError(f"data has items of shape {shape} and the model makes {event}")
        if len(x) < 16:
            raise InputError(f"data has {len(x)} items; diagnosis needs 16 or more")
    return event


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


def _verdict(size: float, watch: float, act: float, sure: bool = True) -> Verdict:
    if not sure or size < watch:
        return "good"
    return "act" if size >= act else "watch"


def _start(case: _Case) -> Chapter:
    """KL(N(moments of x_T) || nominal prior), in nats: what the start is wrong by, at least."""
    assert case.data is not None
    sde, flat = case.model.sde, exact(case.data).flatten(1)
    prior = sde.prior((1, *case.data.shape[1:]))
    at = [sde.T * k / 20 for k in range(4, 21)]
    full = len(flat) > 4 * flat.shape[1]
    spread = torch.linalg.eigvalsh(torch.cov(flat.T).reshape(flat.shape[1], -1)) if full else flat.var(0)
    values = []
    for t in at:
        c = (torch.square(sde.alpha(t)) * spread + torch.square(sde.sigma(t))) / _std(prior) ** 2
        shift = torch.square(sde.alpha(t) * flat.mean(0)).sum() / _std(prior) ** 2
        values.append(float(0.5 * (c - 1 - torch.log(c)).sum() + 0.5 * shift))
    kl = values[-1]
    verdict = _verdict(kl, 0.02, 0.25)
    advice = (
        ""
        if verdict == "good"
        else "Start from a law of the data, prior=sf.diagnose.fit_prior(sde, data, T), or diffuse longer."
    )
    found = f"The nominal prior is {kl:.2g} nats from the Gaussian with the moments of x_T."
    rule = "From 0.02 nats watch, from 0.25 act: total variation up to (KL / 2)^(1/2), 10 % and 35 %."
    lines = {"KL": list(zip(at, values, strict=True))}
    return Chapter("start", "Is T long enough?", verdict, found, advice, rule, {"kl": kl}, lines, ("t", "nats"))


def _std(prior: Any) -> float:
    if not isinstance(prior, Prior):
        raise InputError(
            f"the nominal prior is a {type(prior).__name__}; the chapter start needs an isotropic Gaussian"
        )
    return prior.std


def _calibration(case: _Case) -> Chapter:
    assert case.data is not None
    levels = calibration(case.model, case.data, seed=case.seed)
    marks = {"factor": [v.factor for v in levels], "pairing": [v.pairing for v in levels]}
    wrong = [
        (abs(e.value - 1), name, levels[i])
        for name, row in marks.items()
        for i, e in enumerate(row)
        if abs(e.value - 1) > SURE * e.stderr
    ]
    size, _, where = max(wrong, key=lambda w: w[0], default=(0.0, "", levels[0]))
    verdict = _verdict(size, 0.02, 0.05)
    found = (
        f"The identities of an exact score hold at {len(levels)} noise levels, as far as {len(case.data)} items tell."
    )
    if verdict != "good":
        found = f"At log-SNR {where.log_snr:.1f} (t = {where.t:.3g}) the score is off by {100 * size:.0f} % in size."
    advice = (
        ""
        if verdict == "good"
        else "Train longer there, or look at the weighting, the clock and what the network predicts."
    )
    rule = f"A factor or pairing that is {SURE:g} standard errors and 2 % from 1: watch; 5 %: act."
    figures = {
        "log_snr": [v.log_snr for v in levels],
        "loss": [v.loss.value for v in levels],
        **{name: [[e.value, e.stderr] for e in row] for name, row in marks.items()},
    }
    lines = {
        name: [(v.log_snr, e.value) for v, e in zip(levels, row, strict=True) if e.stderr < 0.25]  # the rest is chance
        for name, row in marks.items()
    }
    lines["loss"] = [(v.log_snr, v.loss.value) for v in levels]
    title = "Is the score calibrated?"
    return Chapter("calibration", title, verdict, found, advice, rule, figures, lines, ("log-SNR", "1 is right; loss"))


def _curl(case: _Case) -> Chapter:
    assert case.data is not None
    sde = case.model.sde
    snrs = [4.0, 2.0, 0.0, -2.0]
    low, high = (float(sde.log_snr(t)) for t in (0.98 * sde.T, max(sde.t_min, 1e-3 * sde.T)))
    kept = [v for v in snrs if low <= v <= high]
    few = 64 if case.data[0].numel() <= SMALL else 16
    found = [curl(case.model, case.data[:few], float(sde.inverse_log_snr(v)), 2, case.seed) for v in kept]
    sure = [e for e in found if e.value > SURE * e.stderr]
    size = max((e.value for e in sure), default=0.0)
    verdict = _verdict(size, 0.01, 0.03)
    words = f"Up to {100 * size:.1g} % of the score's Jacobian is a rotation." if size else "The score is a gradient."
    advice = "" if verdict == "good" else "No density has this score: likelihoods by it are not those of its samples."
    rule = "E|Jv - J'v|^2 / E|Jv + J'v|^2 of 1 %: watch; 3 %: act."
    lines = {"curl": [(v, e.value) for v, e in zip(kept, found, strict=True)]}
    figures = {"log_snr": kept, "curl": [[e.value, e.stderr] for e in found]}
    return Chapter(
        "curl", "Is the score a gradient?", verdict, words, advice, rule, figures, lines, ("log-SNR", "curl")
    )


def _gap(case: _Case) -> Chapter:
    found = flow_gap(case.model, case.n, 200 if case.n >= ITEMS else 60, case.seed)
    size = found.excess / found.scale
    verdict = _verdict(size, 0.05, 0.15, found.significant)
    words = f"Flow and SDE differ by {found.gap.value:.3g} per direction; chance alone gives {found.floor.value:.3g}."
    advice = (
        ""
        if verdict == "good"
        else "Sample by the process that is nearer to the data; likelihoods are the flow's alone."
    )
    rule = f"{SURE:g} standard errors above chance, and 5 % of the spread of samples: watch; 15 %: act."
    figures = {"gap": _pair(found.gap), "floor": _pair(found.floor), "relative": size, "scale": found.scale}
    return Chapter("gap", "Do flow and SDE agree?", verdict, words, advice, rule, figures)


def _memory(case: _Case) -> Chapter:
    assert case.data is not None
    assert case.train is not None
    size = min(len(case.data), len(case.train))
    levels = calibration(case.model, case.data[:size], case.train[:size], seed=case.seed)
    gaps = [v.gap for v in levels if v.gap is not None]
    sure = [g.value / (v.loss.value - g.value) for v, g in zip(levels, gaps, strict=True) if g.value > SURE * g.stderr]
    samples = sample(case.model, min(case.n, 64), DPMSolver(), seed=case.seed, progress=False)
    near = memory(samples, case.train, case.data)
    relative = max(sure, default=0.0)
    verdict: Verdict = "act" if near.ratio < 0.5 or relative > 0.5 else "watch" if relative > 0.05 else "good"
    words = f"Samples are {near.ratio:.2f} times as far from training items as held-out items are"
    words += f", and the held-out loss is up to {100 * relative:.0f} % above that of training." if relative else "."
    advice = (
        ""
        if verdict == "good"
        else "Stop earlier, take more data, dropout or augmentation; keep samples from being published."
    )
    rule = f"A ratio below 0.5, or a loss 50 % higher at {SURE:g} standard errors: act; 5 % higher: watch."
    lines = {
        "held out": [(v.log_snr, v.loss.value) for v in levels],
        "training": [(v.log_snr, v.loss.value - g.value) for v, g in zip(levels, gaps, strict=True)],
    }
    figures = {"ratio": near.ratio, "excess": relative, "nearest": near.index.tolist(), "gap": [_pair(g) for g in gaps]}
    return Chapter("memory", "Does it memorise?", verdict, words, advice, rule, figures, lines, ("log-SNR", "loss"))


def _width(case: _Case) -> Chapter:
    """Spread of samples over that of data, by the root of the total variance: few levels make a map too narrow or too wide."""
    assert case.data is not None
    figures: dict[str, Any] = {}
    for steps in (1, 2, 4) if isinstance(case.model, FlowMap) else (None,):
        x = sample(case.model, case.n, steps=steps, seed=case.seed, progress=False)
        figures[str(steps or "default")] = _pair(_spread(x, case.data))
    where, (value, stderr) = max(figures.items(), key=lambda item: abs(item[1][0] - 1))
    verdict = _verdict(abs(value - 1), 0.05, 0.15, abs(value - 1) > SURE * stderr)
    words = f"Samples are {value:.2f} times as wide as the data ({where} steps)."
    advice = "" if verdict == "good" else "Train longer; a distilled run also on more levels of noise."
    rule = f"{SURE:g} standard errors and 5 % from 1: watch; 15 %: act."
    return Chapter("width", "Are samples as wide as the data?", verdict, words, advice, rule, figures)


def _spread(x: Tensor, data: Tensor) -> Estimate:
    """Ratio of the roots of the total variances of x (n, *) and data (m, *), with its standard error."""
    parts = [torch.square(exact(v).flatten(1) - exact(v).flatten(1).mean(0)).sum(1) for v in (x, data)]
    means, errors = zip(*((float(p.mean()), float(p.std()) / math.sqrt(len(p))) for p in parts), strict=True)
    value = math.sqrt(means[0] / means[1])
    relative = math.hypot(*(e / m for e, m in zip(errors, means, strict=True)))
    return Estimate(value, 0.5 * value * relative, min(len(x), len(data)))


def _samplers(case: _Case) -> Chapter:
    starts = min(case.n, 16)
    table = compare_samplers(case.model, starts, COMPARED_STEPS, COMPARED, case.seed, tolerance=COMPARED_TOLERANCE)
    best = table.best(0.02)
    verdict = _verdict(best.error, 0.02 + 1e-9, 0.2)
    words = f"{best.solver} comes within {100 * best.error:.2g} % of the converged flow in {best.nfe} evaluations."
    advice = f"Use sf.{best.solver}() with steps={best.steps}."
    rule = "An error of 2 % of the spread of samples is not seen; none below 20 % with 32 steps: act."
    figures = {"runs": [vars(run) for run in table.runs], "best": vars(best)}
    labels = ("evaluations", "relative error")
    return Chapter("samplers", "Which sampler?", verdict, words, advice, rule, figures, table.curves(), labels)


def _listed(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _pair(e: Estimate) -> list[float]:
    return [e.value, e.stderr]


CHAPTERS: dict[str, tuple[Callable[[_Case], Chapter], tuple[str, ...]]] = {
    "start": (_start, ("data",)),
    "calibration": (_calibration, ("data",)),
    "curl": (_curl, ("data",)),
    "gap": (_gap, ()),
    "memory": (_memory, ("data", "train")),
    "samplers": (_samplers, ()),
    "width": (_width, ("data",)),
}
"""What is asked, and what of data it needs."""
CHAPTERS_OF_MAPS = ("start", "width")
"""What is asked of a flow map, which has no score."""
