"""How far a score is from solving the Fokker-Planck equation, as a figure and as a penalty (Lai et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.differentiate import differentiation_twice, ordinary
from scorefield.dtypes import check_batch
from scorefield.model import ScoreModel
from scorefield.nn.potential import Potential
from scorefield.randomness import generator
from scorefield.sde import GaussianSDE
from scorefield.times import Proposal, UniformTimes, low_discrepancy

Vectors: TypeAlias = "Tensor | None"
"""Probes of the divergence, (P, B, *); None for all directions."""


def fokker_planck_residual(
    model: ScoreModel,
    x: Tensor,
    t: Time,
    *,
    probes: int | None = None,
    seed: int | torch.Generator | None = None,
    grad: bool = False,
    **cond: Any,
) -> Tensor:
    r"""What is left over when a model is put into the equation that the score of its process solves.

    For a network that is the gradient of a potential phi (`nn.Potential`), R = d phi/dt + div f + f . grad phi
    - 1/2 g^2 (Laplacian phi + |grad phi|^2), (B,): the potential is known up to a function of t, so only its spread over x at
    one time says something (`fokker_planck_spread`). For any other model its gradient, r = ds/dt - grad[1/2 g^2 (div s + |s|^2)
    - f . s], like x (Lai et al. 2023, eq. 10). Under a process of any drift and diffusion it is r = ds/dt + grad[div v + v . s]
    with the velocity v of the flow, the same where f = f(t) x and G = g(t).

    Main arguments:
        x: (B, *). t: times above 0, a float or (B,). cond: of the network.

    Other arguments:
        probes: random signs per sample by which the second derivatives are estimated without bias (Hutchinson); exact, one
            derivative for each entry, by default. seed: of the probes. grad: keep the graph, for a penalty.

    Raises:
        ValueError: a time at which the rates are infinite, fewer than one probe, or a model that knows only part of its score.
    """
    check_batch(x)
    vectors = None if probes is None else _signs(x, probes, generator(seed))
    (residual,) = _residuals(model, x, batch_time(t, x).expand(len(x)), [vectors], cond)
    return residual if grad else residual.detach()


def fokker_planck_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    probes: int | None = None,
    **cond: Any,
) -> Tensor:
    r"""Penalty (sigma^2 R)^2 per unit of log-SNR at x_t drawn from the kernel, one value per sample, (B,).

    Added to `dsm_loss`, as `train(fokker_planck=weight)` does, it closes the gap between samples of the flow and of the SDE;
    the flow's come nearer to the data, those of the SDE do not (Deveney et al. 2023). The residual is taken relative to the
    rate g^2 / sigma^2 of the process, so that it is of order one at all times.

    Main arguments:
        x0: data in the model's range, (B, *). seed: an int or a generator for times, noise and probes.

    Other arguments:
        t: times, a float or (B,). noise: like x0. times: proposal; uniform in [1e-3, T] by default. cond: of the network.
        probes: for data of many entries; the penalty is then the product of two estimates by probes of their own, whose mean
            is the square: the square of one estimate would add its variance. It can be negative.

    Raises:
        ValueError: a process without a Gaussian kernel, a time at which the rates are infinite, or fewer than one probe.
    """
    _check_gaussian(model)
    check_batch(x0, "x0")
    draws = generator(seed)
    time = batch_time(t, x0).expand(len(x0)) if t is not None else None
    if time is None:
        time, _ = (times or UniformTimes(1e-3))(low_discrepancy(len(x0), draws), model.sde)
    if noise is None:
        noise = torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
    x = model.sde.perturb(x0, time, noise)
    both: list[Vectors] = [None] if probes is None else [_signs(x0, probes, draws) for _ in range(2)]
    found = _residuals(model, x, time, both, cond)
    scale = model.sde.sigma(time) ** 2 / model.sde.g2(time)
    if found[0].ndim == 1:
        return scale.to(found[0]) ** 2 * found[0] * found[-1]
    scale = scale * model.sde.sigma(time)  # r is a gradient: one length more
    return (expand(scale**2, found[0]) * found[0] * found[-1]).flatten(1).sum(1)


def fokker_planck_spread(
    model: ScoreModel, x0: Tensor, times: Sequence[float], *, probes: int | None = None, seed: int = 0, **cond: Any
) -> Tensor:
    r"""What of the penalty no choice of constants can hide, at each of `times`, (len(times),).

    For a potential the variance over x_t of sigma^2 R / g^2: its mean is that of an unknown function of t, which score matching
    leaves free. For any other model the mean of |sigma^3 r / g^2|^2, of which the same is true.

    Main arguments:
        x0: data in the model's range, (B, *), B of at least 2. seed: of noise and probes.

    Other arguments:
        probes: as in `fokker_planck_residual`; the two estimates are made by probes of their own. cond: of the network.

    Raises:
        ValueError: a process without a Gaussian kernel, fewer than two items, or fewer than one probe.
    """
    _check_gaussian(model)
    check_batch(x0, "x0")
    draws, found = generator(seed), []
    if len(x0) < 2:
        raise ValueError(f"x0 has {len(x0)} items; a spread needs at least 2")
    for t in times:
        time = batch_time(float(t), x0).expand(len(x0))
        x = model.sde.perturb(
            x0, time, torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        )
        both: list[Vectors] = [None] if probes is None else [_signs(x0, probes, draws) for _ in range(2)]
        residuals = [r.detach() for r in _residuals(model, x, time, both, cond)]
        sigma, g2 = float(model.sde.sigma(time[0])), float(model.sde.g2(time[0]))
        if residuals[0].ndim == 1:
            one, two = (r - r.mean() for r in (residuals[0], residuals[-1]))
            found.append(sigma**4 / g2**2 * float((one * two).sum()) / (len(x0) - 1))
        else:
            found.append(sigma**6 / g2**2 * float((residuals[0] * residuals[-1]).flatten(1).sum(1).mean()))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _check_gaussian(model: ScoreModel) -> None:
    if not isinstance(model.sde, GaussianSDE):
        raise ValueError(f"{type(model.sde).__name__} has no f and g2; the penalty is that of a Gaussian SDE")


def _signs(x: Tensor, probes: int, draws: torch.Generator) -> Tensor:
    if probes < 1:
        raise ValueError(f"probes={probes}: give one or more, or None for the exact divergence")
    signs = torch.randint(0, 2, (probes, *x.shape), generator=draws, device=draws.device)
    return (2 * signs - 1).to(x)


def _residuals(
    model: ScoreModel, x: Tensor, time: Tensor, vectors: Sequence[Vectors], cond: dict[str, Any]
) -> list[Tensor]:
    """The residual with each set of probes, with its graph."""
    if not isinstance(model.sde, GaussianSDE):
        return _of_process(model, x, time, vectors, cond)
    with differentiation_twice():
        f, g2 = model.sde.f(time), model.sde.g2(time)
        if not bool(torch.isfinite(f).all() and torch.isfinite(g2).all()):
            raise ValueError(
                f"t={float(time[0]):g}: the rates of {type(model.sde).__name__} are infinite there; stay inside"
            )
        live, clock = x.detach().clone().requires_grad_(), time.clone().requires_grad_()
        vectors = [None if v is None else ordinary(v) for v in vectors]
        if isinstance(model.net, Potential) and model.predict == "score":
            return _of_potential(model, live, clock, (f.to(x), g2.to(x)), vectors, cond)
        return _of_score(model, live, clock, (f.to(x), g2.to(x)), vectors, cond)


def _of_potential(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    rates: tuple[Tensor, Tensor],
    vectors: Sequence[Vectors],
    cond: dict[str, Any],
) -> list[Tensor]:
    assert isinstance(model.net, Potential)
    (f, g2), d = rates, x[0].numel()
    phi = model.net.value(x, model._read_clock(t, model.sde.sigma(t)).to(x), **cond)
    (slope,) = torch.autograd.grad(phi.sum(), x, create_graph=True)
    (rate,) = torch.autograd.grad(phi.sum(), t, create_graph=True, materialize_grads=True)
    flat = slope.flatten(1)
    rest = rate.to(x) + f * (d + (x.flatten(1) * flat).sum(1)) - 0.5 * g2 * torch.square(flat).sum(1)
    return [rest - 0.5 * g2 * _divergence(slope, x, v) for v in vectors]


def _of_score(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    rates: tuple[Tensor, Tensor],
    vectors: Sequence[Vectors],
    cond: dict[str, Any],
) -> list[Tensor]:
    f, g2 = rates
    s = model.score(x, t, **cond)
    flat = s.flatten(1)
    known = 0.5 * g2 * torch.square(flat).sum(1) - f * (x.flatten(1) * flat).sum(1)
    change = _rate(s, t)
    found = []
    for v in vectors:
        inner = known + 0.5 * g2 * _divergence(s, x, v)
        (slope,) = torch.autograd.grad(inner.sum(), x, create_graph=True)
        found.append(change - slope)
    return found


def _of_process(
    model: ScoreModel, x: Tensor, time: Tensor, vectors: Sequence[Vectors], cond: dict[str, Any]
) -> list[Tensor]:
    """ds/dt + grad[div v + v . s]: the equation of continuity of any process, by the velocity of its flow."""
    if model.partial_score:
        raise ValueError(
            f"{type(model).__name__} knows the score of some entries alone; the residual needs that of all"
        )
    with differentiation_twice():
        live, clock = x.detach().clone().requires_grad_(), time.clone().requires_grad_()
        vectors = [None if v is None else ordinary(v) for v in vectors]
        s, v = model.score(live, clock, **cond), model.velocity(live, clock.detach(), **cond)
        along, change, found = (v * s).flatten(1).sum(1), _rate(s, clock), []
        for probe in vectors:
            inner = along + _divergence(v, live, probe)
            (slope,) = torch.autograd.grad(inner.sum(), live, create_graph=True)
            found.append(change + slope)
    return found


def _divergence(s: Tensor, x: Tensor, vectors: Vectors) -> Tensor:
    """div s, (B,), with its graph: all entries, or the mean over probes of v . (ds/dx) v."""
    total, flat = x.new_zeros(len(x)), s.flatten(1)
    for i in range(flat.shape[1] if vectors is None else 0):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True, materialize_grads=True)
        total = total + row.flatten(1)[:, i]
    probes = () if vectors is None else vectors.unbind()
    for v in probes:
        (row,) = torch.autograd.grad((s * v).sum(), x, create_graph=True, materialize_grads=True)
        total = total + (row * v).flatten(1).sum(1) / len(probes)
    return total


def _rate(s: Tensor, t: Tensor) -> Tensor:
    """ds/dt, like s, by differentiating w . ds/dt, which is linear in w, by w."""
    w = torch.zeros_like(s, requires_grad=True)
    (along,) = torch.autograd.grad((s * w).sum(), t, create_graph=True, materialize_grads=True)
    (rate,) = torch.autograd.grad(along.sum(), w, create_graph=True, materialize_grads=True)
    return rate
