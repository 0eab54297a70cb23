"""Whether the probability flow and the reverse SDE of a model end in one law, as they do where its score is exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.differentiate import differentiation
from scorefield.dtypes import exact
from scorefield.evaluation.distances import sliced_w2
from scorefield.evaluation.metrics import Estimate
from scorefield.fokker_planck import fokker_planck_spread
from scorefield.inputs import as_tensor, whole
from scorefield.model import ScoreModel
from scorefield.sampling import sample
from scorefield.solve.ode import Heun
from scorefield.solve.reverse import EulerMaruyama

PARTS = 4
"""Parts into which samples are cut: the distances of pairs of parts have a spread."""


@dataclass(frozen=True)
class FlowGap:
    """Sliced W2 distances, in units of the data and per direction.

    Attributes:
        gap: between samples of the flow and of the SDE. floor: between samples of one and the same, of equal number: what
            chance alone gives.
        scale: standard deviation of the SDE's samples, root mean square over entries.
        flow_to_data, sde_to_data, data_floor: to data and among data, where these are given, else None.
    """

    gap: Estimate
    floor: Estimate
    scale: float
    flow_to_data: Estimate | None = None
    sde_to_data: Estimate | None = None
    data_floor: Estimate | None = None

    @property
    def excess(self) -> float:
        """The gap without what chance adds to it: (gap^2 - floor^2)^(1/2), 0 where chance explains all."""
        return math.sqrt(max(self.gap.value**2 - self.floor.value**2, 0.0))

    @property
    def significant(self) -> bool:
        """Whether the gap is above the floor by more than four standard errors of their difference."""
        spread = math.hypot(self.gap.stderr, self.floor.stderr)
        return self.gap.value - self.floor.value > 4 * spread


def flow_gap(
    model: ScoreModel, n: int, steps: int = 250, seed: int = 0, data: Tensor | None = None, *, directions: int = 50
) -> FlowGap:
    r"""Distance of what the probability flow samples from what the reverse SDE samples, beside what chance gives.

    The two agree at all times exactly where the score is that of the law the SDE itself produces (Deveney et al. 2023). A
    model of which they differ is not a score of anything, and its likelihoods, which are the flow's, say little of its SDE.

    Main arguments:
        n: samples of each, from starts of their own. steps: of Heun on the flow (two evaluations a step) and of
            Euler-Maruyama on the SDE, both in time; too few are a gap too.
        seed: of the samples.
        data: (N, *), to compare both with.

    Other arguments:
        directions: on which samples are projected.

    Raises:
        ValueError: fewer than 8 samples, or of data.
    """
    n = whole(n, "n", "the number of samples")
    if n < 2 * PARTS:
        raise ValueError(f"n={n}: flow_gap needs {2 * PARTS} samples or more to tell a gap from chance")
    flow = sample(model, n, Heun(), steps=steps, seed=2 * seed, denoise=False)
    sde = sample(model, n, EulerMaruyama(), steps=steps, seed=2 * seed + 1, denoise=False)
    scale = float(torch.square(exact(sde).flatten(1).std(0)).mean().sqrt())
    found = FlowGap(_between(flow, sde, directions), _within((flow, sde), directions), scale)
    if data is None:
        return found
    items = as_tensor(data, "data")[:n]
    if items.shape[1:] != flow.shape[1:] or len(items) < 2 * PARTS:
        raise ValueError(
            f"data has shape {tuple(items.shape)}; give {2 * PARTS} or more items of {tuple(flow.shape[1:])}"
        )
    from_flow, from_sde = (_between(x, items, directions) for x in (flow, sde))
    return FlowGap(found.gap, found.floor, scale, from_flow, from_sde, _within((items,), directions))


def residual_by_level(
    model: ScoreModel, data: Tensor, times: Sequence[float], *, probes: int | None = 1, seed: int = 0
) -> list[Estimate]:
    r"""Mean of |sigma^3 r / g^2|^2 per entry at each of the times: where a score stops being that of a diffusion.

    r is what is left over in the equation of the score (Lai et al. 2023, eq. 10; see `fokker_planck_spread`), and 0 for an
    exact one. Two probes of their own make it unbiased, so that it may be negative by chance.

    Main arguments:
        data: (N, *), in the model's range, 8 or more. times: above 0. probes: None for all directions. seed: of noise.

    Returns:
        An estimate for each time; none where the network takes rounded times, of which it has no derivative.
    """
    items = as_tensor(data, "data")
    if len(items) < 2 * PARTS:
        raise ValueError(f"data has {len(items)} items; residual_by_level needs {2 * PARTS} or more")
    if not _follows_time(model, items[:2], float(times[0])):
        return []
    parts = _parts(items)
    rows = [fokker_planck_spread(model, x, times, probes=probes, seed=seed + i) for i, x in enumerate(parts)]
    values = torch.stack(rows) / items[0].numel()
    spread = (values.std(0) / math.sqrt(PARTS)).tolist()
    return [
        Estimate(v, e, len(items), "spread over parts") for v, e in zip(values.mean(0).tolist(), spread, strict=True)
    ]


def _follows_time(model: ScoreModel, x: Tensor, t: float) -> bool:
    """Whether what changes with time has a derivative by it, which a network of numbered levels does not have."""
    other = (0.1 if t > 0.5 * model.sde.T else 0.9) * model.sde.T
    for view in (model.noise, model.score):
        with differentiation():
            clock = torch.full((len(x),), t, dtype=torch.float64, requires_grad=True, device="cpu")
            y = view(x, clock)
            rate = torch.autograd.grad(y.sum(), clock, materialize_grads=True)[0] if y.requires_grad else clock * 0
        if not bool(rate.any()) and not torch.equal(y.detach(), view(x, other).detach()):
            return False
    return True


def _parts(x: Tensor) -> list[Tensor]:
    size = len(x) // PARTS
    return [x[i * size : (i + 1) * size] for i in range(PARTS)]


def _between(a: Tensor, b: Tensor, directions: int) -> Estimate:
    pairs = zip(_parts(a), _parts(b), strict=True)
    return _mean([sliced_w2(x, y[: len(x)], directions) for x, y in pairs])


def _within(samples: tuple[Tensor, ...], directions: int) -> Estimate:
    found = []
    for x in samples:
        parts = _parts(x)
        found += [sliced_w2(parts[i], parts[(i + 1) % PARTS], directions) for i in range(PARTS)]
    return _mean(found)


def _mean(distances: list[float]) -> Estimate:
    values = torch.tensor(distances, dtype=torch.float64, device="cpu")
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(PARTS), len(values), "spread over parts")
