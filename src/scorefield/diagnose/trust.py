"""What a log-likelihood and a posterior depend on beside the model: probes, tolerance, t_min and prior; coverage."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.evaluation.calibration import Calibration, calibrate
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.inputs import as_tensor, whole
from scorefield.inverse.operators import Dense
from scorefield.inverse.restore import restore
from scorefield.likelihood.log_prob import log_prob
from scorefield.likelihood.moments import moments
from scorefield.likelihood.result import LogProb
from scorefield.likelihood.trace import TraceMethod
from scorefield.model import ScoreModel
from scorefield.sampling import LIKELIHOOD_T_MIN
from scorefield.solve.ode import Dopri5

LOOSER, EARLIER = 100.0, 10.0
"""By how much the tolerance is made larger and t_min smaller, to see what that changes."""
EXACT_TRACE = 16
"""Entries up to which the divergence is computed without probes."""
MOST_STEPS = 200
"""Of the flow for one item; a smooth one takes some thirty."""
DIRECTIONS = 4
"""Principal components of the data whose posterior intervals are counted."""


@dataclass(frozen=True)
class LikelihoodTrust:
    """Log-likelihoods of items, and what moves them; all in nats of an item.

    Attributes:
        nats: as `log_prob` gives them, (B,); NaN where the flow did not arrive.
        looser, earlier: the same with a tolerance a hundred times as large, and with that at a tenth of t_min, (B,).
        probe: standard deviation of one Hutchinson probe, root mean square over items.
        tolerance: mean of looser - nats. t_min: mean of earlier - looser: next to nothing where the data have a density,
            and log(10) / 2 under VP for each direction in which they have none.
        prior: mean gain of a Gaussian with the moments of x_T over the nominal prior, where data to fit it are given.
        lost: items whose flow did not arrive. dims: entries of an item.
    """

    nats: Tensor
    looser: Tensor
    earlier: Tensor
    probe: float
    tolerance: Estimate
    t_min: Estimate
    prior: Estimate | None
    lost: int
    dims: int

    def probes(self, bits: float = 0.01) -> int:
        """Probes for each item after which their standard error is so many bits per dimension."""
        return max(1, math.ceil((self.bits(self.probe) / bits) ** 2))

    def bits(self, nats: float) -> float:
        """Bits per dimension."""
        return nats / (self.dims * math.log(2))


def likelihood_trust(
    model: ScoreModel,
    data: Tensor,
    fit: Tensor | None = None,
    *,
    probes: int = 2,
    tolerance: float = 1e-5,
    t_min: float = LIKELIHOOD_T_MIN,
    seed: int = 0,
) -> LikelihoodTrust:
    """Log-likelihoods by the probability flow, and once more with a looser tolerance, and from a tenth of t_min.

    The divergence of up to 16 entries is exact; the spread of probes is that of the second run.

    Main arguments:
        data: (B, *), in the model's range, two or more. fit: other items (N, *), to fit a prior at T to.
        probes: for each item, two or more, for they are compared; the same ones in all three runs.
        tolerance, t_min: as in `log_prob`. seed: of probes.

    Raises:
        ValueError: fewer than two items or probes.
    """
    items, probes = as_tensor(data, "data"), whole(probes, "probes", "the number of random vectors")
    if len(items) < 2 or probes < 2:
        raise ValueError(f"{len(items)} items and {probes} probes; likelihood_trust needs two of each to have a spread")

    def density(wide: float, start: float, trace: bool) -> LogProb:
        kind: TraceMethod = "exact" if trace else "hutchinson"
        solver = Dopri5(wide, wide, max_steps=MOST_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # `lost` counts what does not arrive
            return log_prob(model, items, kind, probes, seed=seed, solver=solver, t_min=start, progress=False)

    few = items[0].numel() <= EXACT_TRACE
    own, looser = density(tolerance, t_min, few), density(LOOSER * tolerance, t_min, False)
    other = density(LOOSER * tolerance, t_min, True) if few else looser
    earlier = density(LOOSER * tolerance, t_min / EARLIER, few)
    nats, loose, early = (exact(x.nats) for x in (own, other, earlier))
    kept = torch.stack([nats, loose, early]).isfinite().all(0)
    spread = exact(looser.draws).var(1)
    assert own.latent is not None
    prior = None if fit is None else _gain(model, as_tensor(fit, "fit"), own.latent[kept])
    return LikelihoodTrust(
        nats,
        loose,
        early,
        math.sqrt(float(spread[spread.isfinite()].mean())),
        _mean(loose - nats, kept),
        _mean(early - loose, kept),
        prior,
        int((~kept).sum()),
        items[0].numel(),
    )


def _gain(model: ScoreModel, fit: Tensor, latent: Tensor) -> Estimate:
    """E[log q(x_T) - log nominal(x_T)], q the Gaussian with the moments of x_T."""
    nominal = model.sde.prior(tuple(latent.shape)).log_prob(latent)
    return mean_of(moments(model.sde, fit).log_prob(latent.cpu()) - nominal.cpu())


def _mean(values: Tensor, kept: Tensor) -> Estimate:
    return mean_of(values[kept]) if bool(kept.any()) else Estimate(math.nan, math.nan, 0)


@dataclass(frozen=True)
class PosteriorTrust:
    """How often posterior intervals hold the truth.

    Attributes:
        calibration: ranks of the truth along the leading principal components, the first of which was measured.
        noise: of the measurement, in units of the data.
        misfit: root mean square of (y - A x) / noise over all samples; about 1 where they explain what was measured.
    """

    calibration: Calibration
    noise: float
    misfit: float

    def coverage(self, level: float = 0.8) -> Estimate:
        """Share of truths inside the central interval, over measurements and components; what it should be is `expected`.

        The standard error is the larger of that between measurements and that of independent components of a right sampler.
        """
        rows = [Calibration(row[None], self.calibration.samples) for row in self.calibration.ranks]
        inside = torch.stack([row.coverage(level) for row in rows])
        found, p = mean_of(inside.mean(1)), self.expected(level)
        least = math.sqrt(p * (1 - p) / inside.numel())
        return Estimate(found.value, max(found.stderr, least), len(inside), "spread between measurements")

    def expected(self, level: float = 0.8) -> float:
        """What a right sampler covers."""
        return self.calibration.expected(level)


def posterior_trust(
    model: ScoreModel,
    data: Tensor,
    fit: Tensor | None = None,
    samples: int = 9,
    *,
    noise: float = 0.5,
    steps: int | None = None,
    seed: int = 0,
) -> PosteriorTrust:
    """Simulation-based calibration of `restore` for one number: the first principal component of an item, with noise.

    Main arguments:
        data: truths (M, *), in the model's range: items that the model has not seen, or draws of its own.
        fit: other items (N, *), whose principal components are taken; few truths would vary most along their own.
        samples: K, of each posterior.

    Other arguments:
        noise: of the measurement, in standard deviations of that component. steps, seed: as in `restore`.

    Raises:
        ValueError: fewer than eight items, which have no principal components to speak of.
    """
    truth = as_tensor(data, "data")
    others = truth if fit is None else as_tensor(fit, "fit")
    if min(len(truth), len(others)) < 8:
        raise ValueError(f"{len(truth)} truths and {len(others)} other items; posterior_trust needs eight or more")
    flat = exact(others).flatten(1)
    _, spread, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    axes = axes[:DIRECTIONS]
    size = noise * float(spread[0]) / math.sqrt(len(flat) - 1)
    measure = Dense(axes[:1].to(truth), tuple(truth.shape[1:]))
    draws = torch.Generator().manual_seed(seed)
    y = measure(truth)
    y = y + size * torch.randn(y.shape, generator=draws, dtype=torch.float64, device=draws.device).to(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # `misfit` says it
        drawn = restore(model, measure, y, size, samples, steps=steps, seed=seed + 1, progress=False).samples
    found = calibrate(drawn, truth, lambda x: exact(x).flatten(1) @ axes.T, seed)
    off = exact(measure(drawn.flatten(0, 1)) - y.repeat_interleave(samples, 0)) / size
    return PosteriorTrust(found, size, float(torch.square(off).mean().sqrt()))
