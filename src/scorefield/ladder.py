"""Networks trained on a ladder of noise levels, read at any time: the labels of SMLD and the tables of DDPM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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
        index = torch.floor(label.double() + 1e-4).long().clamp(0, self.num_scales - 1)
        std = self.table().to(y.device)[index]
        return -y / std.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))

    def table(self) -> Tensor:
        """The noise level of every label, (num_scales,) float64."""
        n = self.num_scales
        beta = torch.linspace(self.beta_min / n, self.beta_max / n, n, dtype=torch.float64)
        return torch.sqrt(-torch.expm1(torch.log1p(-beta).cumsum(0)))
