"""The paper's three SDEs, those that forget slowly or not at all, and the straight line of flow matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time
from scorefield.sde import GaussianSDE


class _KnownRates(GaussianSDE):
    """An SDE whose f and g^2 are closed forms, from which the derivatives of alpha and sigma follow faster than by autograd."""

    _ends_exactly: ClassVar[bool] = True

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        f, sigma = self.f(t), self.sigma(t)
        return f * self.alpha(t), f * sigma + self.g2(t) / (2 * sigma)


@dataclass(frozen=True)
class VE(_KnownRates):
    r"""Variance-exploding SDE, the continuous limit of SMLD (Song et al. 2021, eq. 9 and 30).

    dx = sigma_t sqrt(2 log(sigma_max / sigma_min)) dw,   sigma_t = sigma_min (sigma_max / sigma_min)^t,   t in [0, 1]

    Two kernels go with this equation. The paper and its code use sigma(t) = sigma_t, as if the data already carried
    noise of size sigma_min at t = 0 (eq. 31); this is the default. Started from clean data, the equation has
    sigma(t)^2 = sigma_t^2 - sigma_min^2 (`exact=True`). g is the same for both; sigma differs by 1 % of sigma where
    sigma_t = 7 sigma_min, and by 2e-8 of it at t = 1.

    Main arguments:
        sigma_min, sigma_max: noise at t = 0 and t = 1, in units of the data, which is expected in [0, 1]. sigma_max is
            best near the largest distance between two data points (Song & Ermon 2020, Technique 1).
        exact: start from sigma(0) = 0 instead of sigma(0) = sigma_min.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    exact: bool = False

    t_min: ClassVar[float] = 1e-5
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max, not sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        growth = as_time(t) * self._log_ratio
        if self.exact:
            return self.sigma_min * torch.sqrt(torch.expm1(2 * growth))
        return self.sigma_min * torch.exp(growth)

    def f(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def g2(self, t: Time) -> Tensor:
        return 2 * self._log_ratio * self.sigma_min**2 * torch.exp(2 * as_time(t) * self._log_ratio)

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        variance = torch.exp(-as_time(log_snr)) / self.sigma_min**2
        return (torch.log1p(variance) if self.exact else torch.log(variance)) / (2 * self._log_ratio)


@dataclass(frozen=True)
class _LinearBeta(_KnownRates):
    """What VP and sub-VP share: drift -1/2 beta(t) x with beta linear in t, and B(t), the integral of beta."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not (0 <= self.beta_min <= self.beta_max < math.inf and self.beta_max > 0):
            raise ValueError(
                f"{type(self).__name__} needs 0 <= beta_min <= beta_max, not "
                f"beta_min={self.beta_min}, beta_max={self.beta_max}"
            )

    def beta(self, t: Time) -> Tensor:
        """Noise rate per unit of time."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Time) -> Tensor:
        """B(t), the integral of beta from 0 to t."""
        time = as_time(t)
        return time * (self.beta_min + 0.5 * time * (self.beta_max - self.beta_min))

    def _time_of_integrated_beta(self, b: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        # the clamp makes 0 / 0, which is t = 0 with beta_min = 0, a zero
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b)).clamp_min(1e-300)

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-0.5 * self.integrated_beta(t))

    def f(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)


