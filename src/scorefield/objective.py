"""Denoising score matching in continuous time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.dtypes import check_batch, onto
from scorefield.model import ScoreModel
from scorefield.randomness import generator
from scorefield.sde import GaussianSDE
from scorefield.times import Proposal, UniformTimes, low_discrepancy, uniform

Weighting: TypeAlias = "Literal['noise', 'likelihood', 'none', 'edm', 'velocity'] | Callable[[Tensor], Tensor]"
WEIGHTINGS: tuple[str, ...] = ("noise", "likelihood", "none", "edm", "velocity")


def dsm_loss(
    model: ScoreModel,
    x0: Tensor,
    weighting: Weighting = "noise",
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    stratify: bool = True,
    **cond: Any,
) -> Tensor:
    r"""Continuous denoising score matching (Song et al. 2021, eq. 7), one value per sample.

    lambda(t) || score(x_t, t) - grad log p(x_t | x_0) ||^2,   x_t = alpha x_0 + sigma eps

    The square is summed over the D entries of a sample, not averaged: a new model starts near D with "noise".

    Main arguments:
        x0: data in the model's range, (B, *).
        weighting: lambda(t): "noise" is sigma^2, "likelihood" is g^2 (Song et al. 2021b), "none" is 1, "edm" is the
            weighting 1 / c_out^2 of Karras et al. 2022, "velocity" that of flow matching, the square of velocity -
            (alpha' x_0 + sigma' eps) (Lipman et al. 2023, eq. 14), finite also where alpha = 0; or a function of t (B,)
            float64.

    Other arguments:
        seed: an int or a generator for times and noise; None draws afresh.
        t: times, a float or (B,), in place of drawn ones.
        noise: eps, like x0, in place of a drawn one.
        times: proposal for the times; uniform in [1e-5, T] by default.
        stratify: spread the times of a batch evenly, which lowers the variance of its mean.
        cond: passed to the network.

    Returns:
        Losses (B,), in the dtype of x0.

    Raises:
        ValueError: an unknown weighting, or t, noise or x0 of a wrong shape or dtype.
    """
    if not callable(weighting) and weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting={weighting!r} is unknown; choose one of {', '.join(WEIGHTINGS)} or a function of t"
        )
    time, scale, noise = draw(model.sde, x0, times or UniformTimes(), seed, t, noise, stratify)
    x = model.sde.perturb(x0, time, noise)
    if weighting == "velocity":
        d_alpha, d_sigma = model.sde.derivatives(time)
        target = expand(d_alpha, x0) * x0 + expand(d_sigma, x0) * noise
        each = torch.square(model.velocity(x, time, **cond) - target).flatten(1).sum(1)
        return each * onto(scale, each)
    if isinstance(model.sde, GaussianSDE):
        gap = model.noise(x, time, **cond) - noise
    else:
        away = model.score(x, time, **cond) - model.sde.kernel_score(x, x0, time)
        gap = expand(model.sde.sigma(time), x0) * away
    error = torch.square(gap).flatten(1).sum(1)  # sigma^2 times the squared difference of scores
    return error * onto(_weight(model, weighting, time) * scale, error)


def draw(
    sde: GaussianSDE,
    x0: Tensor,
    times: Proposal,
    seed: int | torch.Generator | None,
    t: Time | None,
    noise: Tensor | None,
    stratify: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Times (B,) and their weights (B,), float64 on the CPU, and eps like x0; each drawn unless given."""
    check_batch(x0, "x0")
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected {tuple(x0.shape)}, that of x0")
    n = x0.shape[0]
    draws = generator(seed) if t is None or noise is None else None
    if t is not None:
        time = batch_time(t, x0).expand(n)
        scale = torch.ones_like(time)
    else:
        assert draws is not None
        time, scale = times(low_discrepancy(n, draws) if stratify else uniform((n,), draws), sde)
    if noise is None:
        assert draws is not None
        noise = torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
    return time, scale, noise


def _weight(model: ScoreModel, weighting: Weighting, t: Tensor) -> Tensor:
    """lambda(t) / sigma(t)^2, (B,)."""
    sde = model.sde
    if weighting == "noise":
        return torch.ones_like(t)
    if weighting == "edm":
        return 1 + torch.exp(-sde.log_snr(t)) / model.sigma_data**2
    variance = torch.square(sde.sigma(t))
    if weighting == "likelihood":
        return sde.g2(t) / variance
    return (weighting(t) if callable(weighting) else torch.ones_like(t)) / variance
