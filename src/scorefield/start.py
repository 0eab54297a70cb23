"""Where samples start when it is known what they are to restore."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import check_real
from scorefield.inputs import as_tensor
from scorefield.model import ScoreModel
from scorefield.randomness import NoiseFn, Seed, source
from scorefield.sde import GaussianSDE


def near(
    y: Tensor,
    sde: GaussianSDE,
    *,
    seed: Seed = None,
    noise: NoiseFn | None = None,
    model: ScoreModel | None = None,
    **cond: Any,
) -> Tensor:
    r"""States at T for `sample(..., x_init=)`, drawn as if y were the clean data: alpha(T) y + sigma(T) z, like y.

    So start VPIDM (Guo et al. 2023) and SGMSE+ (Richter et al. 2023), whose x_T = u_T + c(T) y is drawn around
    (alpha(T) + c(T)) y. It is not quite p_T, which has E[x_0 | y] in the place of y. Where the posterior has variance P, and
    with k = a^2 P / (a^2 P + sigma^2), a and sigma at T, samples keep the share k of y - E[x_0 | y] through the reverse SDE
    and a (P / (a^2 P + sigma^2))^(1/2) through the flow. A model mends that for one evaluation, without a corrector:
    D = denoise(u_T, T), and u_T is drawn again, around alpha(T) D, which multiplies the offset by k.

    Main arguments:
        y: what is to be restored, (B, *). sde: that of the model, such as `VPIDM` or `OUVE`.
        seed: as in `sample`. model: the model to start again with; it is given y=.

    Other arguments:
        noise: callable that returns the next standard-normal tensor like y, in place of a seed.
        cond: passed to the network, beside y.

    Raises:
        ValueError: y is not of real numbers.
    """
    y = as_tensor(y, "y")
    check_real(y, "y")
    draws = source(seed, len(y), noise)
    t = torch.tensor(float(sde.T), dtype=torch.float64, device="cpu")
    a, sigma = expand(sde.alpha(t), y), expand(sde.sigma(t), y)
    state = a * y + sigma * draws.like(y)
    if model is None:
        return state
    with torch.no_grad():
        clean = model.denoise(state, t, y=y, **cond)
    return a * clean + sigma * draws.like(y)
