"""How a flow map is learned: consistency training and distillation, their continuous limit, and average velocities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scorefield.dtypes import check_real, onto
from scorefield.flowmap import FlowMap
from scorefield.model import ScoreModel
from scorefield.randomness import generator
from scorefield.sde import GaussianSDE, Time, batch_time, expand


class Pairs(Protocol):
    """Draws neighbouring noise levels: u (B,) in (0, 1) -> rho early, rho late and weights, (B,) float64 each."""

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass(frozen=True)
class Karras:
    """Neighbours on the grid of Karras et al. 2022 (eq. 5) with n levels, all alike (Song et al. 2023, sec. 6.1)."""

    n: int = 18
    exponent: float = 7.0

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"n={self.n}: a grid of noise levels has at least 2")

    def levels(self, sde: GaussianSDE, end: float) -> Tensor:
        """rho = sigma / alpha, rising from `end` to the largest, (n,)."""
        return _levels(sde, end, self.n, self.exponent)

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rho = self.levels(sde, end)
        i = (u * (self.n - 1)).long().clamp(0, self.n - 2)
        return rho[i], rho[i + 1], torch.ones_like(u)


@dataclass(frozen=True)
class Curriculum:
    """Twice as many levels every so often, drawn log-normally, weighted by 1 / (rho_late - rho_early) (Song & Dhariwal 2024).

    Main arguments:
        start, stop: numbers of steps between levels at the beginning and at most. total: training steps.
        mean, std: of the log of the noise levels (Table 1 there).
    """

    start: int = 10
    stop: int = 1280
    total: int = 400_000
    mean: float = -1.1
    std: float = 2.0
    exponent: float = 7.0

    def count(self, step: int) -> int:
        """Number of levels at a training step (Song & Dhariwal 2024, eq. 6)."""
        stage = max(1, math.floor(self.total / (math.floor(math.log2(self.stop // self.start)) + 1)))
        return min(self.start << (step // stage), self.stop) + 1

    def probabilities(self, rho: Tensor) -> Tensor:
        """Of the pairs (rho_i, rho_{i + 1}), by the log-normal law between them, (n - 1,)."""
        edge = torch.erf((rho.log() - self.mean) / (math.sqrt(2) * self.std))
        return edge.diff() / (edge[-1] - edge[0])

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rho = _levels(sde, end, self.count(step), self.exponent)
        edges = torch.cumsum(self.probabilities(rho), 0)
        i = torch.searchsorted(edges, u.contiguous()).clamp_max(len(rho) - 2)
        return rho[i], rho[i + 1], 1 / (rho[i + 1] - rho[i])


@dataclass(frozen=True)
class Easy:
    """Log-normal levels and an early one that comes nearer by stages (Geng et al. 2024, eq. 14).

    r = max(end, t (1 - n(t) / q^(stage + 1))), n(t) = 1 + 8 sigmoid(-t), weighted by 1 / (t - r).

    Main arguments:
        q: factor between stages. stage: training steps of each.
    """

    q: float = 2.0
    stage: int = 10_000
    mean: float = -1.1
    std: float = 2.0

    def __call__(self, u: Tensor, sde: GaussianSDE, end: float, step: int) -> tuple[Tensor, Tensor, Tensor]:
        least, most = (float(v) for v in _ends(sde, end))
        late = torch.exp(self.mean + self.std * torch.special.ndtri(u)).clamp(least * (1 + 1e-3), most)
        share = 1 - (1 + 8 * torch.sigmoid(-late)) / self.q ** (step // self.stage + 1)
        early = (late * share).clamp_min(least)
        return early, late, 1 / (late - early)


def consistency_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    teacher: ScoreModel | None = None,
    pairs: Pairs | None = None,
    distance: Literal["l2", "huber"] = "huber",
    huber: float = 0.00054,
    solver: Literal["euler", "heun"] = "heun",
    target: FlowMap | None = None,
    step: int = 0,
    seed: int | torch.Generator | None = None,
    t: tuple[Time, Time] | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    r"""Distance between the map at a noise level and at the next lower one, which does not move: one value per sample, (B,).

    || f(x_late) - sg f(x_early) ||: both points lie on one path of the flow, by a step of a teacher (distillation, Song et al.
    2023, eq. 7) or by the same noise (training, eq. 10). Without the stop-gradient the map would shrink by 70 %; both passes
    see the same dropout mask, the teacher none. At the fixed point the map of N levels is too narrow by what
    `flowmap.fixed_point_bias` says, 15 % at N = 18 and 0.4 % at N = 641.

    Main arguments:
        x0: data in the model's range, (B, *).
        teacher: a score model, whose flow is followed from the late level to the early one; None for training alone.
        pairs: which levels: `Karras(n)`, `Curriculum(...)`, `Easy(...)`. step: number of the training step, for these.
        distance: "l2", squared and summed over entries; "huber", (|d|^2 + c^2)^{1/2} - c over the whole sample with
            c = huber D^{1/2} (Song & Dhariwal 2024, eq. 8; their constant is for D = 3072, few dimensions want 0.03).
        solver: the teacher's step. target: another map for the early point, such as a running average.
        seed: an int or a generator for levels, noise and dropout.

    Other arguments:
        t: times (early, late), floats or (B,), in place of drawn ones. noise: eps, like x0.

    Returns:
        Losses (B,), in the dtype of x0.
    """
    check_real(x0, "x0")
    draws, n, sde = generator(seed), len(x0), fm.sde
    if t is None:
        u = torch.rand(n, generator=draws, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        early_rho, late_rho, weight = (pairs or Karras())(u, sde, fm.end, step)
        early, late = (sde.inverse_log_snr(-2 * torch.log(r)) for r in (early_rho, late_rho))
        early = torch.where(early_rho <= _ends(sde, fm.end)[0] * (1 + 1e-9), torch.full_like(early, fm.end), early)
    else:
        early, late = (batch_time(v, x0).expand(n) for v in t)
        weight = torch.ones_like(early)
    z = torch.randn(x0.shape, generator=draws, dtype=x0.dtype).to(x0.device) if noise is None else noise
    x_late = sde.perturb(x0, late, z)
    x_early = sde.perturb(x0, early, z) if teacher is None else _teach(teacher, x_late, late, early, solver, cond)
    mask = int(torch.randint(2**31, (), generator=draws))
    with torch.no_grad():
        aim = _masked(mask, x0.device, lambda: (target or fm).jump(x_early, early, **cond))
    found = _masked(mask, x0.device, lambda: fm.jump(x_late, late, **cond))
    squared = torch.square(found - aim).flatten(1).sum(1)
    if distance == "huber":
        c = huber * math.sqrt(x0[0].numel())
        squared = torch.sqrt(squared + c**2) - c
    return squared * onto(weight, squared)


def scm_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    teacher: ScoreModel | None = None,
    warmup: float = 1.0,
    c: float = 0.1,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    mean: float = -1.0,
    std: float = 1.4,
    **cond: Any,
) -> Tensor:
    r"""The continuous-time limit of consistency training on a `FlowMap(kind="trig")` (Lu & Song 2025, eq. 8), one per sample.

    || F - sg(F + g / (|g| + c)) ||^2 / D, g = -cos^2(th) (sigma_d F - dx/dth) - w cos(th) sin(th) (x + sigma_d dF/dth): the
    tangent of the map along the flow, by one forward-mode product.

    Main arguments:
        x0: data, (B, *). teacher: whose velocity is followed; that of the noise that was drawn otherwise.
        warmup: w, from 0 to 1 over the first thousands of steps. c: of the normalisation of the tangent.
        seed: an int or a generator. mean, std: of log(sigma_d tan(th)).

    Other arguments:
        t: times, a float or (B,). noise: eps, like x0.

    Raises:
        ValueError: a map of another kind.
    """
    if fm.kind != "trig":
        raise ValueError(f"scm_loss needs FlowMap(kind='trig'), not {fm.kind!r}")
    check_real(x0, "x0")
    draws, n, sd, sde = generator(seed), len(x0), fm.sigma_data, fm.sde
    if t is None:
        rho = torch.exp(mean + std * torch.randn(n, generator=draws, dtype=torch.float64))
        time = sde.inverse_log_snr(-2 * torch.log(rho)).clamp(1e-6, sde.T)
    else:
        time = batch_time(t, x0).expand(n)
    z = torch.randn(x0.shape, generator=draws, dtype=x0.dtype).to(x0.device) if noise is None else noise
    th = fm.angle(time)
    cos, sin = expand(torch.cos(th), x0), expand(torch.sin(th), x0)
    y = cos * x0 + sin * sd * z
    if teacher is None:
        rate = cos * sd * z - sin * x0
    else:
        with torch.no_grad():
            data = teacher.denoise(expand(fm.radius(time), x0) * y, time, **cond)
        # dy/dth = cos z - sin x_0 with the flow's own x_0 and z = (y - cos x_0) / sin
        rate = cos * (y - cos * data) / sin - sin * data
    mask, clock = int(torch.randint(2**31, (), generator=draws)), onto(th, x0).contiguous()

    def network(state: Tensor, angle: Tensor) -> Tensor:
        return _masked(mask, x0.device, lambda: fm.net(state / sd, angle, **cond))

    factor = torch.cos(th) * torch.sin(th)
    with torch.no_grad():
        still, moved, *_ = torch.func.jvp(network, (y, clock), (expand(factor, y) * rate, onto(factor, y).contiguous()))
        g = -(cos**2) * (sd * still - rate) - warmup * (cos * sin * y + sd * moved)
        length = torch.linalg.vector_norm(g.flatten(1), dim=1).reshape(-1, *[1] * (g.ndim - 1))
        g = g / (length + c)
    out = network(y, clock)
    return torch.square(out - still - g).flatten(1).mean(1)


def meanflow_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    share: float = 0.25,
    power: float = 1.0,
    seed: int | torch.Generator | None = None,
    t: tuple[Time, Time] | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    r"""The identity u = v - (t - r) du/dt of average velocities, as a loss (Geng et al. 2025, eq. 10), one value per sample.

    Main arguments:
        x0: data, (B, *). share: of the pairs that have r < t; the others are plain flow matching.
        power: p of the adaptive weight 1 / (|.|^2 + 0.01)^p. seed: an int or a generator.

    Other arguments:
        t: (r, t) on the straight path, floats or (B,) in [0, 1]. noise: e, like x0.

    Raises:
        ValueError: a map of another kind.
    """
    if fm.kind != "average":
        raise ValueError(f"meanflow_loss needs FlowMap(kind='average'), not {fm.kind!r}")
    check_real(x0, "x0")
    draws, n = generator(seed), len(x0)
    if t is None:
        pair = torch.sigmoid(torch.randn(2, n, generator=draws, dtype=torch.float64) - 0.4).sort(0)[0]
        r, late = torch.where(torch.rand(n, generator=draws) < share, pair[0], pair[1]), pair[1]
    else:
        r, late = (batch_time(v, x0).expand(n) for v in t)
    e = torch.randn(x0.shape, generator=draws, dtype=x0.dtype).to(x0.device) if noise is None else noise
    z, v = expand(1 - late, x0) * x0 + expand(late, x0) * e, e - x0
    clock, span = onto(late, x0).contiguous(), onto(late - r, x0).contiguous()

    def network(state: Tensor, now: Tensor, width: Tensor) -> Tensor:
        y: Tensor = fm.net(state, now, span=width, **cond)
        return y

    ones = torch.ones_like(clock)
    with torch.no_grad():
        _, change, *_ = torch.func.jvp(network, (z, clock, span), (v, ones, ones))
        aim = v - expand(late - r, x0) * change
    error = torch.square(network(z, clock, span) - aim).flatten(1).sum(1)
    return error / (error.detach() + 0.01) ** power


def _teach(teacher: ScoreModel, x: Tensor, t: Tensor, s: Tensor, solver: str, cond: dict[str, Any]) -> Tensor:
    """One step of the teacher's flow in y = x / alpha by rho = sigma / alpha, like x."""
    sde = teacher.sde
    (a_t, a_s), (r_t, r_s) = (sde.alpha(t), sde.alpha(s)), (sde.sigma(t) / sde.alpha(t), sde.sigma(s) / sde.alpha(s))
    was = teacher.training
    teacher.eval()
    with torch.no_grad():
        y, h = expand(1 / a_t, x) * x, expand(r_s - r_t, x)
        slope = teacher.noise(x, t, **cond)
        ahead = y + h * slope
        if solver == "heun":
            ahead = y + 0.5 * h * (slope + teacher.noise(expand(a_s, x) * ahead, s, **cond))
    teacher.train(was)
    return expand(a_s, x) * ahead


def _masked(seed: int, device: torch.device, call: Callable[[], Tensor]) -> Tensor:
    """A pass whose dropout masks are those of the seed, on whatever device they are drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return call()


def _ends(sde: GaussianSDE, end: float) -> tuple[Tensor, Tensor]:
    least, most = sde.sigma(end) / sde.alpha(end), sde.sigma(sde.T) / sde.alpha(sde.T).clamp_min(1e-3)
    return least, most


def _levels(sde: GaussianSDE, end: float, n: int, exponent: float) -> Tensor:
    """n values of rho, evenly spaced in rho^{1 / exponent}."""
    least, most = (float(v) ** (1 / exponent) for v in _ends(sde, end))
    return torch.linspace(least, most, n, dtype=torch.float64) ** exponent
