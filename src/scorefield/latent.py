"""Latent codes: to them and back by the probability flow, ways between them, and what they say of models and samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from scorefield.conditions import warn_of_dropout
from scorefield.dtypes import check_real, exact, onto, warn_of_units, wide
from scorefield.inputs import as_tensor
from scorefield.likelihood import LogProb
from scorefield.model import ScoreModel
from scorefield.progress import Bar
from scorefield.randomness import NoNoise
from scorefield.sampling import LIKELIHOOD_T_MIN, Grid, cause_of_loss, refuse_vmap, state_dtypes
from scorefield.sde import SDE
from scorefield.solve.integrate import Field, Solution, Solver
from scorefield.solve.ode import Dopri5

EVERY_ENTRY = Dopri5(1e-6, 1e-6, norm="max")


@overload
def encode(
    model: ScoreModel, x: Tensor, solver: Solver | None = ..., *, full: Literal[True], **rest: Any
) -> Solution: ...


@overload
def encode(
    model: ScoreModel, x: Tensor, solver: Solver | None = ..., *, full: Literal[False] = ..., **rest: Any
) -> Tensor: ...


def encode(
    model: ScoreModel,
    x: Tensor,
    solver: Solver | None = None,
    *,
    steps: int | None = None,
    grid: Grid = None,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    full: bool = False,
    grad: bool = False,
    progress: bool | None = None,
    **cond: Any,
) -> Tensor | Solution:
    """Latent code of each sample: the probability flow from x at t_min to t_end (Song et al. 2021, sec. 4.3).

    Main arguments:
        x: data in the model's range, (B, *). solver: Dopri5(1e-6, 1e-6, norm="max") by default, which holds every entry to
            the tolerance: one pixel of many would be free to err, and a code is there to be decoded.
        steps, grid: fixed steps, as in `sample`.
        t_end: T by default; a code at an earlier time keeps more of x.

    Returns:
        Codes at t_end, like x; a `Solution` with full=True.

    Raises:
        ValueError: a solver with noise, or one that does not follow the probability flow in both directions.
    """
    end = model.sde.T if t_end is None else t_end
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        result = _flow(model, x, solver, (t_min, end), (steps, grid), cond, full, progress)
    return result if full else result.x


@overload
def decode(
    model: ScoreModel, z: Tensor, solver: Solver | None = ..., *, full: Literal[True], **rest: Any
) -> Solution: ...


@overload
def decode(
    model: ScoreModel, z: Tensor, solver: Solver | None = ..., *, full: Literal[False] = ..., **rest: Any
) -> Tensor: ...


def decode(
    model: ScoreModel,
    z: Tensor,
    solver: Solver | None = None,
    *,
    steps: int | None = None,
    grid: Grid = None,
    t_min: float = LIKELIHOOD_T_MIN,
    t_end: float | None = None,
    full: bool = False,
    grad: bool = False,
    progress: bool | None = None,
    **cond: Any,
) -> Tensor | Solution:
    """The inverse of `encode`, with the same arguments: the probability flow from z at t_end to t_min, without denoising."""
    start = model.sde.T if t_end is None else t_end
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        result = _flow(model, z, solver, (start, t_min), (steps, grid), cond, full, progress)
    return result if full else result.x


def slerp(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n points on the great circle from a to b, both of shape (*), ends included: (n, *). Norms are interpolated linearly.

    a and b are one item each, whatever their shape; of batches take pair after pair.
    """
    for end, name in ((a, "a"), (b, "b")):
        check_real(end, name)
    u = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu").reshape(-1, *[1] * a.ndim)
    x, y = exact(a), exact(b)
    length_x, length_y = torch.linalg.vector_norm(x), torch.linalg.vector_norm(y)
    if not (length_x > 0 and length_y > 0):
        return onto((1 - u) * x + u * y, a)
    along, to = x / length_x, y / length_y
    cosine = (along * to).sum()
    aside = to - cosine * along
    if float(cosine) < 0 and float(torch.linalg.vector_norm(aside)) < 1e-9:
        # Opposite ends lie on many great circles; this one goes by the axis that is most nearly square to both.
        axis = torch.zeros_like(along).flatten()
        axis[along.flatten().abs().argmin()] = 1.0
        aside = axis.reshape(along.shape) - (axis.reshape(along.shape) * along).sum() * along
        aside, angle = aside / torch.linalg.vector_norm(aside), torch.tensor(math.pi, dtype=torch.float64)
    else:
        angle = torch.atan2(torch.linalg.vector_norm(aside), cosine)
        aside = aside / torch.linalg.vector_norm(aside).clamp_min(1e-300)
    direction = torch.cos(u * angle) * along + torch.sin(u * angle) * aside
    return onto(((1 - u) * length_x + u * length_y) * direction, a)


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


def _flow(
    model: ScoreModel,
    x: Tensor,
    solver: Solver | None,
    span: tuple[float, float],
    along: tuple[int | None, Grid],
    cond: dict[str, Any],
    full: bool,
    progress: bool | None,
) -> Solution:
    solver = EVERY_ENTRY if solver is None else solver
    if not solver.flow:
        raise ValueError(
            f"solver={solver!r}: codes follow the probability flow in both directions; give a solver without noise, as Dopri5()"
        )
    x = as_tensor(x)
    refuse_vmap(x)
    check_real(x)
    if span[0] < span[1]:
        warn_of_units(x, *model.sde.range)
        if isinstance(model.sde, SDE):
            model.sde.check(x, "x")
    warn_of_dropout(model)
    times = solver.plan(model.sde, span, *along)
    if times is not None and len(set(torch.sign(times.diff()).tolist())) > 1:
        raise ValueError("grid turns round: codes need times that only rise or only fall")
    outer, inner = state_dtypes(model, x)
    x = x.to(inner)
    field = Field.of(model, cond, x.shape[0], torch.zeros_like(x[:1]) if times is None else None)
    with Bar("following the flow", progress) as bar:
        result = solver.solve(field, x, span, NoNoise(x.shape[0]), grid=times, save=full, tick=bar).to(outer)
    result.warn(lambda: cause_of_loss(model, x, span))
    return result
