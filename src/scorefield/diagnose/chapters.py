"""The questions to a model, one function each, with a verdict and an advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.diagnose.calibration import calibration, curl, memory
from scorefield.diagnose.gap import flow_gap
from scorefield.diagnose.samplers import compare_samplers
from scorefield.dtypes import exact
from scorefield.errors import InputError
from scorefield.evaluation.metrics import Estimate
from scorefield.flowmap import FlowMap
from scorefield.model import ScoreModel
from scorefield.prior import Prior
from scorefield.report import Points
from scorefield.sampling import sample
from scorefield.solve.exponential import DPMSolver

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
        lines, labels, log_y: a figure of named curves, what its axes are, and whether the upward one is logarithmic.
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
    log_y: bool = False


@dataclass(frozen=True)
class Case:
    """What is asked about: a model, items it has not seen and has, how many samples to draw."""

    model: ScoreModel
    data: Tensor | None
    train: Tensor | None
    n: int
    seed: int


def _verdict(size: float, watch: float, act: float, sure: bool = True) -> Verdict:
    if not sure or size < watch:
        return "good"
    return "act" if size >= act else "watch"


def _start(case: Case) -> Chapter:
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
    return Chapter("start", "Is T long enough?", verdict, found, advice, rule, {"kl": kl}, lines, ("t", "nats"), True)


def _std(prior: Any) -> float:
    if not isinstance(prior, Prior):
        raise InputError(
            f"the nominal prior is a {type(prior).__name__}; the chapter start needs an isotropic Gaussian"
        )
    return prior.std


def _calibration(case: Case) -> Chapter:
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
    lines: dict[str, Points] = {
        name: [
            (v.log_snr, *_pair(e)) for v, e in zip(levels, row, strict=True) if e.stderr < 0.25
        ]  # the rest is chance
        for name, row in marks.items()
    }
    title = "Is the score calibrated?"
    return Chapter("calibration", title, verdict, found, advice, rule, figures, lines, ("log-SNR", "1 is right"))


def _curl(case: Case) -> Chapter:
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
    lines = {"curl": [(v, *_pair(e)) for v, e in zip(kept, found, strict=True)]}
    figures = {"log_snr": kept, "curl": [[e.value, e.stderr] for e in found]}
    return Chapter(
        "curl", "Is the score a gradient?", verdict, words, advice, rule, figures, lines, ("log-SNR", "curl")
    )


def _gap(case: Case) -> Chapter:
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


def _memory(case: Case) -> Chapter:
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
    lines: dict[str, Points] = {
        "held out": [(v.log_snr, *_pair(v.loss)) for v in levels],
        "training": [(v.log_snr, v.loss.value - g.value) for v, g in zip(levels, gaps, strict=True)],
    }
    figures = {"ratio": near.ratio, "excess": relative, "nearest": near.index.tolist(), "gap": [_pair(g) for g in gaps]}
    return Chapter(
        "memory", "Does it memorise?", verdict, words, advice, rule, figures, lines, ("log-SNR", "loss"), True
    )


def _width(case: Case) -> Chapter:
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


def _samplers(case: Case) -> Chapter:
    starts = min(case.n, 16)
    table = compare_samplers(case.model, starts, COMPARED_STEPS, COMPARED, case.seed, tolerance=COMPARED_TOLERANCE)
    best = table.best(0.02)
    verdict = _verdict(best.error, 0.02 + 1e-9, 0.2)
    words = f"{best.solver} comes within {100 * best.error:.2g} % of the converged flow in {best.nfe} evaluations."
    advice = f"Use sf.{best.solver}() with steps={best.steps}."
    rule = "An error of 2 % of the spread of samples is not seen; none below 20 % with 32 steps: act."
    figures = {"runs": [vars(run) for run in table.runs], "best": vars(best)}
    labels = ("evaluations", "relative error")
    return Chapter("samplers", "Which sampler?", verdict, words, advice, rule, figures, table.curves(), labels, True)


def _pair(e: Estimate) -> tuple[float, float]:
    return e.value, e.stderr


CHAPTERS: dict[str, tuple[Callable[[Case], Chapter], tuple[str, ...]]] = {
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
