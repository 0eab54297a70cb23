"""The continuous-time limit of consistency training, on the angle between data and noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.consistency.mask import masked
from scorefield.dtypes import check_batch, onto
from scorefield.flowmap import FlowMap
from scorefield.model import ScoreModel
from scorefield.randomness import generator


def scm_loss(
    fm: FlowMap,
    x0: Tensor,
    *,
    teacher: ScoreModel | None = None,
    warmup: float = 1.0,
    c: float = 0.1,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    mean: float = -1.0,
    std: float = 1.4,
    **cond: Any,
) -> Tensor:
    r"""The continuous-time limit of consistency training on a `FlowMap(kind="trig")` (Lu & Song 2025, eq. 8), one per sample.

    || F - sg(F + g / (|g| + c)) ||^2 / D, g = -cos^2(th) (sigma_d F - dx/dth) - w cos(th) sin(th) (x + sigma_d dF/dth): the
    tangent of the map along the flow, by one forward-mode product.

    Main arguments:
        x0: data, (B, *). teacher: whose velocity is followed; that of the noise that was drawn otherwise.
        warmup: w, from 0 to 1 over the first thousands of steps. c: of the normalisation of the tangent.
        seed: an int or a generator. mean, std: of log(sigma_d tan(th)).

    Other arguments:
        t: times, a float or (B,). noise: eps, like x0.

    Raises:
        ValueError: a map of another kind.
    """
    if fm.kind != "trig":
        raise ValueError(f"scm_loss needs FlowMap(kind='trig'), not {fm.kind!r}")
    check_batch(x0, "x0")
    draws, n, sd, sde = generator(seed), len(x0), fm.sigma_data, fm.sde
    if t is None:
        rho = torch.exp(mean + std * torch.randn(n, generator=draws, dtype=torch.float64, device=draws.device))
        time = sde.inverse_log_snr(-2 * torch.log(rho)).clamp(1e-6, sde.T)
    else:
        time = batch_time(t, x0).expand(n)
    z = (
        torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    th = fm.angle(time)
    cos, sin = expand(torch.cos(th), x0), expand(torch.sin(th), x0)
    y = cos * x0 + sin * sd * z
    if teacher is None:
        rate = cos * sd * z - sin * x0
    else:
        with torch.no_grad():
            data = teacher.denoise(expand(fm.radius(time), x0) * y, time, **cond)
        # dy/dth = cos z - sin x_0 with the flow's own x_0 and z = (y - cos x_0) / sin
        rate = cos * (y - cos * data) / sin - sin * data
    mask, clock = int(torch.randint(2**31, (), generator=draws, device=draws.device)), onto(th, x0).contiguous()

    def network(state: Tensor, angle: Tensor) -> Tensor:
        return masked(mask, x0.device, lambda: fm._call(state / sd, angle, cond))

    factor = torch.cos(th) * torch.sin(th)
    with torch.no_grad():
        still, moved, *_ = torch.func.jvp(network, (y, clock), (expand(factor, y) * rate, onto(factor, y).contiguous()))
        g = -(cos**2) * (sd * still - rate) - warmup * (cos * sin * y + sd * moved)
        length = torch.linalg.vector_norm(g.flatten(1), dim=1).reshape(-1, *[1] * (g.ndim - 1))
        g = g / (length + c)
    out = network(y, clock)
    return torch.square(out - still - g).flatten(1).mean(1)
