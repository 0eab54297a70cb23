"""How average velocities are learned: the identity of MeanFlow, and shortcuts of twice the length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.conditions import split, with_rows
from scorefield.consistency.mask import masked
from scorefield.dtypes import check_batch, onto
from scorefield.flowmap import FlowMap
from scorefield.inputs import share as within
from scorefield.randomness import generator


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
        ValueError: a map of another kind, or a share outside [0, 1].
    """
    if fm.kind != "average":
        raise ValueError(f"meanflow_loss needs FlowMap(kind='average'), not {fm.kind!r}")
    check_batch(x0, "x0")
    within(share=share)
    draws, n = generator(seed), len(x0)
    if t is None:
        pair = torch.sigmoid(torch.randn(2, n, generator=draws, dtype=torch.float64, device=draws.device) - 0.4).sort(
            0
        )[0]
        r, late = torch.where(torch.rand(n, generator=draws, device=draws.device) < share, pair[0], pair[1]), pair[1]
    else:
        r, late = (batch_time(v, x0).expand(n) for v in t)
    e = (
        torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    z, v = expand(1 - late, x0) * x0 + expand(late, x0) * e, e - x0
    clock, span = onto(late, x0).contiguous(), onto(late - r, x0).contiguous()
    mask = int(torch.randint(2**31, (), generator=draws, device=draws.device))

    def network(state: Tensor, now: Tensor, width: Tensor) -> Tensor:
        return masked(mask, x0.device, lambda: fm.average_velocity(state, now, width, cond))

    ones = torch.ones_like(clock)
    with torch.no_grad():
        _, change, *_ = torch.func.jvp(network, (z, clock, span), (v, ones, ones))
        aim = v - expand(late - r, x0) * change
    error = torch.square(network(z, clock, span) - aim).flatten(1).sum(1)
    return error / (error.detach() + 0.01) ** power


def shortcut_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    target: FlowMap | None = None,
    levels: int = 128,
    share: float = 0.125,
    clip: float = 4.0,
    seed: int | torch.Generator | None = None,
    t: tuple[Time, Time] | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    r"""A jump of length 2d is two jumps of length d (Frans et al. 2024, eq. 4 and Alg. 1), one value per sample.

    || u(z, t, 2d) - sg(u(z, t, d) + u(z - d u(z, t, d), t - d, d)) / 2 ||^2, time running from data at 0 to noise at 1 as
    everywhere here. Jumps of the smallest length, 1 / levels, are learned by flow matching.

    Main arguments:
        x0: data, (B, *). target: another map for the two short jumps, such as a running average of this one.
        levels: smallest jumps from noise to data, a power of two. share: of the batch that learns longer jumps.
        clip: bound of the intermediate state and of the target, as in the authors' code; infinity for none.
        seed: an int or a generator for lengths, times, noise and dropout.

    Other arguments:
        t: (early, late), floats or (B,), of jumps that are all learned from two halves. noise: e, like x0.

    Raises:
        ValueError: a map of another kind, or levels that are no power of two of 2 or more.
    """
    if fm.kind != "average":
        raise ValueError(f"shortcut_loss needs FlowMap(kind='average'), not {fm.kind!r}")
    if levels < 2 or levels & (levels - 1):
        raise ValueError(f"levels={levels}: give a power of two, 2 or more")
    within(share=share)
    if not clip > 0:
        raise ValueError(f"clip={clip}: give a positive bound, or infinity for none")
    check_batch(x0, "x0")
    draws, n = generator(seed), len(x0)
    if t is None:
        late, span, long = _lengths(n, levels, share, draws)
    else:
        early, late = (batch_time(v, x0).expand(n) for v in t)
        span, long = late - early, torch.ones(n, dtype=torch.bool, device="cpu")
    e = (
        torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    z, aim = expand(1 - late, x0) * x0 + expand(late, x0) * e, e - x0
    mask, rows = int(torch.randint(2**31, (), generator=draws, device=draws.device)), torch.nonzero(long).flatten()

    def velocity(model: FlowMap, state: Tensor, now: Tensor, width: Tensor, given: dict[str, Any]) -> Tensor:
        return masked(mask, x0.device, lambda: model.average_velocity(state, onto(now, x0), onto(width, x0), given))

    if len(rows):
        chosen = rows.to(x0.device)
        half, now, state, own = 0.5 * span[rows], late[rows], z[chosen], split(cond, rows, with_rows(cond, n))
        with torch.no_grad():
            first = velocity(target or fm, state, now, half, own)
            ahead = (state - expand(half, x0) * first).clamp(-clip, clip)
            second = velocity(target or fm, ahead, now - half, half, own)
            aim = aim.index_copy(0, chosen, (0.5 * (first + second)).clamp(-clip, clip))
    return torch.square(velocity(fm, z, late, span, cond) - aim).flatten(1).sum(1)


def _lengths(n: int, levels: int, share: float, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Late ends and lengths of jumps, and which of them are learned from two halves: (n,) each."""
    long = torch.rand(n, generator=draws, device=draws.device) < share
    depth = torch.randint(levels.bit_length() - 1, (n,), generator=draws, device=draws.device)
    span = torch.where(long, 0.5 ** depth.double(), torch.full((n,), 1 / levels, dtype=torch.float64, device="cpu"))
    place = torch.floor(torch.rand(n, generator=draws, dtype=torch.float64, device=draws.device) / span)
    return (place + 1) * span, span, long
