"""How fast a jump process runs: its integrated rate, a function of time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, bisect
from scorefield.inputs import positive


class Schedule(ABC):
    r"""The integrated rate B(t) of a jump process, t in [0, T], with B(0) = 0.

    A subclass gives `total`. alpha = exp(-B) is the chance that a position which jumps at unit rate has not jumped yet, the
    counterpart of alpha(t) of a Gaussian SDE. What is derived here is overridden only for a more accurate closed form.

    Attributes:
        T: end time.
    """

    T: float = 1.0

    @abstractmethod
    def total(self, t: Time) -> Tensor:
        """B(t), dimensionless; the shape of t, float64. It may be infinite at T."""

    def rate(self, t: Time) -> Tensor:
        """beta(t) = B'(t), per unit of time."""
        time = as_time(t)
        slope: Tensor = torch.func.jvp(lambda u: self.total(u) + 0 * u, (time,), (torch.ones_like(time),))[1]
        return slope

    def alpha(self, t: Time) -> Tensor:
        """exp(-B(t))."""
        return torch.exp(-self.total(t))

    def jumped(self, t: Time) -> Tensor:
        """1 - alpha(t), with all its digits near t = 0."""
        return -torch.expm1(-self.total(t))

    def hazard(self, t: Time) -> Tensor:
        """-alpha' / (1 - alpha): the rate at which a masked position is unmasked in reverse, per unit of time."""
        return self.rate(t) * self.alpha(t) / self.jumped(t)

    def time_of(self, jumped: Time) -> Tensor:
        """The time at which `jumped` takes the given value, by bisection; the shape of the argument."""
        return bisect(self.jumped, as_time(jumped), self.T)


@dataclass(frozen=True)
class Constant(Schedule):
    """B(t) = speed t: the transition matrix is exp(speed t R)."""

    speed: float = 1.0
    T: float = 8.0

    def __post_init__(self) -> None:
        positive(speed=self.speed, T=self.T)

    def total(self, t: Time) -> Tensor:
        return self.speed * as_time(t)

    def rate(self, t: Time) -> Tensor:
        return torch.full_like(as_time(t), self.speed)


@dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha(t) = 1 - (1 - eps) t, the schedule of masked diffusion (Sahoo et al. 2024; Lou et al. 2024, with eps = 1e-3)."""

    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps={self.eps} is impossible; expected a number from 0 up to 1")

    def total(self, t: Time) -> Tensor:
        return -torch.log1p(-(1 - self.eps) * as_time(t))

    def rate(self, t: Time) -> Tensor:
        return (1 - self.eps) / self.alpha(t)

    def alpha(self, t: Time) -> Tensor:
        return 1 - (1 - self.eps) * as_time(t)

    def jumped(self, t: Time) -> Tensor:
        return (1 - self.eps) * as_time(t)

    def hazard(self, t: Time) -> Tensor:
        return 1 / as_time(t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha(t) = cos(pi t / 2)."""

    def total(self, t: Time) -> Tensor:
        return -torch.log(self.alpha(t))

    def rate(self, t: Time) -> Tensor:
        return 0.5 * math.pi * torch.tan(0.5 * math.pi * as_time(t))

    def alpha(self, t: Time) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - as_time(t)))  # exactly 0 at t = 1, unlike the cosine

    def jumped(self, t: Time) -> Tensor:
        return 2 * torch.square(torch.sin(0.25 * math.pi * as_time(t)))

    def hazard(self, t: Time) -> Tensor:
        return 0.5 * math.pi / torch.tan(0.25 * math.pi * as_time(t))


@dataclass(frozen=True)
class Geometric(Schedule):
    """B(t) = low ((high / low)^t - 1): a rate that grows geometrically (Campbell et al. 2022, App. E; Lou et al. 2024)."""

    low: float = 1e-4
    high: float = 20.0

    def __post_init__(self) -> None:
        positive(low=self.low, high=self.high)
        if self.high <= self.low:
            raise ValueError(f"high={self.high} is impossible; expected a number above low={self.low}")

    def total(self, t: Time) -> Tensor:
        return self.low * torch.expm1(self._growth * as_time(t))

    def rate(self, t: Time) -> Tensor:
        return self.low * self._growth * torch.exp(self._growth * as_time(t))

    @property
    def _growth(self) -> float:
        return math.log(self.high / self.low)
