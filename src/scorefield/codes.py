"""What the probability flow's codes say: interpolation, temperature, identifiability, outliers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.likelihood import LogProb
from scorefield.model import ScoreModel
from scorefield.sample import decode, encode, slerp
from scorefield.solve.integrate import Solver


def interpolate(
    model: ScoreModel,
    a: Tensor,
    b: Tensor,
    n: int = 9,
    *,
    temperature: float = 1.0,
    solver: Solver | None = None,
    **cond: Any,
) -> Tensor:
    """n samples from a to b, both (*), decoded from the great circle between their codes: (n, *) (Song et al. 2021, sec. 4.3).

    Main arguments:
        temperature: factor on the codes; below 1 it trades diversity for typicality.

    Raises:
        ValueError: n < 2, or a temperature that is not positive.
    """
    if n < 2:
        raise ValueError(f"n={n}: both ends belong to the path, so at least 2 points are needed")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: a positive factor on the codes is needed")
    codes = encode(model, torch.stack([a, b]), solver, **cond)
    path: Tensor = decode(model, temperature * slerp(codes[0], codes[1], n), solver, **cond)
    return path


@dataclass(frozen=True)
class Identifiability:
    """How alike the codes are that two models give the same samples (Song et al. 2021, Fig. 7 and 8).

    Attributes:
        difference: root mean square difference over dimensions, in units of the codes' standard deviation, (B,).
        shuffled_difference: the same between codes of different samples, (B,).
        correlation: correlation over dimensions, (B,). shuffled_correlation: between codes of different samples, (B,).
    """

    difference: Tensor
    shuffled_difference: Tensor
    correlation: Tensor
    shuffled_correlation: Tensor

    @property
    def ratio(self) -> float:
        """Mean correlation relative to the mean absolute correlation of the shuffled baseline."""
        return float(self.correlation.mean() / self.shuffled_correlation.abs().mean())

    def __str__(self) -> str:
        return (
            f"codes of the same sample: correlation {float(self.correlation.mean()):.3f}, difference "
            f"{float(self.difference.mean()):.3f}; shuffled: {float(self.shuffled_correlation.mean()):.3f}, "
            f"{float(self.shuffled_difference.mean()):.3f}"
        )


def identifiability(
    first: ScoreModel, second: ScoreModel, x: Tensor, solver: Solver | None = None, **cond: Any
) -> Identifiability:
    """Compare the codes of x (B, *) under two models; the baseline pairs every code with that of the next sample.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} samples: the shuffled baseline needs at least 2")
    a, b = (encode(m, x, solver, **cond).double().flatten(1) / float(m.sde.sigma(m.sde.T)) for m in (first, second))
    c = b.roll(1, 0)
    return Identifiability(_rms(a - b), _rms(a - c), _correlation(a, b), _correlation(a, c))


def outlier_scores(lp: LogProb, reference: LogProb) -> Tensor:
    """How far each sample lies from the typical set of reference data, in standard deviations: (B,).

    The larger of two distances, that of its log-likelihood and that of its code's length, from the reference's mean: a
    high likelihood alone does not make an image typical (Nalisnick et al. 2019).

    Raises:
        ValueError: fewer than two reference samples.
    """
    if len(reference.nats) < 2:
        raise ValueError("reference holds fewer than 2 samples: their spread is the unit of the score")
    scores = []
    for score in (lambda r: r.nats, lambda r: torch.linalg.vector_norm(r.latent.double().flatten(1), dim=1)):
        usual = score(reference)
        scores.append((score(lp) - usual.mean()).abs() / usual.std().clamp_min(1e-12))
    return torch.maximum(*scores)


def _rms(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=1)
    return length / math.sqrt(x.shape[1])


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(1) / lengths
