"""Denoising score matching in continuous time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.noise import generator
from scorefield.sde import Time, as_time, expand
from scorefield.times import Proposal, UniformTimes, low_discrepancy

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
        ValueError: an unknown weighting.
    """
    if not callable(weighting) and weighting not in WEIGHTINGS:
        raise ValueError(
            f"weighting={weighting!r} is unknown; choose one of {', '.join(WEIGHTINGS)} or a function of t"
        )
    n, sde = x0.shape[0], model.sde
    draws = generator(seed) if t is None or noise is None else None
    scale = None
    if t is not None:
        time = as_time(t, x0.device).expand(n)
    else:
        assert draws is not None
        u = low_discrepancy(n, draws) if stratify else torch.rand(n, generator=draws, dtype=torch.float64)
        time, scale = (times or UniformTimes())(u.to(x0.device), sde)
    if noise is None:
        assert draws is not None
        noise = torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
    x = expand(sde.alpha(time), x0) * x0 + expand(sde.sigma(time), x0) * noise
    error = torch.square(model.noise(x, time, **cond) - noise).flatten(1).sum(1)
    # error is sigma^2 times the squared difference of scores
    factor = _weight(model, weighting, time)
    return error * (factor if scale is None else factor * scale).to(error.dtype)


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
