"""A lower bound of the log-probability of discrete data under a jump model, with its error bar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scorefield.discrete.model import JumpModel
from scorefield.discrete.objective import EARLIEST, JumpTimes, check_data, masked_loss, score_entropy
from scorefield.inputs import whole
from scorefield.likelihood.result import LogProb
from scorefield.progress import Bar
from scorefield.randomness import Noise, Seed, chunks
from scorefield.solve.integrate import NOT_FINITE, SUCCESS


@torch.no_grad()
def bound(
    model: JumpModel,
    x: Tensor,
    samples: int = 16,
    *,
    seed: Seed = None,
    earliest: float = EARLIEST,
    batch_size: int | None = None,
    progress: bool | None = None,
    **cond: Any,
) -> LogProb:
    r"""Lower bound of log p(x) in nats (Lou et al. 2024, eq. 10; Sahoo et al. 2024, eq. 10).

    E log p(x_0 | x_eps) - integral from eps to T of the loss (`masked_loss`, else `score_entropy`) - KL(p_T|0 || prior)

    With exact ratios it is tight but for the first term, H(x_0 | x_eps), which vanishes with eps. It bounds the probability
    of what the exact reverse process draws; samplers of few steps draw from another law.

    Main arguments:
        x: states, integers (B, *).
        samples: draws of (t, x_t) for each sample, its times stratified; one call of the network each, and a second one for
            the first term where nothing is masked.
        seed: as in `sample`.

    Other arguments:
        earliest: eps as a share of T. batch_size: samples at a time. progress: as in `sample`. cond: passed to the network.

    Raises:
        ValueError: fewer than one draw; data that the process does not have; a schedule that leaves positions unmasked at T.
    """
    process = model.process
    samples = whole(samples, "samples", "the number of draws")
    if batch_size is not None:
        whole(batch_size, "batch_size", "a number of samples")
    check_data(process, x)
    if process.mask is not None and float(process.schedule.alpha(process.T)) > 0:
        raise ValueError(
            f"the bound is infinite: {process.schedule} leaves positions unmasked at T; use LogLinear(eps=0)"
        )
    parts, n = [], len(x)
    with Bar("likelihood", progress) as bar:
        for rows, noise in chunks(seed, None, n, batch_size or n):
            own = {k: v[rows] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in cond.items()}
            parts.append(_draws(model, x[rows], samples, earliest, noise, own))
            bar(rows.stop / n)
    draws = torch.cat(parts)
    nfe = torch.full((n,), samples * (1 if process.mask is not None else 2), device="cpu")
    status = torch.where(torch.isnan(draws).any(1), NOT_FINITE, SUCCESS)
    return replace(LogProb.of_draws(draws, nfe, status, x[0].numel()), discrete=True)


def _draws(model: JumpModel, x: Tensor, samples: int, earliest: float, noise: Noise, cond: dict[str, Any]) -> Tensor:
    """Estimates (B, samples) of the bound."""
    process, n = model.process, len(x)
    shift, loss = noise.uniform((n, 1)), score_entropy if process.mask is None else masked_loss
    proposal, span = JumpTimes(earliest), (1 - earliest)  # the losses carry the factor T
    final = _prior_term(model, x)
    each = []
    for k in range(samples):
        t, weight = proposal(torch.remainder(shift.squeeze(1) + k / samples, 1.0), process)
        normal = noise.normal(x.shape, torch.float64, torch.device("cpu"))
        integral = loss(model, x, t=t, noise=normal, **cond).cpu().double() * weight * span
        u = noise.uniform(x.shape)
        each.append(_reconstruction(model, x, earliest * process.T, u, cond) - integral - final)
    return torch.stack(each, 1)


def _reconstruction(model: JumpModel, x: Tensor, t: float, u: Tensor, cond: dict[str, Any]) -> Tensor:
    """log p(x_0 | x_t) at the earliest time, (B,)."""
    process = model.process
    early = process.corrupt(x.cpu(), t, u).to(x.device)
    if process.mask is not None and torch.equal(early, x.long()):
        return torch.zeros(len(x), dtype=torch.float64, device="cpu")
    log_p = model.log_posterior(early, t, **cond).gather(-1, x.long().unsqueeze(-1))
    return log_p.cpu().double().flatten(1).sum(1)


def _prior_term(model: JumpModel, x: Tensor) -> Tensor:
    """KL(p(x_T | x_0) || prior), (B,)."""
    process = model.process
    matrix = process.row(torch.arange(process.S, device="cpu"), process.schedule.total(process.T), torch.float64)
    each = (torch.xlogy(matrix, matrix) - torch.xlogy(matrix, process.stationary)).sum(1)
    return each[x.long().cpu()].flatten(1).sum(1)
