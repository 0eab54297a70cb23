"""A solver and a grid fitted to the model at hand, from a few pilot trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, Seed, source
from scorefield.sde import GaussianSDE
from scorefield.solve.exponential import UniPC
from scorefield.solve.integrate import Field, Solver, Tick, integrate
from scorefield.times import FittedGrid, sampling_grid

NODES = 128
"""Times of the reference path. UniPC of order 3 on that many has a relative error of about 1e-5."""
PILOT = 16_384
"""Numbers in the pilot ensemble."""
MEMORY = 5
"""Evaluations that a step combines."""
RIDGE = 1e-9
"""Relative weight that keeps the combination near DDIM's where the pilots do not decide it."""
TAME = 1e-6
"""A larger one, tried on the best grid: what the pilots hardly decide may carry a rare sample into another mode."""
WORTH = 1.1
"""Factor that the larger weight may cost in error on the pilots held out."""
TRIED = 4
"""Grids that are run, of those that look best on the reference path."""
LAST = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Noise levels sigma / alpha of the last evaluation that are considered, times the number of steps."""

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tuned(Solver):
    """Linear multistep method whose grid and weights were fitted to a model by `tune`; one evaluation a step.

    x_s = a x_t + sum_k b_k D_k, D_k the last denoised samples. The last step ends at the data, so N steps are N evaluations.

    Attributes:
        times: where it evaluates, (N,), falling.
        weights: for each step (a, b_0, b_1, ...), the latest evaluation first.
    """

    times: Row
    weights: tuple[Row, ...]

    order: ClassVar[float] = 1
    denoises: ClassVar[bool] = False

    @property
    def default_steps(self) -> int:  # type: ignore[override]
        """The number of steps that it was fitted for."""
        return len(self.times)

    def grid(self, sde: GaussianSDE, steps: int, t_start: float, t_min: float) -> Tensor:  # type: ignore[override]
        """The fitted times, and 0.

        Raises:
            ValueError: another number of steps, or another start, than that of the fit.
        """
        if steps != len(self.times) or t_start != self.times[0]:
            raise ValueError(
                f"steps={steps} from t={t_start}: this solver is fitted for {len(self.times)} steps from {self.times[0]}; "
                f"tune(model, {steps}) fits another"
            )
        return torch.tensor([*self.times, 0.0], dtype=torch.float64, device="cpu")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        i, seen = state or (0, ())
        if i >= len(self.times) or (float(t), float(s)) != (*self.times, 0.0)[i : i + 2]:
            raise ValueError("a Tuned solver goes through its own grid from start to end: leave out grid= and t_start=")
        seen = (field.denoise(x, t), *seen)[:MEMORY]
        own, *rest = self.weights[i]
        x = own * x
        for w, data in zip(rest, seen, strict=True):
            x.add_(data, alpha=w)
        return x, (i + 1, seen)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for a JSON file."""
        return {"times": list(self.times), "weights": [list(row) for row in self.weights]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tuned:
        """The inverse of `to_dict`."""
        return cls(tuple(data["times"]), tuple(tuple(row) for row in data["weights"]))


@dataclass(frozen=True)
class Reference:
    """The probability flow of a pilot ensemble, accurately, with what each step of a grid will need of it.

    Attributes:
        times: (M,). states, denoised: (M, B, *). end: E[x_0 | x] at the last time, like a state.
    """

    field: Field
    times: Tensor
    states: Tensor
    denoised: Tensor
    end: Tensor

    def share(self) -> Tensor:
        """How much of an error at each time arrives at the end, (M,): the ratio of the spreads of the ensemble."""
        states, end = exact(self.states), exact(self.end)
        spread = (states - states.mean(1, keepdim=True)).flatten(1).square().mean(1).sqrt()
        last = (end - end.mean(0)).square().mean().sqrt()
        return last / spread.clamp_min(1e-12)


@torch.no_grad()
def pilot(
    model: ScoreModel,
    *,
    shape: Sequence[int] | None = None,
    pilots: int | None = None,
    nodes: int = NODES,
    seed: Seed = 0,
    t_min: float | None = None,
    dtype: torch.dtype | None = None,
    **cond: Any,
) -> Reference:
    """Reference trajectories of a model, from T to t_min; `nodes` evaluations of each pilot.

    Main arguments:
        shape: event shape, where the model does not know it.
        pilots: number of trajectories; by default enough for 16,384 numbers, at least 8 and at most 512.
        nodes: times of the reference. t_min: where it ends, with E[x_0 | x]; `sde.t_min` by default.
        dtype: the model's own by default.
        cond: passed to the network; tensors with `pilots` rows go with the pilots.

    Raises:
        ValueError: the event shape is not known.
    """
    event = tuple(shape) if shape is not None else model.shape
    if event is None:
        raise ValueError("the model does not know its event shape; give shape=, such as shape=(3, 32, 32)")
    n = pilots or max(8, min(512, PILOT // math.prod(event)))
    noise = source(seed, n)
    x = model.sde.prior((n, *event)).draw(noise, dtype or model.dtype, model.device)
    return followed(Field(model, cond, n), x, noise, nodes, t_min)


@torch.no_grad()
def followed(
    field: Field, x: Tensor, noise: Noise, nodes: int, t_min: float | None = None, tick: Tick | None = None
) -> Reference:
    """Reference trajectories from states x (B, *) at T; see `pilot`. `tick` is called with the fraction that is done."""
    sde = field.sde
    times = sampling_grid(sde, nodes - 1, sde.T, sde.t_min if t_min is None else t_min, "log_snr")
    x, states = integrate(_Watched(), field, x, times, noise, tick=tick)
    end = field.denoise(x, times[-1])
    passed, denoised = zip(*states[0][1], strict=True)
    return Reference(field, times, torch.stack([*passed, x]), torch.stack([*denoised, end]), end)


def fit_grid(reference: Reference, order: int = 2) -> FittedGrid:
    """The grid on which every step of a method of the given order makes the same error at the end.

    A step of log-SNR h makes the error alpha h^(order + 1) |d^order D / d lambda^order|, of which `Reference.share` arrives.
    """
    sde, times = reference.field.sde, reference.times
    lam = _finite(0.5 * sde.log_snr(times))
    slope = exact(reference.denoised)
    for _ in range(order):
        slope = torch.gradient(slope, spacing=(lam,), dim=0)[0]
    size = slope.flatten(1).square().mean(1).sqrt()
    error = (reference.share() * sde.alpha(times) * size).pow(1 / (order + 1))
    return FittedGrid.of_density(times, lam, error)


@torch.no_grad()
def tune(
    model: ScoreModel,
    steps: int = 20,
    *,
    reference: Reference | None = None,
    shape: Sequence[int] | None = None,
    pilots: int | None = None,
    seed: Seed = 0,
    t_min: float | None = None,
    **cond: Any,
) -> Tuned:
    """A solver of `steps` evaluations fitted to a model: a grid of equal local errors, and least-squares weights.

    The pilots' flow is first followed accurately. Then each step's weights are those that bring the pilots, as the earlier
    steps have left them, nearest to where the flow takes them, so that later steps repair the errors of earlier ones. Of
    several grids the one with the smallest error on pilots that the weights were not fitted to is kept. It takes
    128 + 5 steps evaluations of each pilot, once for a model; `Tuned.to_dict` saves the result.

    Main arguments:
        reference: a `pilot` of the same model, to fit several numbers of steps to; the rest is then not needed.
        t_min: where the reference stops and takes E[x_0 | x], `sde.t_min` by default. Other arguments: as in `pilot`.

    Raises:
        ValueError: a number of steps below 2 or above half the times of the reference (64), or an unknown event shape.
    """
    longest = (NODES if reference is None else len(reference.times)) // 2
    if not 2 <= steps <= longest:
        raise ValueError(f"steps={steps}: give a number of steps from 2 to {longest}")
    path = reference or pilot(model, shape=shape, pilots=pilots, seed=seed, t_min=t_min, **cond)
    return best_fit(path, steps)[1]


def best_fit(path: Reference, steps: int) -> tuple[float, Tuned]:
    """The best solver of those tried, after its error on the pilots held out."""
    look = _Look(path)
    grids = [fit_grid(path, order) for order in (1, 2, 3)]
    candidates = {nodes for grid in grids for last in LAST for nodes in _nodes(path, grid, steps, last / steps)}
    tried = sorted(candidates, key=look.error)[:TRIED]
    fits = [_fit_greedily(path, nodes) for nodes in tried]
    best = min(range(len(fits)), key=lambda i: fits[i][0])
    tame = _fit_greedily(path, tried[best], TAME)
    return tame if tame[0] <= WORTH * fits[best][0] else fits[best]


def _nodes(reference: Reference, grid: FittedGrid, n: int, last: float) -> list[tuple[int, ...]]:
    """Indices into the reference path of n times of the grid, the last at sigma / alpha = `last` or where the path ends."""
    sde, times = reference.field.sde, reference.times
    end = max(float(times[-1]), float(sde.inverse_log_snr(-2 * math.log(last))))
    if end >= float(times[0]):
        return []
    wanted = grid(sde, n - 1, float(times[0]), end)
    index = torch.searchsorted(-times, -wanted).clamp_max(len(times) - 1).tolist()
    for i in range(1, n):
        index[i] = max(index[i], index[i - 1] + 1)
    for i in range(n - 1, 0, -1):
        index[i] = min(index[i], len(times) - n + i)
    return [tuple(index)]


class _Look:
    """What can be told of a grid from the reference path alone, without an evaluation.

    All inner products of the path's states and denoised samples, over the pilots to be fitted to, are taken once.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference, self.share = reference, reference.share().tolist()
        kept = _fitted(reference)
        every = torch.cat([reference.states[:, kept], reference.denoised[:, kept], reference.end[None, kept]])
        rows = exact(every).flatten(1)
        self.gram: np.ndarray = (rows @ rows.T / rows.shape[1]).numpy()

    def error(self, nodes: Sequence[int]) -> float:
        """Error at the end to be expected from least-squares steps that each start on the flow."""
        m, total = len(self.reference.times), 0.0
        for i, a in enumerate(nodes):
            last = i + 1 == len(nodes)
            to = 2 * m if last else nodes[i + 1]
            index = [a, *(m + nodes[j] for j in range(i, max(-1, i - MEMORY), -1))]
            gram, side = self.gram[np.ix_(index, index)], self.gram[index, to]
            weights = _weights(gram, side, _ddim(self.reference, nodes, i))
            missing = self.gram[to, to] - 2 * weights @ side + weights @ gram @ weights
            total += max(missing, 0.0) * (1.0 if last else self.share[to] ** 2)
        return total


def _fit_greedily(reference: Reference, nodes: Sequence[int], ridge: float = RIDGE) -> tuple[float, Tuned]:
    """The solver on these nodes, after its root-mean-square error at the end on the pilots held out."""
    x, kept = reference.states[nodes[0]], _fitted(reference)
    seen: list[Tensor] = []
    rows = []
    for i, a in enumerate(nodes):
        seen = [reference.field.denoise(x, reference.times[a]), *seen][:MEMORY]
        target = reference.end if i + 1 == len(nodes) else reference.states[nodes[i + 1]]
        flat = torch.stack([exact(part[kept]).flatten() for part in (x, *seen, target)])
        products = (flat @ flat.T).numpy()
        weights = _weights(products[:-1, :-1], products[:-1, -1], _ddim(reference, nodes, i), ridge)
        x = sum((float(w) * part for w, part in zip(weights, [x, *seen], strict=True)), torch.zeros_like(x))
        rows.append(tuple(weights.tolist()))
    error = float(exact((x - reference.end)[kept.stop :]).square().mean().sqrt())
    return error if math.isfinite(error) else math.inf, Tuned(tuple(reference.times[list(nodes)].tolist()), tuple(rows))


def _fitted(reference: Reference) -> slice:
    """The pilots that weights are fitted to; a quarter is held out."""
    n = reference.states.shape[1]
    return slice(0, n - n // 4)


def _ddim(reference: Reference, nodes: Sequence[int], i: int) -> tuple[float, float]:
    """Weights of x and D in the i-th step of DDIM; the step after the last node is D itself."""
    if i + 1 == len(nodes):
        return 0.0, 1.0
    sde, t, s = reference.field.sde, reference.times[nodes[i]], reference.times[nodes[i + 1]]
    kept = float(sde.sigma(s) / sde.sigma(t))
    return kept, float(sde.alpha(s)) - kept * float(sde.alpha(t))


def _weights(gram: np.ndarray, side: np.ndarray, start: tuple[float, float], ridge: float = RIDGE) -> np.ndarray:
    """Least-squares weights from inner products of the features and with the target, pulled towards those of `start`."""
    base = np.zeros(len(side))
    base[:2] = start
    if not (np.isfinite(gram).all() and np.isfinite(side).all()):
        return np.full(len(side), np.nan)
    size = np.sqrt(gram.diagonal()).clip(1e-300)
    scaled = gram / np.outer(size, size) + ridge * np.eye(len(side))
    found: np.ndarray = base + np.linalg.solve(scaled, (side - gram @ base) / size) / size
    return found


def _finite(lam: Tensor) -> Tensor:
    """Half log-SNRs whose first or last value may be infinite, continued evenly."""
    lam = lam.clone()
    if not torch.isfinite(lam[0]):
        lam[0] = 2 * lam[1] - lam[2]
    if not torch.isfinite(lam[-1]):
        lam[-1] = 2 * lam[-2] - lam[-3]
    return lam


class _Watched(Solver):
    """UniPC whose state holds every x and what the model makes of it."""

    order: ClassVar[float] = 3

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        inner, seen = state or (None, ())
        ahead, inner = UniPC(3).step(field, x, t, s, inner, noise)
        return ahead, (inner, (*seen, (x, inner[0][0][1])))
