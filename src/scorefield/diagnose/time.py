"""How long to diffuse: what is lost at the start by a prior, and on the way down by the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.diagnose.prior import fit_prior
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.inputs import as_tensor
from scorefield.likelihood.log_prob import log_prob
from scorefield.model import ScoreModel
from scorefield.prior import Prior
from scorefield.sde import GaussianSDE

NODES = 32
"""Noise levels, for each of the times, at which the score is compared."""


@dataclass(frozen=True)
class DiffusionTime:
    """What each end time costs, in nats; smaller is better.

    With the exact score the probability flow carries the divergence at the start unchanged to the data, while the SDE
    contracts it: the figures at the start are what the flow pays and more than what the SDE pays.

    Attributes:
        times: (K,), rising.
        nominal: KL to the nominal prior of a process that ends there (N(0, I) for VP, N(0, sigma(t)^2 I) for VE).
        fitted: the same of a prior fitted to other data.
        score: 1/2 integral of g^2 E|s - grad log p_t|^2 from the least time to T, where an oracle is given, else None.
    """

    times: tuple[float, ...]
    nominal: tuple[Estimate, ...]
    fitted: tuple[Estimate, ...]
    score: tuple[Estimate, ...] | None

    def bound(self, prior: str = "nominal") -> list[float]:
        """Bound on KL(data || samples of the SDE) at each time: that of the prior plus that of the score (Franzese et al.
        2023, eq. 9; by Girsanov's theorem).

        Raises:
            ValueError: no oracle was given, so that the score's part is not known; or a prior of another name.
        """
        if self.score is None:
            raise ValueError("the bound needs the error of the score: give diffusion_time an oracle=")
        if prior not in ("nominal", "fitted"):
            raise ValueError(f"prior={prior!r}: choose nominal or fitted")
        start = self.nominal if prior == "nominal" else self.fitted
        return [a.value + b.value for a, b in zip(start, self.score, strict=True)]

    def best(self, prior: str = "nominal") -> float:
        """The time of the smallest bound; it need not be that of the smallest divergence."""
        bound = self.bound(prior)
        return self.times[bound.index(min(bound))]

    def __str__(self) -> str:
        lines = ["     T   KL nominal    KL fitted" + ("        score" if self.score else "")]
        for i, t in enumerate(self.times):
            cells = [self.nominal[i], self.fitted[i], *([self.score[i]] if self.score else [])]
            lines.append(f"{t:6.3g}" + "".join(f" {e.value:12.4g}" for e in cells))
        return "\n".join(lines)


@torch.no_grad()
def diffusion_time(
    model: ScoreModel,
    data: Tensor,
    times: Sequence[float],
    oracle: ScoreModel | None = None,
    *,
    components: int = 1,
    t_min: float = 1e-3,
    seed: int = 0,
) -> DiffusionTime:
    """How long is long enough: divergences from p_T to priors for a choice of T, and the error of the score up to there.

    One half of the data is noised and judged, the other half fits the priors. The density p_T is the oracle's, or else the
    model's own, which its probability flow gives from T to the end of its process.

    Main arguments:
        data: (N, *), in the model's range. times: end times to compare, in (t_min, T].
        oracle: an exact model of the data with `log_prob(x, t)`, such as a `GaussianMixture`, or `Empirical`.
        components: Gaussians of the fitted prior. t_min: where the score's part begins. seed: of noise.

    Raises:
        ValueError: no times, times outside (t_min, T], fewer than four items of data, an oracle without a density.
    """
    data, at = as_tensor(data, "data"), sorted(float(t) for t in times)
    if len(data) < 4:
        raise ValueError(f"data has {len(data)} items; diffusion_time needs four or more, half of them to fit a prior")
    if not at or not 0 < t_min < at[0] or at[-1] > model.sde.T:
        raise ValueError(f"times={at}: give times in ({t_min}, {model.sde.T}]")
    if oracle is not None and not hasattr(oracle, "log_prob"):
        raise ValueError(
            f"oracle is a {type(oracle).__name__} without log_prob(x, t); give a GaussianMixture or Empirical"
        )
    fit, judged = data[1::2], data[::2]
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(judged.shape, generator=draws, dtype=torch.float64, device=draws.device).to(judged)
    nominal, fitted = [], []
    for t in at:
        x = model.sde.perturb(judged, t, noise)
        density = _density(model, oracle, x, t, seed)
        nominal.append(mean_of(density - nominal_prior(model.sde, t, tuple(x.shape)).log_prob(x)))
        fitted.append(mean_of(density - fit_prior(model.sde, fit, t, components, seed).log_prob(x)))
    score = None if oracle is None else _score_part(model, oracle, judged, noise, [t_min, *at])
    return DiffusionTime(tuple(at), tuple(nominal), tuple(fitted), score)


def nominal_prior(sde: GaussianSDE, t: float, shape: tuple[int, ...]) -> Prior:
    """The nominal prior of a process that ends at t: the noise, and what VP keeps of data of unit variance but T forgets."""
    kept = torch.square(sde.alpha(t)) - torch.square(sde.alpha(sde.T))
    return Prior(shape, math.sqrt(float(torch.square(sde.sigma(t)) + kept.clamp_min(0.0))))


def _density(model: ScoreModel, oracle: ScoreModel | None, x: Tensor, t: float, seed: int) -> Tensor:
    if oracle is not None:
        value: Tensor = oracle.log_prob(x, t)  # type: ignore[operator]
        return value
    if t == model.sde.T:
        return model.sde.prior(tuple(x.shape)).log_prob(x)
    return log_prob(model, x, "exact" if x[0].numel() <= 16 else "hutchinson", seed=seed, t_min=t).nats


def _score_part(
    model: ScoreModel, oracle: ScoreModel, x0: Tensor, noise: Tensor, edges: Sequence[float]
) -> tuple[Estimate, ...]:
    """1/2 integral of g^2 E|s - s*|^2 from edges[0] to each of the others: the midpoint rule in log-SNR."""
    total, parts = torch.zeros(len(x0), dtype=torch.float64, device="cpu"), []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        ends = model.sde.log_snr(torch.tensor([low, high], dtype=torch.float64, device="cpu"))
        if not bool(torch.isfinite(ends).all()):
            ends = model.sde.log_snr(torch.tensor([low, high - 1e-3 * model.sde.T], dtype=torch.float64, device="cpu"))
        width = float(ends[0] - ends[1]) / NODES
        for t in model.sde.inverse_log_snr(
            ends[1] + (torch.arange(NODES, dtype=torch.float64, device="cpu") + 0.5) * width
        ):
            x = model.sde.perturb(x0, t, noise)
            # g^2 dt = -sigma^2 d log_snr
            wrong = expand(model.sde.sigma(t), x) * (model.score(x, t) - oracle.score(x, t))
            total += 0.5 * width * torch.square(wrong.double()).flatten(1).sum(1)
        parts.append(mean_of(total))
    return tuple(parts)
