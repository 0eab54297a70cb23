"""The ladder of noise levels that SMLD and DDPM train on: its times, labels, tables and loss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, as_time, expand
from scorefield.dtypes import onto
from scorefield.model import ScoreModel
from scorefield.objective import draw
from scorefield.sde import GaussianSDE


@dataclass(frozen=True)
class LadderTimes:
    """The times i / (N - 1), i = 0 .. N - 1, of a ladder of N noise levels (Song et al. 2021, eq. 1 and 3)."""

    num_scales: int = 1000

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        rung = torch.floor(u * self.num_scales).clamp_max(self.num_scales - 1)
        return rung / (self.num_scales - 1) * sde.T, torch.ones_like(u)


@dataclass(frozen=True, repr=False)
class TableSDE(GaussianSDE):
    r"""The variance-preserving SDE through the alphas of a trained ladder: alpha(t_i)^2 = table[i] at t_i = (i + 1) / N.

    alpha = cos(theta(t)), sigma = sin(theta(t)); theta rises from 0 at t = 0 through the table's angles as a monotone cubic
    (Fritsch & Butland 1984). In the angle a clean start and a last alpha of zero are nodes like any other.

    Main arguments:
        table: the products of 1 - beta_j up to i, called alphas_cumprod in code, falling; the last may be 0.

    Raises:
        ValueError: the table does not fall from at most 1 to at least 0.
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.table) < 2 or not all(1 >= a > b >= 0 for a, b in pairwise(self.table)) or self.table[0] == 1:
            raise ValueError("table: expected at least two alphas that fall strictly, all below 1 and none below 0")

    def __repr__(self) -> str:
        return f"TableSDE({len(self.table)} alphas from {self.table[0]:.4g} to {self.table[-1]:.4g})"

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The time of the first node."""
        return 1 / len(self.table)

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """The angle at t = 0, t_0 .. t_{N - 1}, and its slope there, per node."""
        alphas = torch.tensor((1.0, *self.table), dtype=torch.float64, device="cpu")
        theta = torch.atan2(torch.sqrt(1 - alphas), torch.sqrt(alphas))
        rise = theta.diff()
        inner = 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1])
        return theta, torch.cat([rise[:1], inner, rise[-1:]])

    def _cubic(self, i: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The angle a share s of the way from node i to the next, and its derivative in s."""
        theta, slope = self._nodes
        rise, a, b = theta[i + 1] - theta[i], slope[i], slope[i + 1]
        second, third = 3 * rise - 2 * a - b, a + b - 2 * rise
        value = theta[i] + s * (a + s * (second + s * third))
        return torch.where(s == 1, theta[i + 1], value), a + s * (2 * second + 3 * s * third)

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """theta(t) and its derivative."""
        count = len(self.table)
        u = (t * count).clamp(0, count)
        i = u.floor().long().clamp_max(count - 1)
        value, rate = self._cubic(i, u - i)
        return value, rate * count

    def alpha(self, t: Time) -> Tensor:
        return torch.cos(self._angle(as_time(t))[0])

    def sigma(self, t: Time) -> Tensor:
        return torch.sin(self._angle(as_time(t))[0])

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        theta, rate = self._angle(as_time(t))
        return -torch.sin(theta) * rate, torch.cos(theta) * rate

    def f(self, t: Time) -> Tensor:
        alpha, (rate, _) = self.alpha(t), self.derivatives(t)
        return torch.where(alpha == 0, -torch.inf, rate / alpha)

    def g2(self, t: Time) -> Tensor:
        return -2 * self.f(t)  # alpha^2 + sigma^2 = 1

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        theta = self._nodes[0]
        target = torch.atan(torch.exp(-0.5 * as_time(log_snr))).clamp(theta[0], theta[-1])
        i = (torch.searchsorted(theta, target.contiguous(), right=True) - 1).clamp(0, len(self.table) - 1)
        s = (target - theta[i]) / (theta[i + 1] - theta[i])
        low, high = torch.zeros_like(s), torch.ones_like(s)
        for _ in range(12):  # Newton, kept inside by bisection; cells are nearly straight
            value, rate = self._cubic(i, s)
            low, high = torch.where(value < target, s, low), torch.where(value > target, s, high)
            step = s - (value - target) / rate
            s = torch.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        return (i + s) / len(self.table)


@dataclass(frozen=True)
class TableLabels:
    """The clock of a network trained on labels 0 .. count - 1 of a `TableSDE`: count t - 1, fractional between nodes.

    Main arguments:
        unit: factor on the label that the network receives.
    """

    count: int = 1000
    unit: float = 1.0

    def __call__(self, t: Tensor) -> Tensor:
        return self.unit * (t * self.count - 1).clamp(0, self.count - 1)


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

    @property
    def exact_time(self) -> bool:
        """Whether the network takes float32 labels where its weights are in half precision."""
        return getattr(self.net, "exact_time", False)

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
        beta = torch.linspace(self.beta_min / n, self.beta_max / n, n, dtype=torch.float64, device="cpu")
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
