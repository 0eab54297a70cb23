"""The sampler of Karras et al. 2022: Heun's rule in the noise-to-data ratio, and noise added before every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True)
class KarrasHeun(Solver):
    """Heun's rule on d(x / alpha) / d rho = eps, rho = sigma / alpha (Karras et al. 2022, Alg. 1); two evaluations a step.

    A step that starts where alpha = 0 or ends where sigma = 0 is of order 1, as the last one is there.
    """

    order: ClassVar[float] = 2
    grid: ClassVar[str] = "karras"
    default_steps: ClassVar[int] = 18

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        alpha_t, alpha_s, kept = sde.alpha(t), sde.alpha(s), sde.sigma(s) / sde.sigma(t)
        # In terms of D, which is finite at both ends: eps = (x - alpha D) / sigma.
        data = field.denoise(x, t)
        y = expand(kept, x) * x + expand(alpha_s - kept * alpha_t, x) * data
        if float(alpha_t) == 0.0 or float(kept) == 0.0:
            return y, None
        e = (x - expand(alpha_t, x) * data) / expand(sde.sigma(t), x)
        e_next = field.noise(y, s)
        moved = 0.5 * (sde.sigma(s) - alpha_s * sde.sigma(t) / alpha_t)
        return expand(alpha_s / alpha_t, x) * x + expand(moved, x) * (e + e_next), None


@dataclass(frozen=True)
class Churn(Solver):
    """Stochastic churn (Karras et al. 2022, Alg. 2): before every step the noise level rises a little, by fresh noise.

    Main arguments:
        amount: rise of sigma / alpha, relative. The paper's S_churn is `amount` times the number of steps, and it never
            goes beyond sqrt(2) - 1 = 0.41.
        inflation: S_noise, standard deviation of the fresh noise, slightly above 1 against oversmoothed networks.
        low, high: S_tmin and S_tmax, the interval of sigma / alpha in which noise is added.
        solver: what then makes the step; a single-step solver of the probability flow.
    """

    amount: float = 0.2
    inflation: float = 1.0
    low: float = 0.0
    high: float = math.inf
    solver: Solver = field(default_factory=KarrasHeun)

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "karras"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise ValueError(f"amount={self.amount}: the rise of the noise level is a number from 0 up")
        if not self.inflation > 0:
            raise ValueError(f"inflation={self.inflation}: the size of the noise is positive")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: give an interval of sigma / alpha")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        alpha, log_snr = float(sde.alpha(t)), float(sde.log_snr(t))
        if alpha > 0 and self.low <= math.exp(-0.5 * log_snr) <= self.high:
            rise = sde.inverse_log_snr(log_snr - 2 * math.log1p(self.amount)).to(t.device)
            raised = torch.where(rise > t, rise, t).clamp_max(sde.T)
            mean, std = sde.transition(x, t, raised)
            x, t = mean + self.inflation * std * noise.like(x), raised
        return self.solver.step(field, x, t, s, None, noise)[0], None
