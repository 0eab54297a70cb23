"""Jump processes whose matrices have no structure to use: rates between near states, and any rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.discrete.process import JumpProcess, at_least_two
from scorefield.discrete.schedule import Constant, Schedule
from scorefield.dtypes import exact

MIXED = 8.0
"""B(T) times the spectral gap of a rate matrix by default: what is left of the data at T is a factor exp(-8)."""


class Dense(JumpProcess):
    """A process whose matrices have no structure to use."""

    @cached_property
    def stationary(self) -> Tensor:  # type: ignore[override]
        rows = torch.cat([self.generator.mT, torch.ones(1, self.S, dtype=torch.float64, device="cpu")])
        right = torch.zeros(self.S + 1, 1, dtype=torch.float64, device="cpu")
        right[-1] = 1
        law: Tensor = torch.linalg.lstsq(rows, right, driver="gelsd").solution.squeeze(1).clamp_min(0)
        return law / law.sum()

    @cached_property
    def gap(self) -> float:  # type: ignore[override]
        """The decay rate of the slowest mode: the smallest real part of -R's eigenvalues but for the zero one."""
        return float(torch.linalg.eigvals(-self.generator).real.sort().values[1])

    def matrix(self, total: Tensor) -> Tensor:
        # Products of non-negative matrices lose no digits: small entries, by which others are divided, stay accurate.
        if not bool(torch.isfinite(total).all()):
            raise ValueError(f"the integrated rate B(t) is {float(total.max())}; give times in [0, {self.T:g}]")
        fastest = float(-self.generator.diagonal().min())
        eye = torch.eye(self.S, dtype=torch.float64, device="cpu")
        jump = eye + self.generator / fastest
        halvings = max(0, math.ceil(math.log2(max(float(total.max()) * fastest, 1e-300))))
        z = (total * fastest / 2**halvings)[..., None, None]
        term = torch.exp(-z) * eye
        result = term
        for n in range(1, TERMS):
            term = (z / n) * (term @ jump)
            result = result + term
        for _ in range(halvings):
            result = result @ result
        return result

    def progress(self, t: Time) -> tuple[Tensor, Tensor]:
        # Between the first jumps and the slowest mode lie all scales of B alike.
        fastest = float(-self.generator.diagonal().min())
        total = self.schedule.total(t)
        return torch.log1p(fastest * total), fastest * self.schedule.rate(t) / (1 + fastest * total)

    def _settle(self) -> None:
        """The default schedule, or a check of the given one."""
        if self.schedule is None:
            object.__setattr__(self, "schedule", Constant(T=MIXED / self.gap))
        if not math.isfinite(float(self.schedule.total(self.schedule.T))):
            raise ValueError(
                f"schedule={self.schedule} has an infinite B(T); this process needs a finite one, as Constant"
            )


TERMS = 24
"""Terms of a series in numbers up to 1: the rest is below 1 / 24! = 2e-24."""


@dataclass(frozen=True)
class RateMatrix(Dense):
    """Any rate matrix with one stationary law.

    Main arguments:
        R: (S, S): a tensor, an array or nested sequences; rates from row to column, rows that sum to zero.
        schedule: B(t); by default unit rate up to a T at which exp(-8) of the slowest mode is left.

    Raises:
        ValueError: R is not square, has a negative rate, rows that do not sum to zero, or several stationary laws; or a
            schedule whose B(T) is infinite.
    """

    R: Any
    schedule: Schedule = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "R", _checked(exact(self.R)))
        self._settle()

    @property
    def S(self) -> int:
        return len(self.R)

    @cached_property
    def generator(self) -> Tensor:  # type: ignore[override]
        return torch.tensor(self.R, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Ordinal(Dense):
    """States with an order: jumps to near ones, R[i, j] = w(|i - j|) min(1, pi_j / pi_i), which leave pi as it is.

    Main arguments:
        states: S.
        spread: standard deviation, in states, of the discretised Gaussian pi in the middle; None for a uniform pi.
        reach: w(k) = exp(-((k - 1) / reach)^2); 0 allows jumps by one alone (birth and death). Some far jumps mix many
            states sooner (Campbell et al. 2022, App. E).
        schedule: as in `RateMatrix`.
    """

    states: int
    spread: float | None = None
    reach: float = 0.0
    schedule: Schedule = None  # type: ignore[assignment]

    ordinal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_two(self.states)
        if self.spread is not None and not 0 < self.spread < math.inf:
            raise ValueError(f"spread={self.spread} is impossible; expected a positive number of states, or None")
        if not 0 <= self.reach < math.inf:
            raise ValueError(f"reach={self.reach} is impossible; expected 0 or a positive number of states")
        self._settle()

    @property
    def S(self) -> int:
        return self.states

    @cached_property
    def generator(self) -> Tensor:  # type: ignore[override]
        place = torch.arange(self.states, dtype=torch.float64, device="cpu")
        log_law = torch.zeros_like(place)
        if self.spread is not None:
            log_law = -0.5 * torch.square((place - 0.5 * (self.states - 1)) / self.spread)
        distance = (place[:, None] - place).abs()
        near = (distance == 1).double() if not self.reach else torch.exp(-torch.square((distance - 1) / self.reach))
        rates = near * torch.exp((log_law - log_law[:, None]).clamp_max(0))
        rates.fill_diagonal_(0)
        return rates - torch.diag(rates.sum(1))


def _checked(rates: Tensor) -> tuple[tuple[float, ...], ...]:
    """A rate matrix as nested tuples, which compare and print as values."""
    if rates.ndim != 2 or rates.shape[0] != rates.shape[1] or len(rates) < 2:
        raise ValueError(f"the rate matrix has shape {tuple(rates.shape)}; expected (S, S)")
    if not bool(torch.isfinite(rates).all()):
        raise ValueError("the rate matrix has entries that are not finite; expected rates")
    off = rates - torch.diag(rates.diagonal())
    if bool((off < 0).any()):
        i, j = (off < 0).nonzero()[0].tolist()
        raise ValueError(
            f"the rate matrix has the negative rate {float(off[i, j]):.3g} from {i} to {j}; rates are positive"
        )
    sums = rates.sum(1)
    scale = float(rates.abs().max())
    if bool((sums.abs() > 1e-6 * scale).any()) or scale == 0:
        i = int(sums.abs().argmax())
        raise ValueError(
            f"the rate matrix has row {i} with sum {float(sums[i]):.3g}; expected 0, each diagonal entry being minus the "
            "sum of the other rates of its row"
        )
    if int((torch.linalg.eigvals(rates).abs() < 1e-9 * scale).sum()) > 1:
        raise ValueError("the rate matrix has several stationary laws; expected one that all states end in")
    return tuple(tuple(row) for row in (off - torch.diag(off.sum(1))).tolist())
