"""A mixture whose denoiser is corrected by a small ensemble of networks."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.analytic import GaussianMixture
from scorefield.coefficients import Time, batch_time, expand
from scorefield.model import Guided, ScoreModel
from scorefield.objective import dsm_loss
from scorefield.times import LogSNRTimes

_FREQUENCIES = (1.0, 2.0, 4.0)
_JUDGED_ROWS = 1024
_EVERY = 100
"""Steps between two looks at the held-out rows."""


class Ensemble(nn.Module):
    """K perceptrons side by side: net(x, level) -> like x, their mean; while `apart`, row block k goes through network k.

    x is (B, D), or (K B, D) in blocks; level (B,) is the log of the noise. A fresh one returns 0.
    """

    def __init__(self, members: int, features: int, width: int, depth: int, draws: torch.Generator) -> None:
        super().__init__()
        self.members, self.apart = members, False
        reads = 1 + 2 * len(_FREQUENCIES)

        def weight(inputs: int, outputs: int) -> nn.Parameter:
            return nn.Parameter(
                torch.randn(members, inputs, outputs, generator=draws, device=draws.device) * inputs**-0.5
            )

        self.entrance = weight(features + reads, width)
        self.level = nn.ParameterList(weight(reads, 2 * width) for _ in range(depth))
        self.inner = nn.ParameterList(weight(width, width) for _ in range(depth))
        self.outer = nn.ParameterList(weight(width, width) for _ in range(depth))
        self.biases = nn.ParameterList(
            nn.Parameter(torch.zeros(members, 1, width, device="cpu")) for _ in range(2 * depth + 1)
        )
        self.exit = nn.Parameter(torch.zeros(members, width, features, device="cpu"))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        angles = [level * f for f in _FREQUENCIES]
        read = torch.stack([level, *[torch.sin(a) for a in angles], *[torch.cos(a) for a in angles]], 1)
        x, read = self._blocks(x), self._blocks(read)
        h = torch.bmm(torch.cat([x, read], 2), self.entrance) + self.biases[-1]
        for i, (level_weight, inner, outer) in enumerate(zip(self.level, self.inner, self.outer, strict=True)):
            scale, shift = torch.bmm(read, level_weight).chunk(2, 2)
            a = torch.bmm(F.silu(h), inner) + self.biases[2 * i]
            h = h + torch.bmm(F.silu(a * (1 + scale) + shift), outer) + self.biases[2 * i + 1]
        y = torch.bmm(F.silu(h), self.exit)
        return y.flatten(0, 1) if self.apart else y.mean(0)

    def _blocks(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.members, -1, rows.shape[1]) if self.apart else rows.expand(self.members, *rows.shape)


class Corrected(Guided):
    """E[x_0 | x_t] = that of a mixture of about unit variance + sigma / r net(x_t / r, log(sigma / alpha)).

    r^2 = alpha^2 + sigma^2, as in the preconditioning of Karras et al. 2022 (eq. 7) for data of unit variance. Where the
    network says nothing it is the mixture, exactly.
    """

    def __init__(self, mixture: GaussianMixture, correction: nn.Module) -> None:
        super().__init__(mixture)
        self.correction = correction

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        time = batch_time(t, x)
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        r = torch.sqrt(alpha**2 + sigma**2)
        level = torch.log(sigma / alpha).to(device=x.device, dtype=self.dtype).expand(len(x))
        added = self.correction((expand(1 / r, x) * x).to(self.dtype), level).to(x.dtype)
        data: Tensor = self.base.denoise(x, t) + expand(sigma / r, x) * added
        return data


@dataclass(frozen=True)
class Plan:
    """How a correction is trained; see `ScoreDensity`."""

    width: int
    depth: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seconds: float


@dataclass(frozen=True)
class Correction:
    """The model, the mixture itself where nothing helped; held-out nats that each member gains; steps made."""

    model: ScoreModel
    gains: Tensor
    steps: int


def correct(
    mixture: GaussianMixture,
    z: Tensor,
    folds: Tensor,
    plan: Plan,
    draws: torch.Generator,
    tick: Callable[[float], None],
) -> Correction:
    """The mixture corrected to the rows z (N, D): member k learns from all rows but folds[k], on which it is judged.

    The loss is the likelihood's own, noise errors at times uniform in log-SNR (Song et al. 2021b, Thm. 3; Kingma et al.
    2021, eq. 17): half of it times the range of log-SNR is the bound in nats. A member is kept as its running average
    was when its fold's loss was least. The rate falls from the middle on, and training ends early where the second half
    brings no gain.
    """
    begin = time.monotonic()
    net = Ensemble(len(folds), z.shape[1], plan.width, plan.depth, draws)
    average, best = (copy.deepcopy(net).requires_grad_(False) for _ in range(2))
    every = torch.arange(len(z), device="cpu")
    others = torch.stack([every[~torch.isin(every, fold)] for fold in folds])
    judged = z[folds].repeat_interleave(-(-_JUDGED_ROWS // folds.shape[1]), 1)
    fixed = int(torch.randint(2**31, (), generator=draws, device=draws.device))
    optimizer = torch.optim.AdamW(net.parameters(), plan.learning_rate, (0.9, 0.99), weight_decay=plan.weight_decay)
    with torch.no_grad():
        least = first = _losses(mixture, average, judged, fixed)
    found, step, done = 0, 0, 0.0
    for step in range(1, plan.steps + 1):
        done = max(
            step / plan.steps, (time.monotonic() - begin) / plan.seconds
        )  # so that the rate falls by the clock too
        pick = torch.randint(others.shape[1], (len(folds), plan.batch_size), generator=draws, device=draws.device)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1, step / 100, 2.02 - 2 * done)
        optimizer.zero_grad()
        _losses(mixture, net, z[others.gather(1, pick)], draws).sum().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*net.parameters()], 1 - min(0.998, step / (step + 10)))
            if step % _EVERY and done < 1:
                continue
            now = _losses(mixture, average, judged, fixed)
            better = now < least
            least, found = torch.where(better, now, least), step if bool(better.any()) else found
            _keep(best, average, better)
        tick(done)
        if done >= 1 or (done > 0.5 and step - found > 0.4 * step):
            break
    high, low = (float(mixture.sde.log_snr(t)) for t in (0.0, mixture.sde.T))
    gains = 0.5 * (high - low) * (first - least).double()
    return Correction(Corrected(mixture, best) if found else mixture, gains, step)


def _keep(best: Ensemble, average: Ensemble, better: Tensor) -> None:
    """Take over the members that are better (K,) than before."""
    for kept, new in zip(best.parameters(), average.parameters(), strict=True):
        kept[better] = new[better]


def _losses(mixture: GaussianMixture, net: Ensemble, rows: Tensor, seed: int | torch.Generator) -> Tensor:
    """Mean loss of each member on its own rows (K, B, D), (K,)."""
    net.apart = True
    losses = dsm_loss(Corrected(mixture, net), rows.flatten(0, 1), "noise", seed=seed, times=LogSNRTimes(0.0))
    net.apart = False
    return losses.reshape(len(rows), -1).mean(1)
