"""Losses of jump models, each an integral over time in nats, estimated at one time for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, expand
from scorefield.discrete.model import JumpModel
from scorefield.dtypes import check_finite, onto
from scorefield.objective import draw
from scorefield.randomness import generator
from scorefield.times import Proposal

Draw: TypeAlias = "tuple[Tensor, Tensor, Tensor]"
EARLIEST = 1e-5
"""Share of T at which the integrals begin; what lies before is the reconstruction term of `bound`."""


@dataclass(frozen=True)
class JumpTimes:
    """Training times spread over what a process does, rather than over time: uniform in `JumpProcess.progress`.

    Masked diffusion on a linear schedule gets uniform times. The weights undo the proposal.

    Main arguments:
        earliest: share of T at which they begin.
    """

    earliest: float = EARLIEST

    def __post_init__(self) -> None:
        if not 0 < self.earliest < 1:
            raise ValueError(f"earliest={self.earliest} is impossible; expected a share of T between 0 and 1")

    def __call__(self, u: Tensor, sde: Any) -> tuple[Tensor, Tensor]:
        low, high = self.earliest * sde.T, sde.T
        begin, end = (float(sde.progress(t)[0]) for t in (low, high))
        t = sde.time_at(begin + u * (end - begin)).clamp(low, high * (1 - 1e-12))
        return t, (end - begin) / (sde.progress(t)[1] * (high - low))


def masked_loss(
    model: JumpModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    **cond: Any,
) -> Tensor:
    r"""The bound of masked diffusion (Sahoo et al. 2024, eq. 10), one value per sample, in nats.

    T (-alpha' / (1 - alpha)) sum over masked positions of -log p(x_0 | x_t),   summed over the event

    Its mean over t uniform in [0, T] bounds -log p(x_0), whatever the schedule; `score_entropy` of the same model is the
    same number.

    Main arguments:
        x0: states, integers (B, *).

    Other arguments:
        seed: an int or a generator for times and noise; None draws afresh.
        t: times, a float or (B,), in place of drawn ones.
        noise: standard-normal numbers like x0, which decide what is masked, in place of drawn ones.
        times: proposal for the times; `JumpTimes()` by default, with its weights.
        cond: passed to the network.

    Returns:
        Losses (B,), float32 or the network's float64.

    Raises:
        ValueError: a process without a mask; x0, t or noise of a wrong shape, dtype or value.
    """
    process = model.process
    if process.mask is None:
        raise ValueError(f"masked_loss needs a process with a mask, not {type(process).__name__}; use score_entropy")
    time, weight, x = _corrupted(model, x0, seed, t, noise, times)
    log_p = model.log_posterior(x, time, **cond)
    each = -log_p.gather(-1, x0.long().unsqueeze(-1)).squeeze(-1)
    total = _sum(torch.where(x == process.mask, each, 0.0))
    return total * expand(weight * process.T * process.schedule.hazard(time), total)


def score_entropy(
    model: JumpModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    **cond: Any,
) -> Tensor:
    r"""Diffusion-weighted denoising score entropy (Lou et al. 2024, eq. 7 and 10), one value per sample, in nats.

    T beta(t) sum over positions and y of R[y, x] ( s_y - r_y log s_y + r_y (log r_y - 1) ),   r_y = K[x_0, y] / K[x_0, x]

    with s the model's `ratio`. Its mean over t uniform in [0, T], with the terms of `bound` at both ends, bounds -log p(x_0)
    for every process. It is the continuous-time bound of Campbell et al. (2022, Prop. 2) with its constants, and the sum over
    jumps in place of a drawn one.

    Arguments, Returns, Raises: as `masked_loss`, for any process.
    """
    time, weight, x = _corrupted(model, x0, seed, t, noise, times)
    s = model.ratio(x, time, **cond)
    rates, r = _known(model, x0, x, time, s.dtype)
    each = torch.where(rates > 0, s - torch.xlogy(r, s) + torch.xlogy(r, r) - r, 0.0)
    total = _sum(rates * each)
    return total * expand(weight * model.process.T * model.process.schedule.rate(time), total)


def ratio_matching(
    model: JumpModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    **cond: Any,
) -> Tensor:
    r"""Categorical ratio matching (Sun et al. 2023, eq. 14), one value per sample, in nats.

    - sum over positions d of log p(x_t at d | x_t elsewhere),   at t uniform in [0, T]

    No bound of -log p(x_0), but its minimum is the true marginal of every position. It is for networks in which no output
    sees its own position (`predict="hollow"` or "marginal"); with any other it would be solved by copying.

    Arguments, Returns: as `masked_loss`, for any process.

    Raises:
        ValueError: as `masked_loss`, or a model of another prediction.
    """
    if model.predict not in ("hollow", "marginal"):
        raise ValueError(
            f"ratio_matching needs predict='hollow' or 'marginal', not {model.predict!r}: a network that sees the position it "
            "predicts would copy it"
        )
    time, weight, x = _corrupted(model, x0, seed, t, noise, times)
    p = model.marginal(x, time, **cond).gather(-1, x.unsqueeze(-1))
    total = -_sum(torch.log(p.clamp_min(torch.finfo(p.dtype).tiny)))
    return total * expand(weight, total)


def continuous_elbo(
    model: JumpModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    jumped: Tensor | None = None,
    one_pass: bool = False,
    **cond: Any,
) -> Tensor:
    r"""The continuous-time bound with one drawn jump (Campbell et al. 2022, Prop. 2 and App. C.3), one value per sample.

    T ( sum of the reverse rates out of x_t - E[Z log of the reverse rate of the jump from x_t to x~] + constants ), in nats,
    with Z the rate of all jumps out of x_t; given x~, the mean over x_t is taken exactly.

    The constants, which the authors leave out, are those of `score_entropy`: both have the same mean, this one scatters more
    and costs as much. It is here to train as they do.

    Arguments, Returns, Raises: as `score_entropy`, and

    Other arguments:
        jumped: x~, like x0, in place of one drawn from `seed`, or from numbers that follow from `noise` where that is given.
        one_pass: read the first term at x~ too, for one call of the network in place of two; no bound any more.
    """
    time, weight, x = _corrupted(model, x0, seed, t, noise, times)
    after = _one_jump(model, x, noise, seed) if jumped is None else jumped.long()
    s = model.ratio(after, time, **cond)
    rates, r = _known(model, x0, after, time, s.dtype)
    exits = -onto(model.process.generator.diagonal(), s)
    out = exits[after]
    # Z of the state from which a jump to x~ came, which had y at the position in question.
    before = out.flatten(1).sum(1).reshape(-1, *[1] * x0.ndim) - out.unsqueeze(-1) + exits
    chance = _sum(torch.where(rates > 0, rates * r / before, 0.0))
    stuck = _sum(exits[x.long()]) == 0  # everything is masked: no jump leads out of that
    signal = torch.where(stuck, 0.0, _sum(rates * torch.xlogy(r, s)) / chance)
    rates_x, r_x = _known(model, x0, x, time, s.dtype)
    regular = _sum(rates * s) if one_pass else _sum(rates_x * model.ratio(x, time, **cond))
    total = regular - signal + _sum(rates_x * (torch.xlogy(r_x, r_x) - r_x))
    return total * expand(weight * model.process.T * model.process.schedule.rate(time), total)


def _sum(each: Tensor) -> Tensor:
    """Over everything but the batch, (B,)."""
    return each.flatten(1).sum(1)


def _corrupted(
    model: JumpModel,
    x0: Tensor,
    seed: int | torch.Generator | None,
    t: Time | None,
    noise: Tensor | None,
    times: Proposal | None,
) -> Draw:
    """Times (B,), their weights (B,), and x_t like x0."""
    process: Any = model.process
    check_data(process, x0)
    if noise is not None:
        check_finite(noise, "noise")
    like = torch.zeros((), dtype=torch.float64, device="cpu").expand(x0.shape)
    time, weight, z = draw(process, like, times or JumpTimes(), seed, t, noise, stratify=True)
    return time, weight, process.corrupt(x0.cpu(), time, torch.special.ndtr(z.cpu().double())).to(x0.device)


def check_data(process: Any, x0: Tensor) -> None:
    """Refuse what is no data of a process.

    Raises:
        ValueError: as `JumpProcess.check`, or a mask among the data.
    """
    process.check(x0, "x0")
    if x0.ndim < 2:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}; give a batch (B, *), one item being (1, *)")
    if process.mask is not None and not x0.is_meta and bool((x0 == process.mask).any()):
        raise ValueError(f"x0 has state {process.mask}, the mask; data has states from 0 to {process.mask - 1}")


def _known(model: JumpModel, x0: Tensor, x: Tensor, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """R[y, x], 0 for y = x, and K[x_0, y] / K[x_0, x], for every y: (B, *, S)."""
    process = model.process
    own = x.long().unsqueeze(-1)
    row = process.row(x0, process.schedule.total(t), dtype)
    rates = process.into(x, dtype).scatter(-1, own, 0.0)
    return rates, row / row.gather(-1, own)


def _one_jump(model: JumpModel, x: Tensor, noise: Tensor | None, seed: int | torch.Generator | None) -> Tensor:
    """x after one jump of the forward process, drawn by its rates."""
    if noise is not None:
        seed = int(noise.cpu().double().abs().sum() * 2**20)
    elif isinstance(seed, int):
        seed = seed + 1  # not the numbers that drew x
    process = model.process
    rates = process.out(x.cpu(), torch.float64).scatter(-1, x.cpu().long().unsqueeze(-1), 0.0).flatten(1)
    stuck = (rates.sum(1) == 0).to(x.device)  # everything is masked, and no jump leads out of that
    pick = torch.multinomial(rates + stuck.cpu()[:, None].to(rates), 1, generator=generator(seed)).to(x.device)
    position, state = pick // process.S, pick % process.S
    jumped = x.flatten(1).scatter(1, position, state)
    return torch.where(stuck[:, None], x.flatten(1), jumped).reshape(x.shape)
