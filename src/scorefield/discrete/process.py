"""Jump processes: integers that forget themselves, each position by itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, bisect, expand
from scorefield.discrete.schedule import Constant, LogLinear, Schedule
from scorefield.dtypes import check_tensor, onto
from scorefield.inputs import whole
from scorefield.randomness import Noise, Seed, source


class JumpProcess(ABC):
    r"""A Markov jump process on {0, .., S - 1}, run at every position of a sample independently (Campbell et al. 2022).

    State i goes to j at the rate beta(t) R[i, j] per unit of time, rows being where a jump comes from, so that
    p(x_t = j | x_0 = i) = exp(B(t) R)[i, j] with B the integral of beta. Matrices are float64 on the CPU. What follows in
    methods named after one is the product with it, for vectors (B, *, S) and a total rate () or (B,).

    Attributes:
        schedule: B(t).
        ordinal: whether states have an order, so that several jumps may be added up.
        T: end time. t_min: where sampling stops by default.
    """

    schedule: Schedule
    ordinal: ClassVar[bool] = False
    t_min: ClassVar[float] = 0.0
    range: ClassVar[None] = None

    @property
    def T(self) -> float:
        """End time."""
        return self.schedule.T

    @property
    @abstractmethod
    def S(self) -> int:
        """Number of states, a mask included."""

    @property
    def mask(self) -> int | None:
        """The state that stands for nothing known, if there is one; data never has it."""
        return None

    @property
    def data_states(self) -> int:
        """Number of states that data can have."""
        return self.S - (self.mask is not None)

    @property
    @abstractmethod
    def generator(self) -> Tensor:
        """R, (S, S) float64: off-diagonal entries are rates from row to column, rows sum to zero."""

    @property
    @abstractmethod
    def stationary(self) -> Tensor:
        """The law pi with pi R = 0, (S,) float64, from which sampling starts."""

    @abstractmethod
    def matrix(self, total: Tensor) -> Tensor:
        """exp(total R), (*total.shape, S, S) float64; total >= 0."""

    def transition(self, t: Time, s: Time = 0.0) -> Tensor:
        """p(x_t = column | x_s = row), s <= t: (S, S) for floats, (B, S, S) for times (B,); float64.

        Raises:
            ValueError: some s is later than its t.
        """
        return self.matrix(self.between(s, t))

    def between(self, s: Time, t: Time) -> Tensor:
        """B(t) - B(s), float64.

        Raises:
            ValueError: some s is later than its t.
        """
        early, late = as_time(s), as_time(t)
        if bool(torch.isnan(early).any()) or bool(torch.isnan(late).any()):
            raise ValueError(f"transition(t, s): a time is NaN; give times in [0, {self.T:g}]")
        if bool((early > late).any()):
            raise ValueError("transition(t, s) goes forward in time: s must not exceed t")
        total = self.schedule.total(late) - self.schedule.total(early)
        return torch.where(early == late, 0.0, total)  # infinity minus infinity where both are T

    def rates(self, t: Time) -> Tensor:
        """beta(t) R, (S, S) or (B, S, S), float64, per unit of time."""
        return self.schedule.rate(t)[..., None, None] * self.generator

    def prior(self, shape: Sequence[int]) -> JumpPrior:
        """The stationary law at every position of a batch of shape (B, *)."""
        return JumpPrior(tuple(shape), self)

    def push(self, p: Tensor, total: Tensor) -> Tensor:
        """sum_i p[i] K[i, j], like p."""
        return _times(p, self.matrix(total))

    def unpush(self, r: Tensor, total: Tensor) -> Tensor:
        """The p with push(p) = r, like r."""
        return _times(r, torch.linalg.inv(self.matrix(total)))

    def column(self, x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        """K[i, x] for every i: states (B, *) -> (B, *, S)."""
        return _rows(self.matrix(total).mT, x, dtype)

    def row(self, x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        """K[x, j] for every j: states (B, *) -> (B, *, S)."""
        return _rows(self.matrix(total), x, dtype)

    def into(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """R[i, x] for every i: states (B, *) -> (B, *, S)."""
        return _rows(self.generator.mT, x, dtype)

    def out(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """R[x, j] for every j: states (B, *) -> (B, *, S)."""
        return _rows(self.generator, x, dtype)

    gap: float = 1.0
    """The decay rate of the slowest mode at unit rate."""

    def log_snr(self, t: Time) -> Tensor:
        """log(a / (1 - a)) with a = exp(-gap B(t)) what is left of the slowest mode: the noise level that a log shows."""
        total = self.gap * self.schedule.total(t)
        return -total - torch.log(-torch.expm1(-total))

    def sigma(self, t: Time) -> Tensor:
        """1 - a, what is lost of the slowest mode at time t: the noise level that a message names."""
        return -torch.expm1(-self.gap * self.schedule.total(t))

    def progress(self, t: Time) -> tuple[Tensor, Tensor]:
        """A rising function of time along which news comes evenly, and its slope per unit of time."""
        return self.schedule.jumped(t), self.schedule.hazard(t) * self.schedule.jumped(t)

    def time_at(self, progress: Tensor) -> Tensor:
        """The time of a value of `progress`, by bisection; the shape of the argument."""
        return bisect(lambda t: self.progress(t)[0], progress, self.T)

    def corrupt(self, x0: Tensor, t: Time, u: Tensor, s: Time = 0.0) -> Tensor:
        """x_t given x_0, int64, from one uniform number u of the shape of x_0 for every position; or given x_s."""
        row = self.row(x0, self.between(s, t), u.dtype).cumsum(-1)
        place = torch.searchsorted(row, (u.to(row) * row[..., -1]).unsqueeze(-1), right=True)
        return place.squeeze(-1).clamp_max(self.S - 1)

    def noised(self, x_s: Tensor, s: Time, t: Time, noise: Noise) -> Tensor:
        """A draw from p(x_t | x_s), s < t, int64."""
        return self.corrupt(x_s.cpu(), t, noise.uniform(x_s.shape), s).to(x_s.device)

    def check(self, x: Tensor, what: str = "x") -> None:
        """Refuse what is no batch of states.

        Raises:
            ValueError: a dtype that is not an integer one, or a state outside of 0 .. S - 1.
        """
        check_tensor(x, what)
        if x.dtype not in INTEGERS:
            raise ValueError(
                f"{what} has dtype {x.dtype}; a jump process takes states, integers from 0 to {self.S - 1}"
            )
        if x.is_meta or not x.numel():
            return
        low, high = (int(v) for v in torch.aminmax(x))
        if low < 0 or high >= self.S:
            raise ValueError(f"{what} has state {low if low < 0 else high}; expected states from 0 to {self.S - 1}")


INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class JumpPrior:
    """One law at every position of a batch of shape (B, *)."""

    shape: tuple[int, ...]
    process: JumpProcess

    def sample(self, seed: Seed = None) -> Tensor:
        """A draw of shape `shape`, int64; `seed` as in `scorefield.sample`."""
        return self.draw(source(seed, self.shape[0]), torch.int64, torch.device("cpu"))

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A draw from a running source of noise, one row for each of its samples; int64 whatever the dtype."""
        u = noise.uniform((noise.size, *self.shape[1:]))
        edges = torch.cumsum(self.process.stationary, 0)
        return torch.searchsorted(edges, u * edges[-1], right=True).clamp_max(self.process.S - 1).to(device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of each sample in nats: (B, *) -> (B,), float64."""
        self.process.check(x)
        return torch.log(self.process.stationary)[x.cpu().long()].flatten(1).sum(1)


class Redraw(JumpProcess):
    r"""At unit rate a position forgets its state and draws another from a fixed law pi: R = 1 pi^T - I.

    exp(B R) = alpha I + (1 - alpha) 1 pi^T with alpha = exp(-B), so that no (S, S) matrix is needed.
    """

    @property
    def generator(self) -> Tensor:
        return self.stationary.expand(self.S, -1) - torch.eye(self.S, dtype=torch.float64, device="cpu")

    def matrix(self, total: Tensor) -> Tensor:
        keep, lose = torch.exp(-total)[..., None, None], -torch.expm1(-total)[..., None, None]
        return keep * torch.eye(self.S, dtype=torch.float64, device="cpu") + lose * self.stationary.expand(self.S, -1)

    def push(self, p: Tensor, total: Tensor) -> Tensor:
        return _keep(total, p) * p + _lose(total, p) * p.sum(-1, keepdim=True) * self._law(p)

    def unpush(self, r: Tensor, total: Tensor) -> Tensor:
        return (r - _lose(total, r) * r.sum(-1, keepdim=True) * self._law(r)) / _keep(total, r)

    def column(self, x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        own = one_hot(x, self.S, dtype)
        return _keep(total, own) * own + _lose(total, own) * self._law(own)[x.long()].unsqueeze(-1)

    def row(self, x: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        own = one_hot(x, self.S, dtype)
        return _keep(total, own) * own + _lose(total, own) * self._law(own)

    def into(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        own = one_hot(x, self.S, dtype)
        return self._law(own)[x.long()].unsqueeze(-1) - own

    def out(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        own = one_hot(x, self.S, dtype)
        return self._law(own) - own

    def corrupt(self, x0: Tensor, t: Time, u: Tensor, s: Time = 0.0) -> Tensor:
        jumped = expand(-torch.expm1(-self.between(s, t)), u)
        edges = torch.cumsum(self._law(u), 0)
        # What decided the jump is uniform again below its threshold, and picks the state.
        fresh = torch.searchsorted(edges, (u / jumped).clamp(0, 1) * edges[-1], right=True).clamp_max(self.S - 1)
        return torch.where(u < jumped, fresh, x0.long())

    def _law(self, like: Tensor) -> Tensor:
        return onto(self.stationary, like)


@dataclass(frozen=True)
class Uniform(Redraw):
    """Every state is redrawn from all S of them: R = 1/S - I (Austin et al. 2021; Lou et al. 2024, eq. 15, over S).

    Main arguments:
        states: S.
        schedule: B(t); unit rate up to T = 8 by default, where exp(-8) of the data is left.
    """

    states: int
    schedule: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        at_least_two(self.states)

    @property
    def S(self) -> int:
        return self.states

    @cached_property
    def stationary(self) -> Tensor:  # type: ignore[override]
        return torch.full((self.S,), 1 / self.S, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Absorbing(Redraw):
    """Masked diffusion: a state is replaced by the mask, number `states`, and stays it (Lou et al. 2024, eq. 16).

    Main arguments:
        states: data states, 0 .. states - 1; the process has one more, S = states + 1.
        schedule: B(t); alpha = 1 - t by default.
    """

    states: int
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        at_least_two(self.states)

    @property
    def S(self) -> int:
        return self.states + 1

    @property
    def mask(self) -> int:
        return self.states

    @cached_property
    def stationary(self) -> Tensor:  # type: ignore[override]
        law = torch.zeros(self.S, dtype=torch.float64, device="cpu")
        law[self.states] = 1
        return law


def one_hot(x: Tensor, states: int, dtype: torch.dtype) -> Tensor:
    """(B, *) -> (B, *, S)."""
    return torch.zeros(*x.shape, states, dtype=dtype, device=x.device).scatter_(-1, x.long().unsqueeze(-1), 1)


def _keep(total: Tensor, like: Tensor) -> Tensor:
    return expand(torch.exp(-total), like)


def _lose(total: Tensor, like: Tensor) -> Tensor:
    return expand(-torch.expm1(-total), like)


def _times(v: Tensor, matrix: Tensor) -> Tensor:
    """v (B, *, S) times (S, S) or (B, S, S), in the dtype of v."""
    return (v.reshape(v.shape[0], math.prod(v.shape[1:-1]), v.shape[-1]) @ onto(matrix, v)).reshape(v.shape)


def _rows(matrix: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows x (B, *) of (S, S) or (B, S, S): (B, *, S)."""
    own = matrix.to(dtype).to(x.device)
    if own.ndim == 2:
        return own[x.long()]
    flat = x.reshape(x.shape[0], -1).long()
    return own.gather(1, flat.unsqueeze(-1).expand(-1, -1, own.shape[-1])).reshape(*x.shape, own.shape[-1])


def at_least_two(states: int) -> None:
    """Raise `ValueError` where `states` is less than two: a jump needs somewhere to go."""
    if whole(states, "states", "the number of states") < 2:
        raise ValueError(f"states={states}: a jump process needs at least two states")
