"""How far a score is from solving the Fokker-Planck equation, as a figure and as a penalty (Lai et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.differentiate import differentiation
from scorefield.model import ScoreModel
from scorefield.nn.potential import Potential
from scorefield.randomness import generator
from scorefield.sde import Time, batch_time, expand
from scorefield.times import Proposal, UniformTimes, low_discrepancy


def fokker_planck_residual(model: ScoreModel, x: Tensor, t: Time, *, grad: bool = False) -> Tensor:
    r"""What is left over when a model is put into the equation that the score of a `GaussianSDE` solves.

    For a network that is the gradient of a potential phi (`nn.Potential`), R = d phi/dt + div f + f . grad phi
    - 1/2 g^2 (Laplacian phi + |grad phi|^2), (B,): the potential is known up to a function of t, so only its spread over x at
    one time says something. For any other model its gradient, r = ds/dt - grad[1/2 g^2 (div s + |s|^2) - f . s], like x
    (Lai et al. 2023, eq. 10).

    Main arguments:
        x: (B, *). t: times above 0, a float or (B,). grad: keep the graph, for a penalty.

    Raises:
        ValueError: a time at which the rates are infinite.
    """
    time = batch_time(t, x).expand(len(x))
    f, g2 = model.sde.f(time), model.sde.g2(time)
    if not bool(torch.isfinite(f).all() and torch.isfinite(g2).all()):
        raise ValueError(f"t={t}: the rates of {type(model.sde).__name__} are infinite there; stay inside (0, T)")
    net = model.net
    with differentiation():
        live, clock = x.detach().clone().requires_grad_(), time.clone().requires_grad_()
        if isinstance(net, Potential) and model.predict == "score":
            residual = _of_potential(net, live, clock, f, g2, model)
        else:
            residual = _of_score(model, live, clock, f, g2)
    return residual if grad else residual.detach()


def fokker_planck_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    times: Proposal | None = None,
) -> Tensor:
    r"""Penalty (sigma^2 R)^2 per unit of log-SNR at x_t drawn from the kernel, one value per sample, (B,).

    Added to `dsm_loss` it closes the gap between samples of the flow and of the SDE; the flow's come nearer to the data, those
    of the SDE do not (Deveney et al. 2023). The residual is taken relative to the rate g^2 / sigma^2 of the process, so that it
    is of order one at all times.

    Main arguments:
        x0: data in the model's range, (B, *). seed: an int or a generator for times and noise.

    Other arguments:
        t: times, a float or (B,). times: proposal; uniform in [1e-3, T] by default.
    """
    draws = generator(seed)
    time = batch_time(t, x0).expand(len(x0)) if t is not None else None
    if time is None:
        time, _ = (times or UniformTimes(1e-3))(low_discrepancy(len(x0), draws), model.sde)
    x = model.sde.perturb(x0, time, torch.randn(x0.shape, generator=draws, dtype=x0.dtype).to(x0.device))
    residual = fokker_planck_residual(model, x, time, grad=True)
    scale = model.sde.sigma(time) ** 2 / model.sde.g2(time)
    if residual.ndim == 1:
        return torch.square(scale.to(residual) * residual)
    scale = scale * model.sde.sigma(time)  # r is a gradient: one length more
    return torch.square(expand(scale, residual) * residual).flatten(1).sum(1)


def _of_potential(net: Potential, x: Tensor, t: Tensor, f: Tensor, g2: Tensor, model: ScoreModel) -> Tensor:
    phi = net.value(x, model._read_clock(t, model.sde.sigma(t)).to(x))
    (slope,) = torch.autograd.grad(phi.sum(), x, create_graph=True)
    (rate,) = torch.autograd.grad(phi.sum(), t, create_graph=True)
    laplacian, flat, d = x.new_zeros(len(x)), slope.flatten(1), x[0].numel()
    for i in range(d):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, create_graph=True)
        laplacian = laplacian + row.flatten(1)[:, i]
    drift = f.to(x) * (d + (x * slope).flatten(1).sum(1))
    return rate.to(x) + drift - 0.5 * g2.to(x) * (laplacian + torch.square(slope).flatten(1).sum(1))


def _of_score(model: ScoreModel, x: Tensor, t: Tensor, f: Tensor, g2: Tensor) -> Tensor:
    s = model.score(x, t)
    flat, d = s.flatten(1), x[0].numel()
    divergence, rates = x.new_zeros(len(x)), []
    for i in range(d):
        row, rate = torch.autograd.grad(flat[:, i].sum(), (x, t), create_graph=True, materialize_grads=True)
        divergence = divergence + row.flatten(1)[:, i]
        rates.append(rate)
    change = torch.stack(rates, 1).to(x).reshape(x.shape)
    inner = 0.5 * g2.to(x) * (divergence + torch.square(flat).sum(1)) - f.to(x) * (x * s).flatten(1).sum(1)
    (slope,) = torch.autograd.grad(inner.sum(), x, create_graph=True)
    return change - slope
