"""Denoising score matching, in continuous time and on the ladder of DDPM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.ladder import DDPMScore
from scorefield.model import ScoreModel
from scorefield.randomness import generator
from scorefield.sde import GaussianSDE, Time, batch_time, expand
from scorefield.times import LadderTimes, Proposal, UniformTimes, low_discrepancy

Weighting: TypeAlias = "Literal['noise', 'likelihood', 'none', 'edm'] | Callable[[Tensor], Tensor]"
WEIGHTINGS: tuple[str, ...] = ("noise", "likelihood", "none", "edm")


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

    lambda(t) || score(x_t, t) - grad log p(x_t | x_0) ||^2,   x_t = alpha x_0 + sigma eps,   summed over the event

    Main arguments:
        x0: data in the model's range, (B, *).
        weighting: lambda(t): "noise" is sigma^2, "likelihood" is g^2 (Song et al. 2021b), "none" is 1, "edm" is the
            weighting 1 / c_out^2 of Karras et al. 2022; or a function of t (B,) float64.

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
    time, scale, noise = _draw(model.sde, x0, times or UniformTimes(), seed, t, noise, stratify)
    x = expand(model.sde.alpha(time), x0) * x0 + expand(model.sde.sigma(time), x0) * noise
    error = torch.square(model.noise(x, time, **cond) - noise).flatten(1).sum(1)
    # error is sigma^2 times the squared difference of scores
    return error * (_weight(model, weighting, time) * scale).to(error.dtype)


def ddpm_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    stratify: bool = True,
    **cond: Any,
) -> Tensor:
    """The discrete objective of DDPM (Song et al. 2021, eq. 3; Ho et al. 2020, eq. 14), one value per sample.

    || net(x, i) - eps ||^2,   x = a_i x_0 + (1 - a_i^2)^(1/2) eps,   a_i^2 = prod_{j <= i} (1 - beta_j)

    The discrete objective of SMLD (eq. 1) needs no function of its own: it is `dsm_loss` with `times=LadderTimes(N)`.

    Main arguments:
        model: one whose network is `nn.DDPMScore`, which holds the ladder. x0: as in `dsm_loss`.

    Other arguments:
        t: i / (N - 1), a float or (B,), in place of drawn ones. seed, noise, stratify, cond: as in `dsm_loss`.

    Raises:
        ValueError: the network has no ladder.
    """
    if not isinstance(model.net, DDPMScore):
        raise ValueError(f"ddpm_loss needs a model whose network is DDPMScore, not {type(model.net).__name__}")
    count = model.net.num_scales
    time, _, noise = _draw(model.sde, x0, LadderTimes(count), seed, t, noise, stratify)
    std = model.net.table().to(x0.device)[torch.round(time * (count - 1) / model.sde.T).long()]
    x = expand(torch.sqrt(1 - std**2), x0) * x0 + expand(std, x0) * noise
    score = model.score(x, time, **cond)
    return torch.square(expand(std, x0) * score + noise).flatten(1).sum(1)


def _draw(
    sde: GaussianSDE,
    x0: Tensor,
    times: Proposal,
    seed: int | torch.Generator | None,
    t: Time | None,
    noise: Tensor | None,
    stratify: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Times (B,), their weights (B,) and eps like x0, each drawn unless given."""
    if not x0.is_floating_point():
        raise ValueError(f"x0 has dtype {x0.dtype}; give data in the model's range, in floating point")
    if noise is not None and noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}; expected {tuple(x0.shape)}, that of x0")
    n = x0.shape[0]
    draws = generator(seed) if t is None or noise is None else None
    if t is not None:
        time = batch_time(t, x0).to(x0.device).expand(n)
        scale = torch.ones_like(time)
    else:
        assert draws is not None
        u = (
            low_discrepancy(n, draws)
            if stratify
            else torch.rand(n, generator=draws, dtype=torch.float64, device=draws.device)
        )
        time, scale = times(u.to(x0.device), sde)
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
