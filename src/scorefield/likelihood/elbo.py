"""The evidence lower bound of a diffusion model, from its score-matching loss."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import check_finite, check_real, onto, warn_of_units, wide
from scorefield.likelihood.result import LogProb
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.randomness import Noise, Seed, chunks
from scorefield.rows import take
from scorefield.sampling import LIKELIHOOD_T_MIN, resolve_prior
from scorefield.solve.integrate import NOT_FINITE, SUCCESS, Field, Solution
from scorefield.times import ImportanceTimes, Proposal


def elbo(
    model: ScoreModel,
    x: Tensor,
    samples: int = 64,
    *,
    seed: Seed = None,
    t_min: float = LIKELIHOOD_T_MIN,
    times: Proposal | None = None,
    prior: PriorLike | Literal["nominal", "exact"] = "nominal",
    batch_size: int | None = None,
    grad: bool = False,
    **cond: Any,
) -> LogProb:
    r"""Evidence lower bound of log p(x) under the reverse SDE (Song et al. 2021b, Thm. 3; Kingma et al. 2021, eq. 17).

    E log pi(x_T) / q(x_T | x) + E log p(x | x_eps) - 1/2 integral of g^2 / sigma^2 E |eps_hat - eps|^2 dt

    The integral runs from t_min to T, and the decoder p(x | x_eps) is N(x_eps / alpha, sigma^2 / alpha^2 I), both at
    t_min. With the exact score and the exact p_T the bound is tight up to that decoder, which costs about
    sigma^2 / (2 alpha^2 v) nats for each dimension of variance v. It bounds the density of the stochastic sampler; the
    one of the probability flow (`log_prob`) is another, close to it.

    Main arguments:
        x: data in the model's range, (B, *).
        samples: draws of (t, eps) for each sample; one network evaluation each.
        seed: as in `sample`.

    Other arguments:
        times: proposal for t; ImportanceTimes(t_min) by default. UniformTimes(t_min) has the same mean.
        prior: as in `log_prob`.
        batch_size: samples at a time. grad: keep the graph, to train on the bound. cond: passed to the network.

    Raises:
        ValueError: an argument out of range.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one draw is needed")
    check_real(x)
    check_finite(x)
    warn_of_units(x, *model.sde.range)
    n = len(x)
    end = resolve_prior(model, prior, tuple(x.shape))
    whole = Field.of(model, cond, n, torch.zeros_like(x[:1]) if (batch_size or n) < n else None)
    parts = []
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        for rows, draws in chunks(seed, None, n, batch_size or max(n, 1)):
            field = take(whole, torch.arange(n, device="cpu")[rows])
            proposal = ImportanceTimes(t_min) if times is None else times
            parts.append(torch.stack([_draw(field, x[rows], draws, proposal, end, t_min) for _ in range(samples)], 1))
    estimates, nfe = torch.cat(parts), torch.full((n,), samples, device=x.device)
    status = torch.where(torch.isfinite(estimates.detach()).all(1), SUCCESS, NOT_FINITE)
    Solution(x, nfe, status, x[:0], x[:0]).warn()
    found = LogProb.of_draws(estimates, nfe, status, math.prod(x.shape[1:]))
    return replace(found, levels=model.data_levels, range=model.data_range)


def _draw(field: Field, x: Tensor, draws: Noise, proposal: Proposal, end: PriorLike, t_min: float) -> Tensor:
    """One unbiased estimate of the bound for each sample of x (B, *): (B,)."""
    sde, dims = field.sde, math.prod(x.shape[1:])
    u = torch.special.ndtr(draws.normal((len(x), 1), torch.float64, torch.device("cpu"))).squeeze(1)
    t, weight = proposal(u, sde)
    eps, last = draws.like(x), draws.like(x)
    x_t = expand(sde.alpha(t), x) * x + expand(sde.sigma(t), x) * eps
    error = wide(torch.square(field.noise(x_t, t) - eps)).flatten(1).sum(1)
    rate = weight * sde.g2(t) / torch.square(sde.sigma(t))
    loss = 0.5 * (sde.T - t_min) * onto(rate, error) * error
    state, z = wide(x), wide(last)
    sigma = sde.sigma(sde.T)
    x_T = expand(sde.alpha(sde.T), state) * state + expand(sigma, state) * z
    log_q = -0.5 * torch.square(z).flatten(1).sum(1) - dims * float(torch.log(sigma) + 0.5 * math.log(2 * math.pi))
    # The entropy of the decoder's Gaussian: E |x - x_eps / alpha|^2 is known without drawing x_eps.
    spread = float(torch.log(sde.sigma(t_min) / sde.alpha(t_min)))
    decoder = -0.5 * dims * (math.log(2 * math.pi) + 1 + 2 * spread)
    return end.log_prob(x_T) - log_q + decoder - loss
