"""The questions to what a model is used for: whether its likelihoods and its posteriors can be trusted."""

from __future__ import annotations

import math
from typing import Any

import torch

from scorefield.diagnose.chapter import FEWEST, SMALL, SURE, Case, Chapter, Verdict, judge, pair
from scorefield.diagnose.trust import EARLIER, EXACT_TRACE, LikelihoodTrust, likelihood_trust, posterior_trust
from scorefield.evaluation.metrics import Estimate
from scorefield.inverse.posterior import MISFIT
from scorefield.report import Points
from scorefield.sampling import sample

JUDGED, JUDGED_LARGE = 64, 6
"""Items whose likelihood is computed, and those of many entries."""
TRUTHS, TRUTHS_LARGE, STEPS_LARGE = 200, 12, 20
"""Measurements whose posterior is drawn, those of many entries, and the steps for these."""
FAR = 5.0
"""Distance of samples to the measurement, in units of its noise, from which they are of no use."""
LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Of the intervals that are counted."""


def likelihood(case: Case) -> Chapter:
    """What moves a log-likelihood beside the model and the item."""
    assert case.data is not None
    count = JUDGED if case.data[0].numel() <= SMALL else JUDGED_LARGE
    count = min(count, len(case.data) // 2)
    fit = case.data[count:] if case.train is None else case.train
    found = likelihood_trust(case.model, case.data[:count], fit, seed=case.seed)
    sizes = {"tolerance": _surely(found, found.tolerance), "t_min": _surely(found, found.t_min)}
    name = max(sizes, key=lambda word: sizes[word])
    verdict: Verdict = "act" if found.lost else judge(sizes[name], 0.05, 0.25)
    words = _what_moves(found)
    if found.lost:
        words = f"The flow of {found.lost} of {count} items does not arrive, so that they have no likelihood."
    advice = {
        "tolerance": "Tighten the tolerance, solver=sf.Dopri5(1e-6, 1e-6), until figures stay; the network may be rough.",
        "t_min": "Quote t_min with every figure, for the data are finer than its noise: dequantise those that have no density.",
    }[name]
    if found.lost:
        advice = "See whether the score is finite and calibrated; likelihoods of such items are not to be quoted."
    rule = f"A change of 0.05 bits per entry at {SURE:g} standard errors: watch; 0.25, or an item without likelihood: act. "
    rule += "Figures are quoted to 0.01. The prior is judged where it is asked whether T is long enough."
    figures: dict[str, Any] = {name: _bits(found, getattr(found, name)) for name in sizes}
    figures |= {"probe": found.bits(found.probe), "probes": found.probes(), "lost": found.lost}
    if found.prior is not None:
        figures["prior"] = _bits(found, found.prior)
    told = "" if verdict == "good" else advice
    title, labels = "Can its likelihoods be trusted?", ("items, in order", "bits per entry, minus log p")
    return Chapter("likelihood", title, verdict, words, told, rule, figures, _by_item(found), labels)


def _surely(found: LikelihoodTrust, change: Estimate) -> float:
    """The size of a change in bits per entry, 0 where chance explains it."""
    sure = abs(change.value) > SURE * change.stderr
    return abs(found.bits(change.value)) if sure else 0.0


def _bits(found: LikelihoodTrust, change: Estimate) -> tuple[float, float]:
    return found.bits(change.value), found.bits(change.stderr)


def _what_moves(found: LikelihoodTrust) -> str:
    loose, early = (found.bits(e.value) for e in (found.tolerance, found.t_min))
    words = f"A looser tolerance moves it by {loose:+.2g} bits per entry, a tenth of t_min by {early:+.2g}"
    if found.prior is not None:
        words += f", a fitted prior by {found.bits(found.prior.value):+.2g}"
    if found.dims <= EXACT_TRACE:
        return words + '; take trace="exact", for one probe scatters by ' + f"{found.bits(found.probe):.2g}."
    return words + f"; {found.probes()} probes for each item give an error of 0.01."


def _by_item(found: LikelihoodTrust) -> dict[str, Points]:
    order = torch.argsort(found.nats).tolist()
    rows = {
        "as it is": found.nats,
        "looser": found.looser,
        f"looser, t_min / {EARLIER:g}": found.earlier,
    }
    return {name: [(float(i), -found.bits(float(row[k]))) for i, k in enumerate(order)] for name, row in rows.items()}


def _is_small(case: Case) -> bool:
    shapes = [case.model.shape, None if case.data is None else case.data.shape[1:]]
    return any(shape is not None and math.prod(shape) <= SMALL for shape in shapes)


def posterior(case: Case) -> Chapter:
    """Coverage of posterior intervals for one measured number, of held-out items or else of the model's own draws."""
    small = _is_small(case)
    count = TRUTHS if small else TRUTHS_LARGE
    truths = case.data
    if truths is None:
        truths = sample(case.model, 2 * count, seed=case.seed + 2, progress=False)
    count = min(count, max(len(truths) // 2, FEWEST // 2))
    found = posterior_trust(
        case.model, truths[:count], truths[count:], steps=None if small else STEPS_LARGE, seed=case.seed
    )
    cover, right = found.coverage(), found.expected()
    short = right - cover.value
    verdict = judge(abs(short), 0.1, 0.2 if short > 0 else math.inf, abs(short) > SURE * cover.stderr)
    words = f"Posterior intervals of {100 * right:.0f} % hold {100 * cover.value:.0f} % of the truths ({count} measurements)."
    advice = "Widen the intervals by what they lack, take more steps, or a method of its own (docs/inverse.md)."
    if short < 0:
        advice = "Intervals are wider than need be: take more steps, or state a smaller noise."
    if not found.misfit <= MISFIT:
        verdict = "watch" if found.misfit <= FAR and verdict != "act" else "act"
        words = f"Posterior samples do not explain the measurement: they are {found.misfit:.2g} times its noise away."
        advice = "See first whether start, score and curl are right; then take more steps."
    rule = f"A coverage {SURE:g} standard errors and 10 points from what it should be, or samples {MISFIT:g} times the noise "
    rule += f"from the measurement: watch; 20 points too few, or {FAR:g} times the noise: act."
    spans = [(found.expected(level), found.coverage(level)) for level in LEVELS]
    lines: dict[str, Points] = {
        "found": [(p, *pair(e)) for p, e in spans],
        "right": [(p, p) for p, _ in spans],
    }
    figures = {
        "coverage": pair(cover),
        "expected": right,
        "measurements": count,
        "noise": found.noise,
        "misfit": found.misfit,
    }
    told, title = "" if verdict == "good" else advice, "Can its posteriors be trusted?"
    return Chapter(
        "posterior", title, verdict, words, told, rule, figures, lines, ("interval", "share of truths in it")
    )
