"""The evidence lower bound of a diffusion model, from its score-matching loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scorefield.dtypes import check_real, onto, warn_of_units, wide
from scorefield.likelihood.dequantize import levels_width
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.randomness import Seed, chunks
from scorefield.sampling import LIKELIHOOD_T_MIN, _resolve_prior
from scorefield.sde import expand
from scorefield.solve.integrate import Field
from scorefield.times import ImportanceTimes, Proposal


@dataclass(frozen=True)
class Bound:
    """Lower bounds on log-likelihoods, as means of unbiased draws.

    Attributes:
        nats: mean over draws, (B,), float64 (float32 on a device other than the CPU).
        stderr: its standard error, (B,); NaN for a single draw.
        draws: (B, K).
        dims: dimensions of a sample.
    """

    nats: Tensor
    stderr: Tensor
    draws: Tensor
    dims: int

    def bits_per_dim(self, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Upper bound on the bits per dimension of data with `levels` values dequantised to fill [low, high]: (B,)."""
        return math.log2(levels_width(levels, low, high)) - self.nats / (self.dims * math.log(2))

    def bits_stderr(self) -> Tensor:
        """Standard error of `bits_per_dim`, (B,)."""
        return self.stderr / (self.dims * math.log(2))


def bound_of(draws: Tensor, dims: int) -> Bound:
    """The mean of draws (B, K) with its standard error."""
    k = draws.shape[1]
    spread = draws.std(1) if k > 1 else torch.full_like(draws[:, 0], math.nan)
    return Bound(draws.mean(1), spread / math.sqrt(k), draws, dims)


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
) -> Bound:
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
    warn_of_units(x, *model.sde.range)
    n, sde = len(x), model.sde
    proposal = ImportanceTimes(t_min) if times is None else times
    end = _resolve_prior(model, prior, tuple(x.shape))
    whole = Field(model, cond, n)
    dims = math.prod(x.shape[1:])
    early, late = (sde.alpha(t_min), sde.sigma(t_min)), (sde.alpha(sde.T), sde.sigma(sde.T))
    # The entropy of the decoder's Gaussian: E |x - x_eps / alpha|^2 is known without drawing x_eps.
    decoder = -0.5 * dims * (math.log(2 * math.pi) + 1 + 2 * float(torch.log(early[1] / early[0])))
    rows_done = []
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        for rows, draws in chunks(seed, None, n, batch_size or max(n, 1)):
            part, field = x[rows], whole.rows(torch.arange(n)[rows])
            columns = []
            for _ in range(samples):
                u = torch.special.ndtr(draws.normal((len(part), 1), torch.float64, torch.device("cpu"))).squeeze(1)
                t, weight = proposal(u, sde)
                eps, last = draws.like(part), draws.like(part)
                x_t = expand(sde.alpha(t), part) * part + expand(sde.sigma(t), part) * eps
                error = wide(torch.square(field.noise(x_t, t) - eps)).flatten(1).sum(1)
                rate = weight * sde.g2(t) / torch.square(sde.sigma(t))
                loss = 0.5 * (sde.T - t_min) * onto(rate, error) * error
                state, z = wide(part), wide(last)
                x_T = expand(late[0], state) * state + expand(late[1], state) * z
                log_q = -0.5 * torch.square(z).flatten(1).sum(1) - dims * float(
                    torch.log(late[1]) + 0.5 * math.log(2 * math.pi)
                )
                columns.append(end.log_prob(x_T) - log_q + decoder - loss)
            rows_done.append(torch.stack(columns, 1))
    return bound_of(torch.cat(rows_done), dims)
