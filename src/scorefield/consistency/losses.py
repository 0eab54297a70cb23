"""The distance between a map at one noise level and at the next lower one: consistency training and distillation."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.consistency.mask import masked
from scorefield.consistency.pairs import Karras, Pairs, ends
from scorefield.dtypes import check_batch, onto
from scorefield.flowmap import FlowMap
from scorefield.model import ScoreModel
from scorefield.randomness import generator


def consistency_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    teacher: ScoreModel | None = None,
    pairs: Pairs | None = None,
    distance: Literal["l1", "l2", "huber"] = "huber",
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
        pairs: which levels: `Karras(n)`, `Progressive()`, `Curriculum()`, `Easy()`. step: of training, for these.
        distance: "l1" or "l2" (squared), summed over entries; "huber", (|d|^2 + c^2)^{1/2} - c over the whole sample with
            c = huber D^{1/2} (Song & Dhariwal 2024, eq. 8; their constant is for D = 3072, few dimensions want 0.03).
        solver: the teacher's step. target: another map for the early point, such as a running average.
        seed: an int or a generator for levels, noise and dropout.

    Other arguments:
        t: times (early, late), floats or (B,), in place of drawn ones. noise: eps, like x0.

    Returns:
        Losses (B,), in the dtype of x0.

    Raises:
        ValueError: an unknown distance.
    """
    check_batch(x0, "x0")
    draws, n, sde = generator(seed), len(x0), fm.sde
    if t is None:
        u = torch.rand(n, generator=draws, dtype=torch.float64, device=draws.device).clamp(1e-9, 1 - 1e-9)
        early_rho, late_rho, weight = (pairs or Karras())(u, sde, fm.end, step)
        early, late = (sde.inverse_log_snr(-2 * torch.log(r)) for r in (early_rho, late_rho))
        early = torch.where(early_rho <= ends(sde, fm.end)[0] * (1 + 1e-9), torch.full_like(early, fm.end), early)
    else:
        early, late = (batch_time(v, x0).expand(n) for v in t)
        weight = torch.ones_like(early)
    z = (
        torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    x_late = sde.perturb(x0, late, z)
    x_early = sde.perturb(x0, early, z) if teacher is None else _teach(teacher, x_late, late, early, solver, cond)
    mask = int(torch.randint(2**31, (), generator=draws, device=draws.device))
    with torch.no_grad():
        aim = masked(mask, x0.device, lambda: (target or fm).jump(x_early, early, **cond))
    found = masked(mask, x0.device, lambda: fm.jump(x_late, late, **cond))
    each = _far(found - aim, distance, huber)
    return each * onto(weight, each)


def _far(gap: Tensor, distance: str, huber: float) -> Tensor:
    """Length of each row by a distance of `consistency_loss`, (B,)."""
    if distance == "l1":
        return gap.abs().flatten(1).sum(1)
    squared = torch.square(gap).flatten(1).sum(1)
    if distance == "l2":
        return squared
    if distance != "huber":
        raise ValueError(f"distance={distance!r} is unknown; choose l1, l2 or huber")
    c = huber * math.sqrt(math.prod(gap.shape[1:]))
    return torch.sqrt(squared + c**2) - c


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
