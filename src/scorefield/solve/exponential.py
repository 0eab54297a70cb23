"""Exponential integrators: exact for the linear part, in log-SNR, so that they work for every (alpha, sigma)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.noise import Noise
from scorefield.sde import expand
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM (Song et al. 2021a, eq. 12) for any Gaussian SDE; one evaluation a step.

    Main arguments:
        eta: 0 is the probability flow to first order; 1 is ancestral sampling.
    """

    eta: float = 0.0

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: eta lies between 0 and 1")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        sigma_s, sigma_t = sde.sigma(s), sde.sigma(t)
        _, v = sde.transition_coefficients(s, t)
        fresh = self.eta**2 * v * torch.square(sigma_s / sigma_t)
        kept = torch.sqrt((sigma_s**2 - fresh).clamp_min(0.0)) / sigma_t
        x = expand(kept, x) * x + expand(sde.alpha(s) - kept * sde.alpha(t), x) * field.denoise(x, t)
        if self.eta > 0:
            x = x + expand(torch.sqrt(fresh), x) * noise.like(x)
        return x, None


@dataclass(frozen=True)
class DPMSolver(Solver):
    """DPM-Solver++ multistep (Lu et al. 2022b, Alg. 2) for any Gaussian SDE; one evaluation a step.

    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^{-h}) D,   h = lambda_s - lambda_t,   lambda = log(alpha / sigma)

    with D extrapolated from the last denoised samples.

    Main arguments:
        order: 1 (which is DDIM) or 2.
    """

    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order}: DPMSolver has orders 1 and 2")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        data = field.denoise(x, t)
        h = float(0.5 * (sde.log_snr(s) - sde.log_snr(t)))
        target = data
        if self.order == 2 and state is not None and math.isfinite(state[1]) and math.isfinite(h):
            previous, h_previous = state
            slope = 0.5 * h / h_previous
            target = (1 + slope) * data - slope * previous
        kept = sde.sigma(s) / sde.sigma(t)
        return expand(kept, x) * x + expand(sde.alpha(s) * -math.expm1(-h), x) * target, (data, h)
