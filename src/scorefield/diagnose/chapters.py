"""The questions to a model, one function each, with a verdict and an advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.diagnose.averages import averages
from scorefield.diagnose.calibration import Level, calibration, curl, memory
from scorefield.diagnose.chapter import ITEMS, SHOWN, SMALL, SURE, Case, Chapter, Verdict, judge, pair
from scorefield.diagnose.chapters_of_use import likelihood, posterior
from scorefield.diagnose.gap import flow_gap, residual_by_level
from scorefield.diagnose.precision import rounding
from scorefield.diagnose.samplers import compare_samplers
from scorefield.diagnose.time import diffusion_time, nominal_prior
from scorefield.diagnose.trajectory import trajectory
from scorefield.diagnose.trust import EXACT_TRACE
from scorefield.dtypes import exact
from scorefield.empirical import Empirical
from scorefield.errors import InputError
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.flowmap import FlowMap
from scorefield.prior import Prior
from scorefield.report import Points
from scorefield.sampling import sample
from scorefield.solve.exponential import DDIM, DPMSolver

COMPARED, COMPARED_STEPS, COMPARED_TOLERANCE = ("DDIM", "Heun", "DPMSolver", "UniPC"), (4, 8, 16, 32), 1e-5
"""Samplers that are compared, at so many steps, and the tolerance of what they are compared with."""
FLOWN = 600
"""Items, one half of which is judged and the other fitted, whose density the flow gives at earlier times."""
WAYS, WAYS_LARGE, WAY_STEPS, STOP = 64, 8, 24, 0.5
"""Ways that are followed, those of many entries, their steps, and sigma / alpha where an early stop is looked at."""


def _start(case: Case) -> Chapter:
    """KL(N(moments of x_T) || nominal prior), in nats: what the start is wrong by, at least."""
    assert case.data is not None
    sde, flat = case.model.sde, exact(case.data).flatten(1)
    prior = sde.prior((1, *case.data.shape[1:]))
    at = [sde.T * k / 20 for k in range(4, 21)]
    full = len(flat) > 4 * flat.shape[1]
    spread = torch.linalg.eigvalsh(torch.cov(flat.T).reshape(flat.shape[1], -1)) if full else flat.var(0)
    values, scale = [], _std(prior) / nominal_prior(sde, sde.T, (1,)).std
    for t in at:
        variance = (scale * nominal_prior(sde, t, (1,)).std) ** 2
        c = (torch.square(sde.alpha(t)) * spread + torch.square(sde.sigma(t))) / variance
        shift = torch.square(sde.alpha(t) * flat.mean(0)).sum() / variance
        values.append(float(0.5 * (c - 1 - torch.log(c)).sum() + 0.5 * shift))
    kl = values[-1]
    verdict = judge(kl, 0.02, 0.25)
    told = "Start from a law of the data, prior=sf.diagnose.fit_prior(sde, data, T), or diffuse longer."
    advice = "" if verdict == "good" else told
    enough = next((t for k, t in enumerate(at) if max(values[k:]) < 0.02), None)
    words = f"The nominal prior is {kl:.2g} nats from the Gaussian with the moments of x_T."
    if enough is not None and enough < sde.T:
        words += f" T = {enough:.2g} would do: from there on it is below 0.02."
    figures: dict[str, Any] = {"kl": kl, "enough": enough}
    lines: dict[str, Points] = {"nominal, by moments": list(zip(at, values, strict=True))}
    if flat.shape[1] <= EXACT_TRACE and not isinstance(case.model, FlowMap):
        more, figures["enough_fitted"] = _by_the_flow(case)
        lines |= more
        if figures["enough_fitted"] is not None and verdict == "good":
            words += f" With a fitted Gaussian {figures['enough_fitted']:.2g} would."
    rule = (
        "From 0.02 nats watch, from 0.25 act: total variation up to (KL / 2)^(1/2), 10 % and 35 %. Too long a T costs "
    )
    rule += "steps alone. The curves are of processes that end at t."
    return Chapter("start", "Is T long enough?", verdict, words, advice, rule, figures, lines, ("t", "nats"), True)


def _by_the_flow(case: Case) -> tuple[dict[str, Points], float | None]:
    """Nats that either prior costs at some times, by the flow, and the first time at which a fitted one is good."""
    assert case.data is not None
    times = [share * case.model.sde.T for share in (0.3, 0.5, 0.7)]
    found = diffusion_time(case.model, case.data[:FLOWN], times, seed=case.seed)
    lines: dict[str, Points] = {}
    for name, row in (("nominal", found.nominal), ("fitted", found.fitted)):
        lines[f"{name}, by the flow"] = [(t, *pair(e)) for t, e in zip(found.times, row, strict=True)]
    early = (t for t, e in zip(found.times, found.fitted, strict=True) if e.value + 2 * e.stderr < 0.05)
    return lines, next(early, None)


def _std(prior: Any) -> float:
    if not isinstance(prior, Prior):
        raise InputError(
            f"the nominal prior is a {type(prior).__name__}; the chapter start needs an isotropic Gaussian"
        )
    return prior.std


def _marks(levels: Sequence[Level]) -> dict[str, list[Estimate]]:
    """What is 1 for an exact score, by name, at each level; the trace where it was computed."""
    traces = [v.trace for v in levels if v.trace is not None]
    marks = {"factor": [v.factor for v in levels], "pairing": [v.pairing for v in levels]}
    return marks | ({"trace": traces} if traces else {})


def _furthest(marks: Mapping[str, Sequence[Estimate]], levels: Sequence[Level]) -> tuple[float, float, str, Level]:
    """Of the marks that are surely not 1 the worst: how bad it is, how far from 1, its name and its level."""
    sizes = [
        # A trace that is off by 15 % is as bad as a factor of 5 %: it takes the Jacobian as well.
        (abs(e.value - 1) / (3 if name == "trace" else 1), abs(e.value - 1), name, level)
        for name, row in marks.items()
        for e, level in zip(row, levels, strict=True)
        if not abs(e.value - 1) <= SURE * e.stderr
    ]
    return max(sizes, key=lambda w: w[0], default=(0.0, 0.0, "", levels[0]))


def _calibration(case: Case) -> Chapter:
    assert case.data is not None
    levels = calibration(case.model, case.data, seed=case.seed)
    marks = _marks(levels)
    weight, size, name, where = _furthest(marks, levels)
    worse = sum(v.plain.value > SURE * v.plain.stderr for v in levels)
    untrained = 2 * worse > len(levels)
    verdict: Verdict = "act" if untrained else judge(weight, 0.02, 0.05)
    words = (
        f"The identities of an exact score hold at {len(levels)} noise levels, as far as {len(case.data)} items tell."
    )
    if untrained:
        words = f"At {worse} of {len(levels)} noise levels the best multiple of x_t predicts the noise better than the model: "
        words += "it is untrained, or not read as what it predicts."
    elif verdict != "good":
        what = "the variance that its Jacobian claims" if name == "trace" else "the score"
        words = f"At log-SNR {where.log_snr:.1f} (t = {where.t:.3g}) {what} is off by {100 * size:.0f} %."
    advice = "Train longer there, or look at the weighting, the clock and what the network predicts."
    rule = f"Factor or pairing {SURE:g} standard errors and 2 % from 1, or trace 6 %: watch; 5 % and 15 %: act."
    figures = {"log_snr": [v.log_snr for v in levels], "loss": [v.loss.value for v in levels]}
    lines: dict[str, Points] = {
        name: [(v.log_snr, *pair(e)) for v, e in zip(levels, row, strict=True) if e.stderr < SHOWN]
        for name, row in marks.items()
    }
    return Chapter(
        "calibration",
        "Is the score calibrated?",
        verdict,
        words,
        "" if verdict == "good" else advice,
        rule,
        figures | {name: [pair(e) for e in row] for name, row in marks.items()},
        lines,
        ("log-SNR", "1 is right"),
    )


def _precision(case: Case) -> Chapter:
    assert case.data is not None
    levels = rounding(case.model, case.data[:16], seed=case.seed)
    worst = max(levels, key=lambda v: v.error if math.isfinite(v.error) else math.inf)
    broken = not math.isfinite(worst.error)
    kind = str(case.model.dtype).removeprefix("torch.")
    verdict: Verdict = "act" if broken else judge(worst.error, 0.005, 0.02)
    words = f"In {kind} the prediction of the noise is off by {worst.error:.2g} of it at most, at log-SNR {worst.log_snr:.1f}."
    if broken:
        words = f"In {kind} the model is not finite at log-SNR {worst.log_snr:.1f}, where in float64 it is."
    advice = "" if verdict == "good" else "Keep the weights in float32 (model.float()), or sample to a larger t_min."
    rule = "An error of 0.5 % of the noise: watch; 2 %, which is 2e-4 nats for each entry and unit of log-SNR: act."
    lines: dict[str, Points] = {"error": [(v.log_snr, v.error) for v in levels]}
    figures = {"log_snr": [v.log_snr for v in levels], "error": [v.error if not broken else None for v in levels]}
    title, labels = "Has its dtype digits enough?", ("log-SNR", "error, in units of the noise")
    return Chapter("precision", title, verdict, words, advice, rule, figures, lines, labels, True)


def _curl(case: Case) -> Chapter:
    assert case.data is not None
    kept, few = _levels_inside(case), 64 if case.data[0].numel() <= SMALL else 16
    times = [float(case.model.sde.inverse_log_snr(v)) for v in kept]
    found = [curl(case.model, case.data[:few], t, 2, case.seed) for t in times]
    sure = [e for e in found if e.value > SURE * e.stderr]
    size = max((e.value for e in sure), default=0.0)
    verdict = judge(size, 0.01, 0.03)
    words = f"Up to {100 * size:.2g} % of the score's Jacobian is a rotation." if size else "The score is a gradient."
    advice = "" if verdict == "good" else "No density has this score: likelihoods by it are not those of its samples."
    rule = "E|Jv - J'v|^2 / E|Jv + J'v|^2 of 1 %: watch; 3 %: act."
    lines: dict[str, Points] = {"curl": [(v, *pair(e)) for v, e in zip(kept, found, strict=True)]}
    figures = {"log_snr": kept, "curl": [pair(e) for e in found]}
    title = "Is the score a gradient?"
    return Chapter("curl", title, verdict, words, advice, rule, figures, lines, ("log-SNR", "curl"))


def _levels_inside(case: Case) -> list[float]:
    """Log-SNRs in the middle, those that the process goes through."""
    sde = case.model.sde
    low, high = (float(sde.log_snr(t)) for t in (0.98 * sde.T, max(sde.t_min, 1e-3 * sde.T)))
    return [v for v in (4.0, 2.0, 0.0, -2.0) if low <= v <= high]


def _gap(case: Case) -> Chapter:
    found = flow_gap(case.model, case.n, 200 if case.n >= ITEMS else 60, case.seed)
    size = found.excess / found.scale
    verdict = judge(size, 0.05, 0.15, found.significant)
    words = f"Flow and SDE differ by {found.gap.value:.3g} per direction; chance alone gives {found.floor.value:.3g}."
    advice = "Sample by the process that is nearer to the data; likelihoods are the flow's alone."
    rule = f"{SURE:g} standard errors above chance, and 5 % of the spread of samples: watch; 15 %: act. "
    figures = {"gap": pair(found.gap), "floor": pair(found.floor), "relative": size, "scale": found.scale}
    at, rest = _residual(case)
    lines: dict[str, Points] = {"residual": [(v, *pair(e)) for v, e in zip(at, rest, strict=True)]} if rest else {}
    if rest:
        figures |= {"log_snr": at, "residual": [pair(e) for e in rest]}
        rule += "The curve, at 0 where a score solves the Fokker-Planck equation, says at which noise they part."
    told = "" if verdict == "good" else advice
    labels = ("log-SNR", "residual, squared, per entry")
    return Chapter("gap", "Do flow and SDE agree?", verdict, words, told, rule, figures, lines, labels)


def _residual(case: Case) -> tuple[list[float], list[Estimate]]:
    """What is left over in the Fokker-Planck equation, where there are data and a network that is smooth in time."""
    at = _levels_inside(case)
    if case.data is None or not at:
        return [], []
    few, probes = (64, None) if case.data[0].numel() <= 8 else (16, 1)
    times = [float(case.model.sde.inverse_log_snr(v)) for v in at]
    try:
        return at, residual_by_level(case.model, case.data[:few], times, probes=probes, seed=case.seed)
    except (NotImplementedError, RuntimeError):  # an operation of the network that has no second derivative
        return [], []


def _memory(case: Case) -> Chapter:
    assert case.data is not None
    assert case.train is not None
    size = min(len(case.data), len(case.train))
    levels = calibration(case.model, case.data[:size], case.train[:size], seed=case.seed, trace=False)
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
        "held out": [(v.log_snr, *pair(v.loss)) for v in levels],
        "training": [(v.log_snr, v.loss.value - g.value) for v, g in zip(levels, gaps, strict=True)],
    }
    figures = {"ratio": near.ratio, "excess": relative, "nearest": near.index.tolist(), "gap": [pair(g) for g in gaps]}
    return Chapter(
        "memory", "Does it memorise?", verdict, words, advice, rule, figures, lines, ("log-SNR", "loss"), True
    )


def _trajectory(case: Case) -> Chapter:
    """Ways of the flow in x / alpha: how bent, whether they near their ends, where they leave those of the training data."""
    count = WAYS if case.n >= ITEMS else WAYS_LARGE
    grid = "log_snr" if float(case.model.sde.alpha(case.model.sde.T)) > 0 else None
    way = trajectory(case.model, count, DDIM(), WAY_STEPS, case.seed, grid=grid, progress=False)
    x, denoised = (torch.square(d).mean(1).sqrt() / math.sqrt(way.x[0, 0].numel()) for d in way.distance())
    rows = {"x": x, "E[x_0 | x]": denoised}
    if case.train is not None:
        rows["to memory"] = way.deviation(Empirical(case.train, case.model.sde)).mean(1)
    figures: dict[str, Any] = {
        "bend": pair(mean_of(way.bend())),
        "plane": float(way.components(2)[:, 1].mean()),
        "away": float((way.distance()[0].diff(dim=0) >= 0).double().mean()),
        "sigma": way.sigma.tolist(),
    } | {name: row.tolist() for name, row in rows.items()}
    bend, away = figures["bend"][0], figures["away"]
    verdict = max(judge(bend, 0.1, 0.5), judge(away, 0.1, 0.3), key=("good", "watch", "act").index)
    words = f"Ways bend by {100 * bend:.2g} % of their length"
    if way.x[0, 0].numel() > 2:
        words += f" and lie in a plane to {100 * figures['plane']:.3g} %"
    words += f"; {100 * (1 - away):.3g} % of the steps lead nearer to the end."
    stop = next((k for k, size in enumerate(figures["sigma"]) if size <= STOP), None)
    if verdict == "good" and stop is not None:
        words += f" After {stop} of {WAY_STEPS} steps, at sigma = {STOP:g} alpha, E[x_0 | x] is "
        words += f"{float(denoised[stop]):.2g} from it."
    told = "See whether the score is calibrated and a gradient: ways of an exact one bend little."
    advice = "" if verdict == "good" else told
    rule = "A bend of 10 % of the way on average, or 10 % of the steps away from the end: watch; 50 %, or 30 %: act. "
    rule += "Distances to the end of x, and of E[x_0 | x] to that of the exact model of the training items, its memory."
    lines: dict[str, Points] = {
        name: list(zip((-2 * torch.log(way.sigma)).tolist(), row.tolist(), strict=True)) for name, row in rows.items()
    }
    title, labels = "Which way do samples take?", ("log-SNR", "distance")
    return Chapter("trajectory", title, verdict, words, advice, rule, figures, lines, labels, True)


def _width(case: Case) -> Chapter:
    """Spread of samples over that of data, by the root of the total variance: few levels make a map too narrow or too wide."""
    assert case.data is not None
    figures: dict[str, Any] = {}
    for steps in (1, 2, 4) if isinstance(case.model, FlowMap) else (None,):
        x = sample(case.model, case.n, steps=steps, seed=case.seed, progress=False)
        figures[str(steps or "default")] = pair(_spread(x, case.data))
    where, (value, stderr) = max(figures.items(), key=lambda item: abs(item[1][0] - 1))
    verdict = judge(abs(value - 1), 0.05, 0.15, abs(value - 1) > SURE * stderr)
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
    verdict = judge(best.error, 0.02 + 1e-9, 0.2)
    words = f"{best.solver} comes within {100 * best.error:.2g} % of the converged flow in {best.nfe} evaluations."
    advice = f"Use sf.{best.solver}() with steps={best.steps}."
    rule = "An error of 2 % of the spread of samples is not seen; none below 20 % with 32 steps: act."
    figures = {"runs": [vars(run) for run in table.runs], "best": vars(best)}
    labels = ("evaluations", "relative error")
    return Chapter("samplers", "Which sampler?", verdict, words, advice, rule, figures, table.curves(), labels, True)


CHAPTERS: dict[str, tuple[Callable[[Case], Chapter], tuple[str, ...]]] = {
    "start": (_start, ("data",)),
    "calibration": (_calibration, ("data",)),
    "precision": (_precision, ("data",)),
    "averages": (averages, ("data", "others")),
    "curl": (_curl, ("data",)),
    "gap": (_gap, ()),
    "memory": (_memory, ("data", "train")),
    "samplers": (_samplers, ()),
    "trajectory": (_trajectory, ()),
    "likelihood": (likelihood, ("data",)),
    "posterior": (posterior, ()),
    "width": (_width, ("data",)),
}
"""What is asked, and what of data it needs."""
CHAPTERS_OF_MAPS = ("start", "width")
"""What is asked of a flow map, which has no score."""
