"""A solver and a grid fitted to the model at hand, from a few pilot trajectories."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.noise import Noise, Seed, source
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Field, Solver, integrate
from scorefield.solve.unipc import UniPC
from scorefield.times import FittedGrid, sampling_grid

NODES = 128
"""Times of the reference path. UniPC of order 3 on that many has a relative error of about 1e-5."""
PILOT = 32_768
"""Numbers in the pilot ensemble."""
MEMORY = 5
"""Evaluations that a step combines."""
RIDGE = 1e-6
"""Relative weight that keeps the combination near DDIM's where the pilots do not decide it."""
TRIED = 4
"""Grids that are run, of those that look best on the reference path."""

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
        return torch.tensor([*self.times, 0.0], dtype=torch.float64)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        i, seen = state or (0, ())
        if i >= len(self.times) or (float(t), float(s)) != (*self.times, 0.0)[i : i + 2]:
            raise ValueError("a Tuned solver goes through its own grid from start to end: leave out grid= and t_start=")
        seen = (field.denoise(x, t), *seen)[:MEMORY]
        own, *rest = self.weights[i]
        x = own * x
        for w, data in zip(rest, seen, strict=True):
            x = torch.add(x, data, alpha=w)
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
        spread = (self.states.double() - self.states.double().mean(1, keepdim=True)).flatten(1).square().mean(1).sqrt()
        last = (self.end.double() - self.end.double().mean(0)).square().mean().sqrt()
        return last / spread.clamp_min(1e-12)


