"""The ladder of noise levels that SMLD and DDPM train on: its times, labels, tables and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.dtypes import onto
from scorefield.model import ScoreModel
from scorefield.objective import draw
from scorefield.sde import GaussianSDE, Time, expand


@dataclass(frozen=True)
class LadderTimes:
    """The times i / (N - 1), i = 0 .. N - 1, of a ladder of N noise levels (Song et al. 2021, eq. 1 and 3)."""

    num_scales: int = 1000

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        rung = torch.floor(u * self.num_scales).clamp_max(self.num_scales - 1)
        return rung / (self.num_scales - 1) * sde.T, torch.ones_like(u)


@dataclass(frozen=True)
class SMLDLabels:
    """The clock of a score network trained with SMLD: the nearest label of time t, 0 for the largest noise (t = 1).

    label = round((1 - t) (num_scales - 1)), of the shape of t; give it to ScoreModel as `clock`.
    """

    num_scales: int = 1000

    def __call__(self, t: Tensor) -> Tensor:
        return torch.round((1 - t.float()) * (self.num_scales - 1))  # float32 decides ties as the official code does


class DDPMScore(nn.Module):
    """The score of a noise predictor trained with DDPM, at any time; for ScoreModel with predict="score".

    score(x, t) = -net(x, label) / table[label],   label = (num_scales - 1) t,   table[i]^2 = 1 - prod_{j <= i} (1 - beta_j)

    The table is not sigma(t) of the VP SDE, from which it differs where the ladder is coarse: by 2.5 % at t = 0.01.

    Main arguments:
        net: called as net(x, label, **cond) with fractional labels; in DDPM's training they are whole.
        beta_min, beta_max, num_scales: beta_j runs linearly from beta_min / num_scales to beta_max / num_scales.
    """

    def __init__(self, net: nn.Module, beta_min: float = 0.1, beta_max: float = 20.0, num_scales: int = 1000) -> None:
        super().__init__()
        self.net = net
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.num_scales = num_scales

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in ("net", "beta_min", "beta_max", "num_scales")}

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """x: (B, *); t: time (B,) in [0, 1]. Returns the score, like x."""
        label = t * (self.num_scales - 1)
        y: Tensor = self.net(x, label, **cond)
        # A whole label whose time went through float32 is low by up to 3e-5, and must not fall to the one before.
        exact = label if label.dtype == torch.float64 else label.float()
        index = torch.floor(exact + 1e-4).long().clamp(0, self.num_scales - 1)
        std = onto(self.table(), y)[index]
        return -y / std.reshape(-1, *[1] * (y.ndim - 1))

    def table(self) -> Tensor:
        """The noise level of every label, (num_scales,) float64."""
        n = self.num_scales
        beta = torch.linspace(self.beta_min / n, self.beta_max / n, n, dtype=torch.float64)
        return torch.sqrt(-torch.expm1(torch.log1p(-beta).cumsum(0)))


def ddpm_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    stratify: bool = True,
    **cond: Any,
) -> Tensor:
    """The discrete objective of DDPM (Song et al. 2021, eq. 3; Ho et al. 2020, eq. 14), one value per sample.

    || net(x, i) - eps ||^2,   x = a_i x_0 + (1 - a_i^2)^(1/2) eps,   a_i^2 = prod_{j <= i} (1 - beta_j)

    The discrete objective of SMLD (eq. 1) needs no function of its own: it is `dsm_loss` with `times=LadderTimes(N)`.

    Main arguments:
        model: one whose network is `DDPMScore`, which holds the ladder. x0: as in `dsm_loss`.

    Other arguments:
        t: i / (N - 1), a float or (B,), in place of drawn ones. seed, noise, stratify, cond: as in `dsm_loss`.

    Raises:
        ValueError: the network has no ladder.
    """
    if not isinstance(model.net, DDPMScore):
        raise ValueError(f"ddpm_loss needs a model whose network is DDPMScore, not {type(model.net).__name__}")
    count = model.net.num_scales
    time, _, noise = draw(model.sde, x0, LadderTimes(count), seed, t, noise, stratify)
    std = model.net.table()[torch.round(time * (count - 1) / model.sde.T).long()]
    x = expand(torch.sqrt(1 - std**2), x0) * x0 + expand(std, x0) * noise
    score = model.score(x, time, **cond)
    return torch.square(expand(std, x0) * score + noise).flatten(1).sum(1)
