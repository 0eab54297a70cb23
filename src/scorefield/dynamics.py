"""Unknown stochastic dynamics from pairs of states: a map of a state and noise to the next state, drift and diffusion.

A time series X_0, X_dt, X_2dt, ... of an unknown dX = b(X) dt + s(X) dW gives pairs (x, x + d). The law of d given x is that of
an `Empirical` model with a kernel over x, which needs no training; its probability flow carries noise z to an increment, and a
small network learns that map once and for all (Liu et al. 2024, "Training-free conditional diffusion model for learning
stochastic dynamical systems").
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, batch_time
from scorefield.differentiate import differentiation
from scorefield.empirical import neighbours, posterior_mean
from scorefield.errors import ScorefieldWarning
from scorefield.inputs import positive, tensor_of, whole
from scorefield.minimize import minimize
from scorefield.model import ScoreModel
from scorefield.randomness import generator, whole_seed
from scorefield.sampling import sample
from scorefield.sdes import VP
from scorefield.solve import Dopri5
from scorefield.views import View, convert

END = 1e-3
"""Where the flow of the labels stops, with E[x_0 | x_t]: noise of a hundredth of the standardised increments."""

BEYOND = 0.25
"""Share of paths outside of the data from which on their law is not that of the data."""
SPANS = 8
"""Times that a path must be as long as it takes to forget. One path of a Brownian motion seems to return to its mean, slowly:
after N steps at the rate c / N, where c exceeds 21 once in a hundred times (Dickey & Fuller 1979); here it is about 25."""


@dataclass(frozen=True)
class Moments:
    """Drift and diffusion of a process at states (n, d).

    Attributes:
        drift: b(x), (n, d), per unit of time. diffusion: standard deviation of the increments over dt^(1/2), (n, d).
        stderr: standard error of the drift by the number of pairs near x, (n, d): an error of this size is no fault.
        diffusion_stderr: that of the diffusion, with the fourth moment of the increments, (n, d).
        pairs: effective number of pairs near x, (n,).
    """

    drift: Tensor
    diffusion: Tensor
    stderr: Tensor
    diffusion_stderr: Tensor
    pairs: Tensor

    def __repr__(self) -> str:
        return f"Moments({len(self.drift)} states, stderr of the drift about {float(self.stderr.median()):.3g})"


@dataclass(frozen=True)
class Stationary:
    """Where paths are after a long time.

    Attributes:
        samples: ends of independent paths, (n, d). steps: that each took.
        gap: largest Kolmogorov-Smirnov distance, over the entries, between paths that began at the two ends of the data.
        chance: the distance that equal laws exceed once in a thousand times.
        outside: share of the ends that lie outside of the range of the data, where nothing was learned: a few in any case,
            since the data does not hold its own extremes.
        escaping: whether that share grows as the same time passes again, as it does where paths leave and do not return.
    """

    samples: Tensor
    steps: int
    gap: float
    chance: float
    outside: float
    escaping: bool

    @property
    def settled(self) -> bool:
        """Whether the beginning is forgotten and paths stay where the data is, but for a quarter at most, which returns."""
        return self.gap < self.chance and not self.escaping and self.outside < BEYOND

    def __repr__(self) -> str:
        return f"Stationary({len(self.samples)} paths of {self.steps} steps, {'settled' if self.settled else 'not settled'})"


class StochasticMap(nn.Module):
    """X_{t + dt} = x + G(x, z), z standard normal: one call a step (Liu et al. 2024, eq. 8).

    Attributes:
        dt: time between states. states, increments: the pairs it was learned from, (N, d).
        bandwidth: of the kernel over states, (d,). neighbours: nearest pairs that speak for a state.
        centre, scale, mean, spread: of states and increments, (d,).
    """

    states: Tensor
    increments: Tensor
    bandwidth: Tensor
    centre: Tensor
    scale: Tensor
    mean: Tensor
    spread: Tensor

    def __init__(
        self, states: Tensor, increments: Tensor, dt: float, bandwidth: Tensor, neighbours: int, width: int = 50
    ) -> None:
        super().__init__()
        d = states.shape[1]
        self.dt, self.neighbours = dt, neighbours
        self.body = nn.Sequential(
            nn.Linear(2 * d, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, d)
        )
        for name, value in (
            ("states", states),
            ("increments", increments),
            ("bandwidth", bandwidth),
            ("centre", states.mean(0)),
            ("scale", states.std(0).clamp_min(1e-12)),
            ("mean", increments.mean(0)),
            ("spread", increments.std(0).clamp_min(1e-12)),
        ):
            self.register_buffer(name, value)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The next state from x (B, d) and standard-normal z (B, d), like x."""
        return x + self.increment(x, z)

    def increment(self, x: Tensor, z: Tensor) -> Tensor:
        """G(x, z), like x."""
        inner = torch.cat([(x - self.centre) / self.scale, z], 1)
        learned: Tensor = self.body(inner)
        return self.mean + self.spread * (z + learned)

    @torch.no_grad()
    def rollout(self, x0: Tensor, steps: int, seed: int | None = None) -> Tensor:
        """Paths from x0 (B, d): (steps + 1, B, d), the first being x0."""
        draws, x = generator(seed), torch.as_tensor(x0).to(self.states)
        path = [x]
        for _ in range(steps):
            x = self(x, torch.randn(x.shape, generator=draws, dtype=x.dtype, device=draws.device))
            path.append(x)
        return torch.stack(path)

    @torch.no_grad()
    def stationary(self, walkers: int = 4000, most: int = 12800, seed: int = 0) -> Stationary:
        """Ends of paths from both ends of the data, run until they cannot be told apart, or for `most` steps.

        Where the data is a path, for an eighth of its steps at most: what takes longer to forget cannot be told from a process
        that never does.

        Raises:
            ValueError: fewer than 20 walkers, or no step.
        """
        if walkers < 20 or most < 1:
            raise ValueError(f"walkers={walkers}, most={most}: give 20 walkers and a step, or more")
        draws, half = generator(seed), walkers // 2
        unit = (self.states - self.centre) / self.scale
        along = unit @ torch.linalg.svd(unit.T @ unit)[0][:, 0]
        order = along.argsort()
        tenth = max(1, len(order) // 10)
        pick = torch.randint(tenth, (2, half), generator=draws, device=draws.device)
        x = self.states[torch.cat([order[:tenth][pick[0]], order[-tenth:][pick[1]]])]
        chance = 1.95 * math.sqrt(2 / half)  # the Kolmogorov distribution exceeds 1.95 with probability 0.001
        if self._is_path():
            most = min(most, max(1, len(self.states) // SPANS))

        def moved(x: Tensor, steps: int) -> Tensor:
            for _ in range(steps):
                x = self(x, torch.randn(x.shape, generator=draws, dtype=x.dtype, device=draws.device))
            return x

        steps, gap, outside = 0, 1.0, 0.0
        while steps < most and gap >= chance and outside < 0.5:  # so many do not come back
            more = min(max(steps, 100), most - steps)
            x, steps = moved(x, more), steps + more
            gap = max(_distance(a, b) for a, b in zip(x[:half].T, x[half:].T, strict=True))
            outside = self._outside(x)
        later = self._outside(moved(x, steps)) if gap < chance else outside
        share = (outside + later) / 2
        escaping = outside >= 0.5 or later - outside > 4 * math.sqrt(2 * share * (1 - share) / len(x))
        return Stationary(x, steps, gap, chance, outside, escaping)

    def _is_path(self) -> bool:
        """Whether most pairs begin where the one before ends."""
        ends = self.states + self.increments
        return float(torch.isclose(self.states[1:], ends[:-1]).all(1).double().mean()) > 0.5

    def _outside(self, x: Tensor) -> float:
        """Share of states x (n, d) beyond the range of the data."""
        inside = (x >= self.states.amin(0)) & (x <= self.states.amax(0))
        return 1 - float(inside.all(1).double().mean())

    @torch.no_grad()
    def moments(self, x: Tensor, draws: int = 4096, seed: int = 0) -> Moments:
        """Drift and diffusion at states x (n, d), over pairs of opposite noises; with the error that the data leaves.

        It warns of states outside of the range of the data, for which no pair speaks.
        """
        at = torch.as_tensor(x).to(self.states).reshape(-1, self.states.shape[1])
        outside = ((at < self.states.amin(0)) | (at > self.states.amax(0))).any(1)
        if bool(outside.any()):
            told = (
                f"{int(outside.sum())} of {len(at)} states lie outside of the data: what is said there is extrapolated"
            )
            warnings.warn(told, ScorefieldWarning, stacklevel=3)
        half = torch.randn(draws // 2, at.shape[1], generator=generator(seed), dtype=at.dtype, device="cpu")
        z = torch.cat([half, -half])
        first, second, fourth = (torch.zeros_like(at) for _ in range(3))
        for i, state in enumerate(at):
            moved = self.increment(state.expand(len(z), -1), z)
            first[i], second[i] = moved.mean(0), moved.std(0, correction=0)
            fourth[i] = ((moved - first[i]) / second[i].clamp_min(1e-300)).pow(4).mean(0)
        pairs = self.effective_pairs(at)
        many = pairs.unsqueeze(1)
        diffusion = second / math.sqrt(self.dt)
        return Moments(
            first / self.dt,
            diffusion,
            diffusion / torch.sqrt(self.dt * many),
            diffusion * torch.sqrt((fourth - 1).clamp_min(0) / (4 * many)),
            pairs,
        )

    def effective_pairs(self, x: Tensor) -> Tensor:
        """(sum w)^2 / sum w^2 of the kernel over the nearest states, (n,)."""
        _, squared = neighbours(self.states, x, self.bandwidth, self.neighbours)
        w = torch.exp(-0.5 * (squared - squared.amin(1, keepdim=True)))
        return torch.square(w.sum(1)) / torch.square(w).sum(1)


def _distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov-Smirnov distance of two samples of equal size, (n,) each."""
    both = torch.cat([a, b]).sort()[0]
    below = [torch.searchsorted(v.sort()[0], both, right=True) for v in (a, b)]
    return float((below[0] - below[1]).abs().max()) / len(a)


def pairs_of(
    series: Tensor, dt: float, time: Tensor | None = None, path: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x, x_next), each (N, d), of a series (T,) or (T, d), or of paths (T, P, d).

    With `time` (T,) pairs across gaps go, with a warning that counts them; with `path` (T,), the number of the path that each
    state belongs to, those from one path to the next.

    Raises:
        ValueError: fewer than two states, entries that are not numbers, times that do not rise, or dt that is not theirs.
    """
    values = tensor_of(series, "series")
    if values.is_complex() or values.ndim == 0 or not values.numel():
        raise ValueError(f"series has shape {tuple(values.shape)} and dtype {values.dtype}; give real numbers (T, d)")
    values = (
        values.reshape(len(values), -1, 1) if values.ndim == 1 else values.reshape(len(values), -1, values.shape[-1])
    )
    if len(values) < 2:
        raise ValueError(f"series has {len(values)} states and must have at least 2")
    if not 0 < dt < math.inf:
        raise ValueError(f"dt={dt}: the time between states is positive")
    same = torch.ones(len(values) - 1, dtype=torch.bool, device="cpu")
    if path is not None:
        path = tensor_of(path, "path")
        if path.shape != (len(values),):
            raise ValueError(f"path has shape {tuple(path.shape)} for {len(values)} states; give one number for each")
        same = path.diff() == 0
    keep = same if time is None else same & _regular(tensor_of(time, "time").double(), dt, same)
    if not bool(keep.any()):
        raise ValueError("no two states follow each other in a path; give longer ones")
    d = values.shape[2]
    return values[:-1][keep].reshape(-1, d), values[1:][keep].reshape(-1, d)


def _regular(time: Tensor, dt: float, same: Tensor) -> Tensor:
    """Which steps take dt, within 5 %; at least half of those within a path must."""
    steps = time.diff()
    if len(steps) != len(same) or not bool((steps[same] > 0).all()):
        raise ValueError("time: one rising number for each state is needed, without duplicates")
    fits = (steps / dt - 1).abs() < 0.05
    gaps = int((same & ~fits).sum())
    if 2 * gaps > int(same.sum()):
        raise ValueError(f"dt={dt:g} is not the time between the states, which is {float(steps[same].median()):.6g}")
    if gaps:
        told = f"{gaps} of {int(same.sum())} steps do not take dt={dt:g}: these gaps are left out"
        warnings.warn(told, ScorefieldWarning, stacklevel=3)
    return fits


@differentiation()
def learn_flow_map(
    x: Tensor,
    x_next: Tensor,
    dt: float,
    *,
    bandwidth: float | None = None,
    neighbours: int | None = None,
    labels: int = 4000,
    steps: int = 800,
    width: int = 50,
    seed: int = 0,
    progress: bool | None = None,
) -> StochasticMap:
    """The map of an unknown process from pairs of states a time dt apart (Liu et al. 2024, Alg. 1).

    Main arguments:
        x, x_next: states before and after, (N, d) or (N,); `pairs_of` makes them of a series. dt: the time between.
        bandwidth: of the kernel over states, in standard deviations of each entry; by default what holds about `neighbours`.
        seed: decides everything.

    Other arguments:
        neighbours: nearest pairs that speak for a state, 1,536 or a tenth of the pairs.
        labels: pairs (z, increment) that the network learns from, by `sample` with Dopri5. steps: of its training.

    Raises:
        ValueError: arrays that do not fit, entries that are not numbers, dt or a bandwidth that is not positive, or too few
            pairs.
    """
    states, after = (_states(v, name) for v, name in ((x, "x"), (x_next, "x_next")))
    if states.shape != after.shape:
        raise ValueError(f"x has shape {tuple(states.shape)} and x_next {tuple(after.shape)}; give pairs of states")
    if not 0 < dt < math.inf:
        raise ValueError(f"dt={dt}: the time between states is positive")
    count = min(1536, max(16, len(states) // 10)) if neighbours is None else neighbours
    if not 8 <= count <= len(states):
        raise ValueError(
            f"{len(states)} pairs for neighbours={count}: give at least as many pairs, and 8 neighbours or more"
        )
    if bandwidth is not None:
        positive(bandwidth=bandwidth)
    for name, number in (("labels", labels), ("steps", steps), ("width", width), ("neighbours", count)):
        whole(number, name, "a number of them")
    increments = after - states
    scale = states.std(0).clamp_min(1e-12)
    width_of = scale * (_bandwidth(states / scale, count) if bandwidth is None else bandwidth)
    draws = generator(whole_seed(seed))
    pick = torch.randint(len(states), (labels,), generator=draws, device=draws.device)
    z = torch.randn(labels, states.shape[1], generator=draws, dtype=torch.float64, device=draws.device)
    targets = _labels(states, increments, states[pick], z, width_of, count, progress)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(whole_seed(seed))
        fitted = StochasticMap(states, increments, dt, width_of, count, width).double()
    nn.init.zeros_(fitted.body[-1].weight)  # type: ignore[arg-type]
    here, spread = states[pick], fitted.spread

    def loss(step: int) -> Tensor:
        return torch.square((fitted.increment(here, z) - targets) / spread).mean()

    minimize(loss, fitted.parameters(), steps, lr=0.01, progress=progress, name="learning the map")
    return fitted.eval()


def _states(value: Any, name: str) -> Tensor:
    """(N, d) float64 from (N,) or (N, d)."""
    found = tensor_of(value, name, "; remove these pairs")
    if found.is_complex() or found.ndim == 0:
        raise ValueError(f"{name} has shape {tuple(found.shape)} and dtype {found.dtype}; give real numbers (N, d)")
    return found.detach().double().reshape(len(found), math.prod(found.shape[1:]))


def _bandwidth(states: Tensor, count: int) -> float:
    """Half the typical distance of the farthest of `count` neighbours."""
    some = states[torch.linspace(0, len(states) - 1, min(200, len(states)), device="cpu").long()]
    _, squared = neighbours(states, some, torch.ones(states.shape[1], dtype=states.dtype, device="cpu"), count)
    return 0.5 * float(squared.amax(1).sqrt().median())


def _labels(
    states: Tensor, increments: Tensor, at: Tensor, z: Tensor, bandwidth: Tensor, count: int, progress: bool | None
) -> Tensor:
    """Increments to which the flow carries z at each of the states `at`, (n, d).

    The points are standardised by the weighted mean and deviation of each neighbourhood: a Gaussian one then does not move at
    all in the angle, and loose tolerances do.
    """
    parts, size = [], max(1, 2**23 // (count * states.shape[1]))
    for here, noise in zip(at.split(size), z.split(size), strict=True):
        index, squared = neighbours(states, here, bandwidth, count)
        logs = torch.log_softmax(-0.5 * squared, 1)
        points, w = increments[index], logs.exp().unsqueeze(2)
        mean = (w * points).sum(1, keepdim=True)
        std = torch.sqrt((w * torch.square(points - mean)).sum(1, keepdim=True)).clamp_min(1e-12)
        model = _Local((points - mean) / std, logs)
        y = sample(model, len(here), Dopri5(1e-3, 1e-3), x_init=noise, t_min=END, denoise=True, progress=progress)
        if not bool(torch.isfinite(y).all()):
            warnings.warn(
                "some labels left the finite numbers; they are replaced by the noise", ScorefieldWarning, stacklevel=3
            )
            y = torch.where(torch.isfinite(y), y, noise)
        parts.append(mean[:, 0] + std[:, 0] * y)
    return torch.cat(parts)


class _Local(ScoreModel):
    """An empirical model with points of its own for each sample, (B, K, d), and their log-weights (B, K)."""

    local: Tensor

    def __init__(self, points: Tensor, logs: Tensor) -> None:
        super().__init__(nn.Identity(), VP(), "score", shape=points.shape[2:])
        self.register_buffer("local", points)
        self.logs = logs

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from E[x_0 | x_t]."""
        time = batch_time(t, x)
        data = posterior_mean(x, self.local, self.logs, self.sde, time)
        return data if name == "denoise" else convert(name, "denoise", data, x, time, self.sde)

    def take(self, index: Tensor, ndim: int = 0) -> _Local:
        """The model of some of the samples."""
        return _Local(self.local[index], self.logs[index])

    def held(self, ndim: int = 0) -> int | None:
        """Number of samples that it holds points for."""
        return len(self.local)