@torch.no_grad()
def pilot(
    model: ScoreModel,
    *,
    shape: Sequence[int] | None = None,
    pilots: int | None = None,
    seed: Seed = 0,
    t_min: float = 1e-5,
    **cond: Any,
) -> Reference:
    """Reference trajectories of a model, from T to t_min; `NODES` evaluations of each pilot.

    Main arguments:
        shape: event shape, where the model does not know it.
        pilots: number of trajectories; by default enough for 32,768 numbers, at least 16 and at most 512.
        cond: passed to the network; tensors with `pilots` rows go with the pilots.

    Raises:
        ValueError: the event shape is not known.
    """
    event = tuple(shape) if shape is not None else model.shape
    if event is None:
        raise ValueError("the model does not know its event shape; give shape=, such as shape=(3, 32, 32)")
    n = pilots or max(16, min(512, PILOT // math.prod(event)))
    field, sde = Field(model, cond, n), model.sde
    noise = source(seed, n)
    times = sampling_grid(sde, NODES - 1, sde.T, t_min, "log_snr")
    x = sde.prior((n, *event)).draw(noise, model.dtype, model.device)
    recorder = _Recorder([], [])
    x = integrate(recorder, field, x, times, noise)
    end = field.denoise(x, times[-1])
    return Reference(field, times, torch.stack([*recorder.states, x]), torch.stack([*recorder.denoised, end]), end)


def fit_grid(reference: Reference, order: int = 2) -> FittedGrid:
    """The grid on which every step of a method of the given order makes the same error at the end.

    A step of log-SNR h makes the error alpha h^(order + 1) |d^order D / d lambda^order|, of which `Reference.share` arrives.
    """
    sde, times = reference.field.sde, reference.times
    lam = _finite(0.5 * sde.log_snr(times))
    slope = reference.denoised.double()
    for _ in range(order):
        slope = torch.gradient(slope, spacing=(lam,), dim=0)[0]
    size = slope.flatten(1).square().mean(1).sqrt().cpu()
    error = (reference.share().cpu() * sde.alpha(times) * size).pow(1 / (order + 1))
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
    t_min: float = 1e-5,
    **cond: Any,
) -> Tuned:
    """A solver of `steps` evaluations fitted to a model: a grid of equal local errors, and least-squares weights.

    The pilots' flow is first followed accurately. Then each step's weights are those that bring the pilots, as the earlier
    steps have left them, nearest to where the flow takes them, so that later steps repair the errors of earlier ones. Of
    several grids the one with the smallest error on pilots that the weights were not fitted to is kept. It takes
    128 + 4 steps evaluations of each pilot, once for a model; `Tuned.to_dict` saves the result.

    Main arguments:
        reference: a `pilot` of the same model, to fit several numbers of steps to; the rest is then not needed.
        t_min: where the reference stops and takes E[x_0 | x]. Other arguments: as in `pilot`.

    Raises:
        ValueError: a number of steps below 2 or above 64, or an event shape that is not known.
    """
    if not 2 <= steps <= NODES // 2:
        raise ValueError(f"steps={steps}: give a number of steps from 2 to {NODES // 2}")
    path = reference or pilot(model, shape=shape, pilots=pilots, seed=seed, t_min=t_min, **cond)
    grids = [fit_grid(path, order) for order in (1, 2, 3)]
    candidates = {
        nodes
        for grid in grids
        for last in (0.1, 0.25, 0.5, 1.0, 2.0)
        for nodes in _nodes(path, grid, steps, last / steps)
    }
    looks = {nodes: _fit_on_path(path, nodes) for nodes in candidates}
    fits = [_fit_greedily(path, nodes) for nodes in sorted(candidates, key=lambda nodes: looks[nodes])[:TRIED]]
    return min(fits, key=lambda fit: fit[0])[1]


def _nodes(reference: Reference, grid: FittedGrid, n: int, last: float) -> list[tuple[int, ...]]:
    """Indices into the reference path of n times of the grid, the last at sigma / alpha = `last`; none if that is outside."""
    sde, times = reference.field.sde, reference.times
    end = float(sde.inverse_log_snr(-2 * math.log(last)))
    if not float(times[-1]) < end < float(times[0]):
        return []
    wanted = grid(sde, n - 1, float(times[0]), end)
    index = torch.searchsorted(-times, -wanted).clamp_max(len(times) - 1).tolist()
    for i in range(1, n):
        index[i] = max(index[i], index[i - 1] + 1)
    return [tuple(index)] if index[-1] < len(times) else []


def _fit_on_path(reference: Reference, nodes: Sequence[int]) -> float:
    """Error at the end to be expected from least-squares steps that each start on the flow; costs no evaluation."""
    share, total = reference.share(), 0.0
    for i, a in enumerate(nodes):
        seen = [reference.denoised[nodes[j]] for j in range(i, max(-1, i - MEMORY), -1)]
        target, weight = _target(reference, nodes, i), 1.0 if i + 1 == len(nodes) else float(share[nodes[i + 1]])
        _, residual = _least_squares(reference, nodes, i, [reference.states[a], *seen], target, slice(None))
        total += float((weight * residual).square().mean())
    return total


def _fit_greedily(reference: Reference, nodes: Sequence[int]) -> tuple[float, Tuned]:
    """The solver on these nodes, after the mean square error at the end on the quarter of the pilots that is held out."""
    x = reference.states[nodes[0]]
    fitted = slice(0, len(x) - len(x) // 4)
    seen: list[Tensor] = []
    rows = []
    for i, a in enumerate(nodes):
        seen = [reference.field.denoise(x, reference.times[a]), *seen][:MEMORY]
        weights, _ = _least_squares(reference, nodes, i, [x, *seen], _target(reference, nodes, i), fitted)
        x = sum((w * v for w, v in zip(weights, [x, *seen], strict=True)), torch.zeros_like(x))
        rows.append(weights)
    error = (x - reference.end)[fitted.stop :].double().square().mean()
    solver = Tuned(tuple(reference.times[list(nodes)].tolist()), tuple(rows))
    return (float(error) if torch.isfinite(error) else math.inf), solver


def _target(reference: Reference, nodes: Sequence[int], i: int) -> Tensor:
    return reference.end if i + 1 == len(nodes) else reference.states[nodes[i + 1]]


def _least_squares(
    reference: Reference, nodes: Sequence[int], i: int, features: Sequence[Tensor], target: Tensor, rows: slice
) -> tuple[Row, Tensor]:
    """Weights of the features that come nearest to the target on some rows, with a pull towards DDIM; and the residual."""
    sde, t = reference.field.sde, reference.times[nodes[i]]
    if i + 1 == len(nodes):
        kept, gained = 0.0, 1.0
    else:
        s = reference.times[nodes[i + 1]]
        kept = float(sde.sigma(s) / sde.sigma(t))
        gained = float(sde.alpha(s)) - kept * float(sde.alpha(t))
    start = torch.zeros(len(features), dtype=torch.float64)
    start[0], start[1] = kept, gained
    columns = torch.stack([f.double().flatten() for f in features], 1)
    part = torch.stack([f[rows].double().flatten() for f in features], 1)
    missing = target[rows].double().flatten() - part @ start.to(part.device)
    gram, side = (part.T @ part).cpu(), (part.T @ missing).cpu()
    size = gram.diagonal().sqrt().clamp_min(1e-300)
    scaled = gram / size.outer(size) + RIDGE * torch.eye(len(features), dtype=torch.float64)
    weights = start + torch.linalg.solve(scaled, side / size) / size
    residual = target.double().flatten() - columns @ weights.to(columns.device)
    return tuple(weights.tolist()), residual


def _finite(lam: Tensor) -> Tensor:
    """Half log-SNRs whose first or last value may be infinite, continued evenly."""
    lam = lam.clone()
    if not torch.isfinite(lam[0]):
        lam[0] = 2 * lam[1] - lam[2]
    if not torch.isfinite(lam[-1]):
        lam[-1] = 2 * lam[-2] - lam[-3]
    return lam


@dataclass(frozen=True)
class _Recorder(Solver):
    """UniPC that writes down every state and what the model makes of it."""

    states: list[Tensor]
    denoised: list[Tensor]

    order: ClassVar[float] = 3

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        ahead, state = UniPC(3).step(field, x, t, s, state, noise)
        self.states.append(x)
        self.denoised.append(state[0][0][1])
        return ahead, state
