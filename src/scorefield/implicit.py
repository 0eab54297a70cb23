"""Score matching that needs no kernel: implicit, sliced and by finite differences, over any forward process."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time
from scorefield.differentiate import differentiation, ordinary, variable
from scorefield.dtypes import check_batch, onto
from scorefield.model import ScoreModel
from scorefield.objective import Weighting
from scorefield.randomness import generator
from scorefield.sde import SDE, GaussianSDE
from scorefield.times import Proposal, UniformTimes, low_discrepancy

Trace: TypeAlias = Literal["sliced", "plain", "exact", "finite"]
Probes: TypeAlias = Literal["rademacher", "gaussian", "sphere"]


def ssm_loss(
    model: ScoreModel,
    x0: Tensor,
    weighting: Weighting | None = None,
    *,
    trace: Trace = "sliced",
    probes: int = 1,
    distribution: Probes = "rademacher",
    step: float = 0.05,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    xt: Tensor | None = None,
    steps: int = 100,
    times: Proposal | None = None,
    **cond: Any,
) -> Tensor:
    r"""Implicit score matching lambda(t) (|| s ||^2 + 2 div s) at x_t, one value per sample (Hyvarinen 2005, Thm. 1).

    It differs from || s - grad log p_t ||^2 by the Fisher information of p_t, and from denoising score matching by
    D / sigma^2, whatever the model. x_t is drawn from the kernel of a `GaussianSDE`, and otherwise by simulating the process
    from x0; the score that is learned is then that of the simulated law, which is off by its step size. Densities that do
    not vanish at an edge (a Gamma law of shape below 2, data with walls) are matched wrongly and without a sign of it: the
    integration by parts behind the formula has a term there.

    Main arguments:
        x0: data in the model's range, (B, *).
        weighting: as in `dsm_loss`; "noise" by default, and 1 for processes without a kernel.
        trace: how div s is taken.
            "exact": a derivative for each entry.
            "sliced": || s ||^2 + 2 v^T (ds/dx) v over random v with E v v^T = I (Song et al. 2020b, eq. 8).
            "plain": (v^T s)^2 in place of || s ||^2 (eq. 7 there), which has more variance and is there for comparison.
            "finite": differences s(x + e v), s(x - e v) in place of the derivative (Pang et al. 2020, eq. 17): no second
                derivative, a bias of order e^2.
        probes: vectors v for each sample. seed: an int or a generator for times, noise and v.

    Other arguments:
        distribution: of v; "rademacher" has the least variance. step: e of "finite", in units of the data.
        t: times, a float or (B,). xt: states at these times, in place of drawn ones. steps: of a simulation.
        times: proposal for the times; uniform in [1e-5, T] by default.

    Returns:
        Losses (B,), in the dtype of x0.

    Raises:
        ValueError: an unknown estimator, weighting or distribution, no probes, or a step that is not positive.
    """
    if trace not in get_args(Trace) or distribution not in get_args(Probes):
        raise ValueError(
            f"trace={trace!r}, distribution={distribution!r}: choose one of {', '.join(get_args(Trace))} and one of "
            f"{', '.join(get_args(Probes))}"
        )
    if probes < 1 or not step > 0:
        raise ValueError(f"probes={probes}, step={step}: give at least one probe and a positive step")
    check_batch(x0, "x0")
    draws, sde = generator(seed), model.sde
    if t is None:
        time, scale = (times or UniformTimes())(low_discrepancy(len(x0), draws), sde)
    else:
        time = batch_time(t, x0).expand(len(x0))
        scale = torch.ones_like(time)
    x = _states(sde, x0, time, draws, steps) if xt is None else xt
    vectors = [] if trace == "exact" else [_probe(x, distribution, draws) for _ in range(probes)]
    value = _hyvarinen(model, x, time, trace, vectors, step, cond)
    return value * onto(_weights(sde, weighting, time) * scale, value)


def _states(sde: SDE, x0: Tensor, t: Tensor, draws: torch.Generator, steps: int) -> Tensor:
    if isinstance(sde, GaussianSDE):
        return sde.perturb(
            x0, t, torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        )
    with torch.no_grad():
        states: Tensor = sde.simulate(x0, t, steps, draws)
    return states


def _probe(x: Tensor, distribution: Probes, draws: torch.Generator) -> Tensor:
    z = torch.randn(x.shape, generator=draws, dtype=x.dtype, device=draws.device).to(x.device)
    if distribution == "gaussian":
        return z
    if distribution == "rademacher":
        return torch.copysign(torch.ones_like(z), z)
    length = torch.linalg.vector_norm(z.flatten(1), dim=1).reshape(-1, *[1] * (x.ndim - 1))
    unit: Tensor = z / length
    return math.sqrt(x[0].numel()) * unit


def _hyvarinen(
    model: ScoreModel, x: Tensor, t: Tensor, trace: Trace, vectors: list[Tensor], step: float, cond: dict[str, Any]
) -> Tensor:
    """|s|^2 + 2 div s by the estimator, (B,)."""
    if trace == "finite":
        found = []
        for v in vectors:
            up, down = model.score(x + step * v, t, **cond), model.score(x - step * v, t, **cond)
            found.append(0.25 * _dot(up + down, up + down) + _dot(v, up - down) / step)
        return torch.stack(found).mean(0)
    keep = torch.is_grad_enabled()
    with differentiation():
        live, vectors = variable(x), [ordinary(v) for v in vectors]
        s = model.score(live, t, **cond)
        if trace == "exact":
            flat, back = s.flatten(1), x.new_zeros(len(x))
            for i in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, i].sum(), live, create_graph=keep, retain_graph=True)
                back = back + row.flatten(1)[:, i]
            value = _dot(s, s) + 2 * back
        else:
            found = []
            for v in vectors:
                (row,) = torch.autograd.grad(s, live, v, create_graph=keep, retain_graph=True)
                length = torch.square(_dot(v, s)) if trace == "plain" else _dot(s, s)
                found.append(length + 2 * _dot(row, v))
            value = torch.stack(found).mean(0)
    return value if keep else value.detach()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _weights(sde: SDE, weighting: Weighting | None, t: Tensor) -> Tensor:
    if callable(weighting):
        value: Tensor = weighting(t)
        return value
    if weighting in (None, "none") and not isinstance(sde, GaussianSDE):
        return torch.ones_like(t)
    if not isinstance(sde, GaussianSDE):
        raise ValueError(f"weighting={weighting!r} needs a GaussianSDE; give a function of t, or 'none'")
    match weighting:
        case None | "noise":
            return sde.sigma(t) ** 2
        case "likelihood":
            return sde.g2(t)
        case "none":
            return torch.ones_like(t)
    raise ValueError(f"weighting={weighting!r} is unknown; choose noise, likelihood, none or a function of t")