@dataclass(frozen=True)
class VP(_LinearBeta):
    r"""Variance-preserving SDE, the continuous limit of DDPM (Song et al. 2021, eq. 11 and 32).

    dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw,   beta(t) = beta_min + t (beta_max - beta_min),   t in [0, 1]

    Main arguments:
        beta_min, beta_max: noise rates at t = 0 and t = 1, per unit of time. Data is expected in [-1, 1].
    """

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))  # expm1: 1 - exp loses every digit near t = 0

    def g2(self, t: Time) -> Tensor:
        return self.beta(t)

    def log_snr(self, t: Time) -> Tensor:
        return -torch.log(torch.expm1(self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        return self._time_of_integrated_beta(torch.nn.functional.softplus(-as_time(log_snr), threshold=40))


class _SubRatio(_LinearBeta):
    """alpha / sigma = 1 / (2 sinh(B / 2)), whichever way the SDE contracts."""

    def log_snr(self, t: Time) -> Tensor:
        return -2 * torch.log(2 * torch.sinh(0.5 * self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        return self._time_of_integrated_beta(2 * torch.asinh(0.5 * torch.exp(-0.5 * as_time(log_snr))))


@dataclass(frozen=True)
class SubVP(_SubRatio):
    r"""Sub-variance-preserving SDE (Song et al. 2021, eq. 12 and 33).

    dx = -1/2 beta(t) x dt + sqrt(beta(t) (1 - e^{-2 B(t)})) dw,   B(t) = integral of beta,   sigma(t) = 1 - e^{-B(t)}

    Main arguments:
        beta_min, beta_max: noise rates at t = 0 and t = 1, per unit of time. Data is expected in [-1, 1].
    """

    def sigma(self, t: Time) -> Tensor:
        return -torch.expm1(-self.integrated_beta(t))

    def g2(self, t: Time) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self.integrated_beta(t))


@dataclass(frozen=True)
class CVP(_LinearBeta):
    r"""Contractive variance-preserving SDE (Tang & Zhao 2024): VP with its drift turned round.

    dx = 1/2 beta(t) x dt + sqrt(beta(t)) dw,   alpha(t) = e^{B(t)/2},   sigma(t)^2 = e^{B(t)} - 1

    The reverse process contracts, and with it the errors of a score. In x / alpha it is a variance-exploding SDE whose noise
    stays below 1: x_T keeps the data, with the weight of sigma(T) = alpha(T), so the nominal prior is far from p_T and
    `prior="moments"` or `prior="exact"` is needed.

    Main arguments:
        beta_min, beta_max: noise rates at t = 0 and t = 1, per unit of time. Data is expected in [-1, 1].
    """

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(0.5 * self.integrated_beta(t))

    def sigma(self, t: Time) -> Tensor:
        return torch.sqrt(torch.expm1(self.integrated_beta(t)))

    def f(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t)

    def g2(self, t: Time) -> Tensor:
        return self.beta(t)

    def log_snr(self, t: Time) -> Tensor:
        return -torch.log(-torch.expm1(-self.integrated_beta(t)))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        return self._time_of_integrated_beta(-torch.log1p((-torch.exp(-as_time(log_snr))).clamp_min(-1.0)))


@dataclass(frozen=True)
class CSubVP(_SubRatio):
    r"""Contractive sub-variance-preserving SDE (Tang & Zhao 2024): sub-VP with its drift turned round.

    dx = 1/2 beta(t) x dt + sqrt(beta(t) (e^{2 B(t)} - 1)) dw,   alpha(t) = e^{B(t)/2},   sigma(t) = e^{B(t)} - 1

    Its signal-to-noise ratio is that of sub-VP; sigma(1) is 2.3e4, so networks should see x at unit variance
    (`predict="edm"`), and half precision overflows. Solvers in x / alpha (DDIM, DPMSolver, UniPC, Ancestral, ExponentialSDE)
    take the steps of any other SDE; Euler's are too coarse for a drift that grows.

    Main arguments:
        beta_min, beta_max: noise rates at t = 0 and t = 1, per unit of time. Data is expected in [-1, 1].
    """

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(0.5 * self.integrated_beta(t))

    def sigma(self, t: Time) -> Tensor:
        return torch.expm1(self.integrated_beta(t))

    def f(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t)

    def g2(self, t: Time) -> Tensor:
        return self.beta(t) * torch.expm1(2 * self.integrated_beta(t))


@dataclass(frozen=True, init=False, repr=False)
class OU(_KnownRates):
    r"""Ornstein-Uhlenbeck process with constant rates.

    dx = -theta x dt + sigma dw,   alpha(t) = e^{-theta t},   sigma(t)^2 = sigma^2 (1 - e^{-2 theta t}) / (2 theta)

    theta < 0 is the contractive COU of Tang & Zhao 2024, theta = 0 a Brownian motion. A mean mu to which it returns is a
    shift of the data: x - mu is this process. Unless theta T is large, x_T keeps the data: use `prior="moments"` or "exact".

    Main arguments:
        theta: rate of return, per unit of time. sigma: noise, per root of time. T: end time.
    """

    theta: float
    rate: float
    """The argument sigma, a name that belongs to the function of t."""
    T: float  # type: ignore[misc]

    def __init__(self, theta: float = 1.0, sigma: float = 1.0, T: float = 1.0) -> None:
        if not (math.isfinite(theta) and 0 < sigma < math.inf and 0 < T < math.inf):
            raise ValueError(f"OU needs a finite theta, sigma > 0 and T > 0, not theta={theta}, sigma={sigma}, T={T}")
        for name, value in (("theta", theta), ("rate", sigma), ("T", T)):
            object.__setattr__(self, name, float(value))

    def __repr__(self) -> str:
        return f"OU(theta={self.theta}, sigma={self.rate}, T={self.T})"

    @property
    def config(self) -> dict[str, float]:
        """The arguments of the constructor."""
        return {"theta": self.theta, "sigma": self.rate, "T": self.T}

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-self.theta * as_time(t))

    def sigma(self, t: Time) -> Tensor:
        time = as_time(t)
        grown = time if self.theta == 0 else torch.expm1(-2 * self.theta * time) / (-2 * self.theta)
        return self.rate * torch.sqrt(grown)

    def f(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -self.theta)

    def g2(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), self.rate**2)

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        variance = torch.exp(-as_time(log_snr)) / self.rate**2  # of the noise in x / alpha, which is e^{2 theta t} - 1
        if self.theta == 0:
            return variance
        return torch.log1p((2 * self.theta * variance).clamp_min(-1.0)) / (2 * self.theta)


@dataclass(frozen=True)
class VPIDM(_LinearBeta):
    r"""Variance-preserving interpolation from clean data x_0 to a degraded version y (Guo et al. 2023), less its shift.

    dx = (-1/2 beta x + eta (e^{-B/2} y - x)) dt + g dw has the mean e^{-B/2} (e^{-eta t} x_0 + (1 - e^{-eta t}) y). With
    c(t) = `shift(t)`, u = x - c(t) y is an ordinary Gaussian SDE of x_0, which is this one, so that every solver and likelihood
    applies; a network is shown x = u + c(t) y beside y.

    du = -(1/2 beta + eta) u dt + g dw,   alpha(t) = e^{-B/2 - eta t},   sigma(t)^2 = scale^2 (1 - e^{-B}),
    g^2 = scale^2 (beta + 2 eta (1 - e^{-B}))

    Their x_T is drawn around e^{-B(T)/2} y: as x_init, that is N((e^{-B(T)/2} - c(T)) y, sigma(T)^2).

    Main arguments:
        beta_min, beta_max: noise rates at t = 0 and t = 1. eta: rate of the interpolation.
        scale: of the noise, 2^(-1/2) for the real and imaginary parts of complex data whose noise has unit variance.
    """

    beta_max: float = 2.0
    eta: float = 1.5
    scale: float = 1.0

    t_min: ClassVar[float] = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.eta < math.inf and 0 < self.scale < math.inf):
            raise ValueError(f"VPIDM needs eta > 0 and scale > 0, not {self}")

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-0.5 * self.integrated_beta(t) - self.eta * as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return self.scale * torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def shift(self, t: Time) -> Tensor:
        """c(t), the factor on y; the shape of t, float64."""
        return torch.exp(-0.5 * self.integrated_beta(t)) * -torch.expm1(-self.eta * as_time(t))

    def f(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t) - self.eta

    def g2(self, t: Time) -> Tensor:
        return self.scale**2 * (self.beta(t) - 2 * self.eta * torch.expm1(-self.integrated_beta(t)))


