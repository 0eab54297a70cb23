"""Solvers of the reverse SDE: the paper's predictors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.diffusion import checked_diffusion, noise_shape, spread_by
from scorefield.randomness import Noise
from scorefield.sde import SDE, GaussianSDE
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama on the reverse SDE dx = (f - div G G^T - G G^T score) dt + G dw (Song et al. 2021, eq. 6), for any SDE.

    Where f is infinite, as at T with alpha(T) = 0, the step is that of `ReverseDiffusion`.
    """

    order: ClassVar[float] = 1
    gaussian: ClassVar[bool] = False

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(field.sde, GaussianSDE) and not bool(torch.isfinite(field.sde.f(t))):
            return ReverseDiffusion().kernel(field, x, t, s)
        moved, g = self._moved(field, x, t, s)
        if not isinstance(g, Tensor):
            return moved, expand(torch.tensor(g, dtype=torch.float64, device="cpu"), x)
        if g.ndim > 1 and g.shape != x.shape:
            raise ValueError(f"{type(field.sde).__name__}.diffusion is a matrix: its steps have no single std")
        return moved, g if g.shape == x.shape else expand(g, x)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        if isinstance(field.sde, GaussianSDE) and not bool(torch.isfinite(field.sde.f(t))):
            return ReverseDiffusion().step(field, x, t, s, state, noise)
        moved, g = self._moved(field, x, t, s)
        return moved + spread_by(g, noise.normal(noise_shape(g, x), x.dtype, x.device), x), None

    def _moved(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, float | Tensor]:
        """The mean, and the diffusion times the root of the step."""
        sde, h = field.sde, t - s
        moved = x - self._shortened(expand(h, x) * sde.reverse_drift(x, t, field.score(x, t)))
        g = checked_diffusion(sde, x, t)
        if isinstance(g, Tensor) and g.ndim < 2 and g.shape != x.shape:
            g = g * torch.sqrt(h)  # float64 on the CPU still
        else:
            g = g * float(torch.sqrt(h))
        return moved, g

    def _shortened(self, move: Tensor) -> Tensor:
        """What the drift does in a step, like x."""
        return move


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    """The forward transition from s to t, reversed step by step (Song et al. 2021, eq. 46).

    x_s = (2 - a) x_t + v score + sqrt(v) z with p(x_t | x_s) = N(a x_s, v I): for VE v = sigma_t^2 - sigma_s^2, for VP
    a = sqrt(1 - beta_i) and v = beta_i, with the exact beta_i of the step. Between walls (`ReflectedVE`) a step of VE is
    folded back.
    """

    order: ClassVar[float] = 1

    def check_process(self, sde: SDE) -> None:
        if not hasattr(sde, "transition_coefficients"):
            super().check_process(sde)

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        a, v = field.sde.transition_coefficients(s, t)
        return expand(2 - a, x) * x + expand(v, x) * field.score(x, t), expand(torch.sqrt(v), x)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        mean, std = self.kernel(field, x, t, s)
        return mean + std * noise.like(x), None


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """Reverse diffusion of the probability flow: half the score and no noise (Song et al. 2021, eq. 42 to 44).

    It needs alpha_t near alpha_s at every step. With alpha(T) = 0 the first step is wrong on any grid; use `DDIM`.
    """

    order: ClassVar[float] = 1

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        a, v = field.sde.transition_coefficients(s, t)
        return expand(2 - a, x) * x + expand(0.5 * v, x) * field.score(x, t), None


@dataclass(frozen=True)
class Ancestral(Solver):
    """Ancestral sampling: p(x_s | x_t, x_0) with the denoised estimate for x_0, for any Gaussian SDE.

    The mean is (x_t + v score) / a with p(x_t | x_s) = N(a x_s, v I), that of Song et al. 2021, eq. 4 and 47.

    Main arguments:
        variance: "posterior", v sigma_s^2 / sigma_t^2, that of eq. 47 (VE), exact for a single data point; or
            "transition", v, that of eq. 4 (DDPM), exact for data of unit variance under VP.
    """

    variance: Literal["posterior", "transition"] = "posterior"

    order: ClassVar[float] = 1

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "transition"):
            raise ValueError(f"variance={self.variance!r} is unknown; choose posterior or transition")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        mean, std = self.kernel(field, x, t, s)
        return mean + std * noise.like(x), None

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        sde = field.sde
        a, v = sde.transition_coefficients(s, t)
        shrink = torch.square(sde.sigma(s) / sde.sigma(t))
        # In terms of the denoised sample, which stays finite where a = 0.
        mean = expand(a * shrink, x) * x + expand(sde.alpha(s) * v / sde.sigma(t) ** 2, x) * field.denoise(x, t)
        spread = v * shrink if self.variance == "posterior" else v
        return mean, expand(torch.sqrt(spread), x)
