"""The exact model of a finite data set: what a network would be that remembers all of it and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.inputs import as_tensor, check_event, tensor_of, whole
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, Seed, source
from scorefield.sde import GaussianSDE
from scorefield.views import View, convert

TOGETHER = 2**24
"""Distances that are held at a time."""


class Empirical(ScoreModel):
    r"""Data that is one of N points, pushed through an SDE exactly: p_t = mean_m N(alpha x_m, sigma^2 I).

    E[x_0 | x_t] = sum_m w_m x_m, w = softmax(-|x_t - alpha x_m|^2 / (2 sigma^2)): a mean shift (Comaniciu & Meer 2002).
    With `given` the points belong to conditions: w_m is then also weighted by the Gaussian kernel exp(-|g - g_m|^2 / (2 nu^2)),
    and only the nearest conditions count (Liu et al. 2024, "Training-free conditional diffusion", sec. 3).

    Main arguments:
        points: (N, *), in the model's range. sde: the forward process.
        given: conditions of the points, (N,) or (N, C); then model.score(x, t, given=g) with g (B, C) or (B,).
        bandwidth: nu, a number or one for each column of `given`.

    Other arguments:
        neighbours: number of nearest conditions that count, all by default; distances in units of the bandwidth.

    Raises:
        ValueError: fewer than one point, entries that are not numbers, conditions of another length, no bandwidth for them, or
            more neighbours than points.
    """

    points: Tensor
    given: Tensor | None
    bandwidth: Tensor

    def __init__(
        self,
        points: Tensor,
        sde: GaussianSDE,
        given: Tensor | None = None,
        bandwidth: float | Sequence[float] | Tensor | None = None,
        neighbours: int | None = None,
    ) -> None:
        points = tensor_of(points, "points", "; remove them")
        if points.ndim < 2 or len(points) == 0 or not points.is_floating_point():
            raise ValueError(
                f"points has shape {tuple(points.shape)} and dtype {points.dtype}; give floats (N, *), N >= 1"
            )
        super().__init__(torch.nn.Identity(), sde, "score", shape=points.shape[1:])
        self.register_buffer("points", points)
        given = None if given is None else tensor_of(given, "given")
        width = torch.ones(1, device="cpu") if bandwidth is None else tensor_of(bandwidth, "bandwidth").reshape(-1)
        self.neighbours = _check_conditions(points, given, None if bandwidth is None else width, neighbours)
        self.register_buffer("given", None if given is None else given.reshape(len(points), -1).to(points))
        self.register_buffer("bandwidth", width.to(points))

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from E[x_0 | x_t]; `given` is the only condition."""
        time = batch_time(t, x)
        check_event(x, self.shape)
        if not len(x):
            return torch.zeros_like(x)
        outer, x = x.dtype, x.to(_common(x.dtype, self.points.dtype))
        at_once = max(1, TOGETHER // (len(self.points) * max(1, math.prod(x.shape[1:]) // 8)))
        rows = torch.arange(len(x), device="cpu").split(at_once)
        given = self._conditions(cond, x)
        parts = []
        for row in rows:
            local = time if time.ndim == 0 else time[row]
            points, weights = self._nearest(None if given is None else given[row])
            parts.append(posterior_mean(x[row], points.to(x.dtype), weights.to(x.dtype), self.sde, local))
        data = torch.cat(parts)
        return (data if name == "denoise" else convert(name, "denoise", data, x, time, self.sde)).to(outer)

    def log_prob(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """log p_t(x) in nats, (B,); infinite at sigma = 0."""
        x = as_tensor(x)
        time = batch_time(t, x)
        check_event(x, self.shape)
        x = x.to(_common(x.dtype, self.points.dtype))
        points, weights = self._nearest(self._conditions(cond, x))
        logits = log_kernels(x, points.to(x.dtype), self.sde, time) + torch.log_softmax(weights.to(x.dtype), -1)
        sigma = expand(torch.log(self.sde.sigma(time)), x).reshape(-1)
        return torch.logsumexp(logits, 1) - math.prod(x.shape[1:]) * (sigma + 0.5 * math.log(2 * math.pi))

    def sample(self, n: int, t: Time = 0.0, seed: Seed = None) -> Tensor:
        """n draws of x_t, (n, *), without a condition."""
        noise = source(seed, n)
        pick = torch.special.ndtr(noise.normal((n, 1), torch.float64, torch.device("cpu")))[:, 0]
        index = (pick * len(self.points)).long().clamp_max(len(self.points) - 1).to(self.points.device)
        mean, std = self.sde.kernel(self.points[index], t)
        return mean + std * noise.like(mean)

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Points themselves, one for each sample of a running source of noise: a prior that is a sample."""
        pick = torch.special.ndtr(noise.normal((noise.size, 1), torch.float64, torch.device("cpu")))[:, 0]
        index = (pick * len(self.points)).long().clamp_max(len(self.points) - 1)
        return self.points[index.to(self.points.device)].to(device=device, dtype=dtype)

    def _conditions(self, cond: dict[str, Any], x: Tensor) -> Tensor | None:
        other = [name for name in cond if name != "given"]
        if other or ("given" in cond) != (self.given is not None):
            has = "given=" if self.given is not None else "no condition"
            raise ValueError(f"conditions {sorted(cond)}: this model takes {has}")
        if self.given is None:
            return None
        found = torch.as_tensor(cond["given"]).to(self.given).reshape(-1, self.given.shape[1])
        if len(found) not in (1, len(x)):
            raise ValueError(f"given has {len(found)} rows for {len(x)} samples; give one, or one for each")
        return found.expand(len(x), -1)

    def _nearest(self, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (1 or B, K, *) and the logarithms of their weights (1 or B, K)."""
        if given is None or self.given is None:
            return self.points.unsqueeze(0), self.points.new_zeros(1, len(self.points))
        index, squared = neighbours(self.given, given, self.bandwidth, self.neighbours)
        return self.points[index], -0.5 * squared


def _common(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The dtype in which points and states are compared: half precision has too few digits for their distances."""
    return torch.promote_types(torch.promote_types(a, b), torch.float32)


def neighbours(known: Tensor, wanted: Tensor, bandwidth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices (B, K) of the nearest of `known` (N, C) to each of `wanted` (B, C), and squared distances in bandwidths."""
    a, b = wanted / bandwidth, known / bandwidth
    if count >= len(known):
        index = torch.arange(len(known), device=known.device).expand(len(wanted), -1)
        return index, torch.square(a.unsqueeze(1) - b.unsqueeze(0)).sum(2)
    if known.shape[1] == 1:
        return _neighbours_on_a_line(a[:, 0], b[:, 0], count)
    found = []
    for part in a.split(max(1, TOGETHER // len(known))):
        gap = torch.cdist(part, b, compute_mode="donot_use_mm_for_euclid_dist")
        distance, index = gap.topk(count, largest=False)
        found.append((index, torch.square(distance)))
    return torch.cat([i for i, _ in found]), torch.cat([d for _, d in found])


def _neighbours_on_a_line(wanted: Tensor, known: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """By sorting: the window of `count` sorted values whose farther end is nearest, found by bisection."""
    values, order = known.sort()
    low, high = (
        torch.zeros_like(wanted, dtype=torch.long),
        torch.full_like(wanted, len(known) - count, dtype=torch.long),
    )
    while bool((low < high).any()):
        middle = (low + high) // 2
        right = wanted - values[middle] > values[(middle + count).clamp_max(len(values) - 1)] - wanted
        low, high = torch.where(right & (low < high), middle + 1, low), torch.where(right, high, middle)
    index = low.unsqueeze(1) + torch.arange(count, device=known.device)
    return order[index], torch.square(values[index] - wanted.unsqueeze(1))


def log_kernels(x: Tensor, points: Tensor, sde: GaussianSDE, t: Tensor) -> Tensor:
    """-|x - alpha x_m|^2 / (2 sigma^2), (B, K), for points (1 or B, K, *)."""
    alpha, sigma = sde.alpha(t), sde.sigma(t).clamp_min(1e-15)
    flat, candidates = x.flatten(1), points.flatten(2)
    scaled = expand(alpha / sigma, flat).reshape(-1, 1, 1) if alpha.ndim else float(alpha / sigma)
    away = (expand(1 / sigma, flat) * flat).unsqueeze(1) - scaled * candidates
    return -0.5 * torch.square(away).sum(2)


def posterior_mean(x: Tensor, points: Tensor, log_weights: Tensor, sde: GaussianSDE, t: Tensor) -> Tensor:
    """E[x_0 | x_t = x] for x_0 among points (1 or B, K, *) of given log-weights (1 or B, K), like x."""
    w = torch.softmax(log_kernels(x, points, sde, t) + log_weights, 1)
    candidates = points.flatten(2)
    if len(candidates) == 1:
        return (w @ candidates[0]).reshape(x.shape)
    return torch.einsum("bk,bkd->bd", w, candidates).reshape(x.shape)


def _check_conditions(points: Tensor, given: Tensor | None, bandwidth: Tensor | None, count: int | None) -> int:
    if given is None:
        if bandwidth is not None or count is not None:
            raise ValueError("bandwidth and neighbours are for conditions: give given=")
        return len(points)
    if given.ndim == 0 or len(given) != len(points):
        raise ValueError(f"given has shape {tuple(given.shape)} for {len(points)} points; give one row for each")
    if bandwidth is None or not bool((bandwidth > 0).all()):
        width = None if bandwidth is None else bandwidth.tolist()
        raise ValueError(f"bandwidth={width}: give the width of the kernel over conditions, a positive number")
    columns = given.reshape(len(points), -1).shape[1]
    if len(bandwidth) not in (1, columns):
        raise ValueError(
            f"bandwidth has {len(bandwidth)} numbers for {columns} columns of given; give one, or one for each"
        )
    count = None if count is None else whole(count, "neighbours", "the number of conditions that count")
    if count is not None and not 1 <= count <= len(points):
        raise ValueError(f"neighbours={count} of {len(points)} points: give 1 to {len(points)}")
    return count or len(points)