@dataclass(frozen=True)
class OUVE(_KnownRates):
    r"""Ornstein-Uhlenbeck drift to a degraded version y with exploding noise (Richter et al. 2023), less its shift.

    dx = theta (y - x) dt + g dw; u = x - c(t) y with c = 1 - e^{-theta t} = `shift(t)` is this SDE of the clean x_0, as in
    `VPIDM`.

    alpha(t) = e^{-theta t},   sigma(t)^2 = scale^2 sigma_min^2 e^{-2 theta t} (e^{2 (theta + l) t} - 1) l / (theta + l),
    g^2 = scale^2 2 l sigma_min^2 e^{2 l t},   l = log(sigma_max / sigma_min)

    Main arguments:
        theta: rate of return to y. sigma_min, sigma_max: noise at both ends. scale: as in `VPIDM`.
    """

    theta: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    scale: float = 1.0

    t_min: ClassVar[float] = 0.03

    def __post_init__(self) -> None:
        if not (
            0 < self.theta < math.inf and 0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.scale < math.inf
        ):
            raise ValueError(f"OUVE needs theta > 0, 0 < sigma_min < sigma_max and scale > 0, not {self}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Tensor:
        return torch.exp(-self.theta * as_time(t))

    def sigma(self, t: Time) -> Tensor:
        time, rate = as_time(t), self.theta + self._log_ratio
        grown = torch.expm1(2 * rate * time) * (self._log_ratio / rate)
        return self.scale * self.sigma_min * torch.exp(-self.theta * time) * torch.sqrt(grown)

    def shift(self, t: Time) -> Tensor:
        """c(t), the factor on y; the shape of t, float64."""
        return -torch.expm1(-self.theta * as_time(t))

    def f(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), -self.theta)

    def g2(self, t: Time) -> Tensor:
        rate = 2 * self._log_ratio
        return (self.scale * self.sigma_min) ** 2 * rate * torch.exp(rate * as_time(t))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        rate = self.theta + self._log_ratio
        variance = torch.exp(-as_time(log_snr)) / (self.scale * self.sigma_min) ** 2 * (rate / self._log_ratio)
        return torch.log1p(variance) / (2 * rate)


@dataclass(frozen=True)
class RectifiedFlow(GaussianSDE):
    r"""The straight line from data to noise: x_t = (1 - t) x_0 + t eps, t in [0, 1] (Liu et al. 2023; Lipman et al. 2023).

    A network trained by flow matching predicts dx/dt = eps - x_0: `predict="velocity"`. The literature's time is 1 - t, and its
    velocity has the other sign. Steps even in log-SNR are wasted near t = 1, where it is -inf: on four modes and 20 steps of
    UniPC the error is 0.005 on the quadratic grid, which is the default here, and 0.031 on that of log-SNR.
    """

    grid: ClassVar[str | None] = "quadratic"

    def alpha(self, t: Time) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Time) -> Tensor:
        return as_time(t)

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(as_time(t))
        return -one, one

    def f(self, t: Time) -> Tensor:
        return -1 / (1 - as_time(t))

    def g2(self, t: Time) -> Tensor:
        time = as_time(t)
        return 2 * time / (1 - time)

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-0.5 * as_time(log_snr))
