"""What the probability flow's codes say: interpolation, temperature, identifiability, outliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.dtypes import exact, wide
from scorefield.likelihood import LogProb
from scorefield.model import ScoreModel
from scorefield.sampling import decode, encode, slerp
from scorefield.solve.integrate import Solver
from scorefield.solve.ode import Dopri5


def interpolate(
    model: ScoreModel,
    a: Tensor,
    b: Tensor,
    n: int = 9,
    *,
    temperature: float = 1.0,
    solver: Solver | None = None,
    steps: int | None = None,
    progress: bool | None = None,
    **cond: Any,
) -> Tensor:
    """n samples from a to b, both (*), decoded from the great circle between their codes: (n, *) (Song et al. 2021, sec. 4.3).

    Main arguments:
        temperature: factor on the codes; below 1 it trades diversity for typicality.
        solver: Dopri5(1e-5, 1e-5) by default, for half the time of the codes' own default and errors that no eye sees.

    Other arguments:
        steps: fixed steps, as in `sample`. progress: as in `sample`.
        cond: passed to the network; tensors with one row hold for all points.

    Raises:
        ValueError: n < 2, or a temperature that is not positive.
    """
    if n < 2:
        raise ValueError(f"n={n}: both ends belong to the path, so at least 2 points are needed")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: a positive factor on the codes is needed")

    def rows(count: int) -> dict[str, Any]:
        one_row = {k: v for k, v in cond.items() if isinstance(v, Tensor) and v.ndim and len(v) == 1}
        return cond | {k: v.expand(count, *v.shape[1:]) for k, v in one_row.items()}

    solver = Dopri5() if solver is None else solver
    codes = encode(model, torch.stack([a, b]), solver, steps=steps, progress=progress, **rows(2))
    path: Tensor = decode(
        model, temperature * slerp(codes[0], codes[1], n), solver, steps=steps, progress=progress, **rows(n)
    )
    return path


@dataclass(frozen=True)
class Agreement:
    """How alike two sets of codes are: root mean square difference, in standard deviations of codes, and correlation."""

    difference: Tensor
    correlation: Tensor


@dataclass(frozen=True)
class Identifiability:
    """How alike the codes are that two models give the same samples (Song et al. 2021, Fig. 7 and 8).

    Attributes:
        samples: of each sample over its dimensions, (B,). dimensions: of each dimension over the samples, (D,).
        shuffled_samples, shuffled_dimensions: the same between codes of different samples.
    """

    samples: Agreement
    shuffled_samples: Agreement
    dimensions: Agreement
    shuffled_dimensions: Agreement

    @property
    def ratio(self) -> float:
        """Mean correlation of samples relative to the mean absolute correlation of the shuffled baseline."""
        return float(self.samples.correlation.mean() / self.shuffled_samples.correlation.abs().mean())

    def __str__(self) -> str:
        rows = [
            ("of the same sample", self.samples, self.shuffled_samples),
            ("in the same dimension", self.dimensions, self.shuffled_dimensions),
        ]
        return "\n".join(
            f"codes {name}: correlation {float(own.correlation.nanmean()):.3f}, difference "
            f"{float(own.difference.mean()):.3f}; shuffled: {float(other.correlation.nanmean()):.3f}, "
            f"{float(other.difference.mean()):.3f}"
            for name, own, other in rows
        )


def identifiability(
    first: ScoreModel,
    second: ScoreModel,
    x: Tensor,
    solver: Solver | None = None,
    *,
    batch_size: int | None = None,
    **cond: Any,
) -> Identifiability:
    """Compare the codes of x (B, *) under two models; the baseline pairs every code with that of the next sample.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} samples: the shuffled baseline needs at least 2")
    size = batch_size or len(x)

    def codes(model: ScoreModel) -> Tensor:
        parts = [encode(model, x[i : i + size], solver, **cond) for i in range(0, len(x), size)]
        return exact(torch.cat(parts)).flatten(1) / float(model.sde.sigma(model.sde.T))

    a, b = codes(first), codes(second)
    c = b.roll(1, 0)
    return Identifiability(_agreement(a, b), _agreement(a, c), _agreement(a.T, b.T), _agreement(a.T, c.T))


def outlier_scores(lp: LogProb, reference: LogProb) -> Tensor:
    """How far each sample lies from the typical set of reference data, in standard deviations: (B,).

    The larger of two distances, that of its log-likelihood and that of its code's length, from the reference's mean: a
    high likelihood alone does not make an image typical (Nalisnick et al. 2019).

    Main arguments:
        lp: likelihoods of the samples in question, by `log_prob`.
        reference: likelihoods of held-out data, by the same options.

    Raises:
        ValueError: fewer than two reference samples, or likelihoods without codes, such as bounds.
    """
    if len(reference.nats) < 2:
        raise ValueError("reference holds fewer than 2 samples: their spread is the unit of the score")
    measures: tuple[Callable[[LogProb], Tensor], ...] = (lambda r: r.nats, _length)
    scores = []
    for measure in measures:
        usual = measure(reference)
        scores.append((measure(lp) - usual.mean()).abs() / usual.std().clamp_min(1e-12))
    return torch.maximum(*scores)


def _length(lp: LogProb) -> Tensor:
    if lp.latent is None:
        raise ValueError("outlier_scores: these likelihoods keep no codes; give what log_prob returned")
    length: Tensor = torch.linalg.vector_norm(wide(lp.latent).flatten(1), dim=1)
    return length


def _agreement(a: Tensor, b: Tensor) -> Agreement:
    """Of the rows of (N, M) with each other."""
    difference = torch.linalg.vector_norm(a - b, dim=1) / math.sqrt(a.shape[1])
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return Agreement(difference, (a * b).sum(1) / lengths)
