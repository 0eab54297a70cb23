"""Where on the time axis: proposals for training times, and grids for sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from scorefield.dtypes import EXACT, exact
from scorefield.sde import GaussianSDE

GridName: TypeAlias = Literal["uniform", "log_snr", "karras", "quadratic"]
GridFn: TypeAlias = "Callable[[GaussianSDE, int, float, float], Tensor]"


NEAREST = 1e-12
"""Least distance between neighbours of a grid, relative to T: closer ones are equal to rounding, and no step."""


class Proposal(Protocol):
    """Draws training times: u in (0, 1) -> (t, weight), both (B,) float64, on the CPU like u.

    The weight multiplies the loss. A proposal that only saves variance returns the inverse of its density, relative to
    the uniform one; a proposal that is part of the objective returns 1.
    """

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class UniformTimes:
    """t uniform in [t_min, t_max], t_max being T unless given (Song et al. 2021, eq. 7; App. C trains with t_min = 1e-5).

    A model trained up to t_max alone starts there, from a fitted prior (Franzese et al. 2023; see `diagnose.fit_prior`).
    """

    t_min: float = 1e-5
    t_max: float | None = None

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        end = sde.T if self.t_max is None else self.t_max
        if not 0 <= self.t_min < end <= sde.T:
            raise ValueError(f"UniformTimes(t_min={self.t_min}, t_max={end}): times obey 0 <= t_min < t_max <= {sde.T}")
        return self.t_min + u * (end - self.t_min), torch.ones_like(u)


@dataclass(frozen=True)
class LogSNRTimes:
    """log-SNR uniform between its values at t_min and at T, a change of the objective rather than of its variance.

    Where alpha(T) = 0 it ends at 0.999 T, as the log-SNR at T is infinite.
    """

    t_min: float = 1e-5

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        high, low = _finite_log_snr(sde, self.t_min), _finite_log_snr(sde, sde.T)
        return sde.inverse_log_snr(low + u * (high - low)), torch.ones_like(u)


@dataclass(frozen=True)
class ImportanceTimes:
    r"""t with density proportional to g^2 / sigma^2, for the likelihood weighting lambda = g^2 (Song et al. 2021b, sec. 4).

    Since d log_snr / dt = -g^2 / sigma^2, these times are uniform in log-SNR. The weight undoes the proposal, so that the
    mean of the loss stays that of uniform times while its variance falls by orders of magnitude.
    """

    t_min: float = 1e-5

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        high, low = _finite_log_snr(sde, self.t_min), _finite_log_snr(sde, sde.T)
        t = sde.inverse_log_snr(low + u * (high - low))
        rate = sde.g2(t) / torch.square(sde.sigma(t))
        return t, (high - low) / ((sde.T - self.t_min) * rate)


@dataclass(frozen=True)
class LogNormalTimes:
    """log(sigma / alpha) ~ N(mean, std^2), cut to [t_min, T] (Karras et al. 2022, Table 1); part of the objective."""

    mean: float = -1.2
    std: float = 1.2
    t_min: float = 1e-5

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        low, high = -0.5 * float(sde.log_snr(self.t_min)), -0.5 * float(sde.log_snr(sde.T))
        ends = torch.special.ndtr((torch.tensor([low, high], dtype=torch.float64, device="cpu") - self.mean) / self.std)
        inside = ends[0] + u * (ends[1] - ends[0])
        level = (self.mean + self.std * torch.special.ndtri(inside)).clamp(low, high)
        return sde.inverse_log_snr(-2 * level), torch.ones_like(u)


@dataclass(frozen=True)
class LogitNormalTimes:
    """logit(t / T) ~ N(mean, std^2), then t moved by `shift` (Esser et al. 2024, eq. 19 and 23); part of the objective.

    Main arguments:
        mean, std: of the logit; 0 and 1 are theirs, most times lying in the middle.
        shift: t / T becomes k u / (1 + (k - 1) u): above 1 towards the noise, as pictures of more pixels want it.
        t_min: least time.

    Raises:
        ValueError: std or shift that is not positive.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.std > 0 and self.shift > 0 and math.isfinite(self.mean)):
            raise ValueError(f"{self}: give a finite mean, std > 0 and shift > 0")

    def __call__(self, u: Tensor, sde: GaussianSDE) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        t = sde.T * shifted(share, self.shift)
        return t.clamp(self.t_min, sde.T), torch.ones_like(u)


def shifted(share: Tensor, shift: float) -> Tensor:
    """k u / (1 + (k - 1) u), which moves times u in [0, 1] towards 1 for k > 1 (Esser et al. 2024, eq. 23)."""
    return shift * share / (1 + (shift - 1) * share)


@dataclass(frozen=True)
class ShiftedGrid:
    """Even times moved by `shift`, as `LogitNormalTimes` moves those of training: `sample(..., grid=ShiftedGrid(3.0))`.

    Raises:
        ValueError: a shift that is not positive.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift}: give a positive number, 1 for even times")

    def __call__(self, sde: GaussianSDE, steps: int, t_start: float, t_min: float) -> Tensor:
        share = shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu"), self.shift)
        return t_min + (t_start - t_min) * share


def low_discrepancy(n: int, generator: torch.Generator) -> Tensor:
    """n points in (0, 1), one in each of n equal cells with a shared random shift, in random order (Kingma et al. 2021)."""
    shift = uniform((), generator)
    order = torch.randperm(n, generator=generator, device=generator.device).cpu()
    return torch.remainder((order + shift) / n, 1.0)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), float64 on the CPU, from a generator of any device."""
    home = generator.device
    kind = torch.float64 if home.type in EXACT else torch.float32
    return torch.rand(tuple(shape), generator=generator, dtype=kind, device=home).cpu().double()


@dataclass(frozen=True)
class FittedGrid:
    """A grid read off a density of steps that was measured on a model (see `solve.tune` and `solve.tuned.fit_grid`).

    A function of (sde, steps, t_start, t_min), as `sampling_grid` takes it. It holds plain numbers: `to_dict` saves it.

    Attributes:
        times: falling. share: fraction of the steps that lie before each of the times, from 0 to 1.
    """

    times: tuple[float, ...]
    share: tuple[float, ...]

    @classmethod
    def of_density(cls, times: Tensor, at: Tensor, density: Tensor, floor: float = 0.05) -> FittedGrid:
        """The grid with steps per unit of `at` proportional to `density`, but nowhere below `floor` of its mean; all (M,)."""
        height = density.double() + floor * density.double().mean()
        passed = torch.cumsum(0.5 * (height[1:] + height[:-1]) * at.diff(), 0)
        share = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), passed / passed[-1]])
        return cls(tuple(times.tolist()), tuple(share.tolist()))

    def __call__(self, sde: GaussianSDE, steps: int, t_start: float, t_min: float) -> Tensor:
        first, last = np.interp([-t_start, -t_min], [-t for t in self.times], self.share)
        inside = np.interp(np.linspace(first, last, steps + 1), self.share, self.times)
        inside[0], inside[-1] = t_start, t_min
        return torch.from_numpy(inside)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, for a JSON file."""
        return {"times": list(self.times), "share": list(self.share)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence[float]]) -> FittedGrid:
        """The inverse of `to_dict`."""
        return cls(tuple(data["times"]), tuple(data["share"]))


@dataclass(frozen=True)
class Restart:
    """Grid of Restart sampling (Xu et al. 2023, Alg. 1): an interval of times is gone through again and again.

    The base grid runs down to `low`; then `repeats` times the sample is noised back up to `high`, by the forward
    transition, and taken down to `low` again in `steps` steps; then the base grid goes on. What the noise forgets is the
    error made above `high`; what it adds is contracted by the way down. Use it with a solver of the probability flow.

    Main arguments:
        low, high: times, low < high.
        repeats: K of the paper. steps: steps of each way down.
        base: the grid to interrupt, of `steps` steps as `sample` is told.
    """

    low: float
    high: float
    repeats: int = 1
    steps: int = 10
    base: GridName | GridFn = "log_snr"

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"Restart needs 0 <= low < high, not low={self.low}, high={self.high}")
        if self.repeats < 0 or self.steps < 1:
            raise ValueError(f"repeats={self.repeats}, steps={self.steps}: give 0 or more repeats of at least one step")

    def __call__(self, sde: GaussianSDE, steps: int, t_start: float, t_min: float) -> Tensor:
        if not (t_min <= self.low and self.high <= t_start):
            raise ValueError(
                f"Restart from {self.low} to {self.high} leaves the times {t_min} to {t_start} of the sampling"
            )
        base = sampling_grid(sde, steps, t_start, t_min, self.base)
        above, below = base[base > self.low], base[base < self.low]
        down = sampling_grid(sde, self.steps, self.high, self.low, self.base)
        at = torch.tensor([self.low], dtype=torch.float64, device="cpu")
        return torch.cat([above, at, *[down] * self.repeats, below])


def sampling_grid(
    sde: GaussianSDE, steps: int, t_start: float, t_min: float, grid: GridName | GridFn | Tensor = "uniform"
) -> Tensor:
    """steps + 1 times from t_start to t_min, float64, on the CPU.

    Main arguments:
        grid: "uniform" in t; "log_snr", uniform in log-SNR; "karras", (sigma/alpha)^{1/7} uniform (Karras et al. 2022,
            eq. 5); "quadratic", sqrt(t) uniform; a function of (sde, steps, t_start, t_min); or the times themselves,
            which may also rise: a rise adds noise (RePaint, Restart).

    Raises:
        ValueError: steps < 1, times that leave [0, T], or a grid of fewer than two times.
    """
    if not isinstance(grid, str) and not callable(grid):
        return as_grid(grid, sde.T)
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if not 0 <= t_min < t_start <= sde.T:
        raise ValueError(f"times must obey 0 <= t_min < t_start <= {sde.T}, not t_min={t_min}, t_start={t_start}")
    times = _named_grid(sde, steps, t_start, t_min, grid)
    return as_grid(times, sde.T) if callable(grid) else times


def as_grid(times: Tensor | Sequence[float] | np.ndarray, end: float) -> Tensor:
    """Times that a user gave, float64 on the CPU; what rounding to float32 put beyond [0, end] is put back.

    Raises:
        ValueError: fewer than two times, NaN, times outside [0, end], or neighbours that are equal or nearly so.
    """
    given = times if isinstance(times, Tensor) else torch.from_numpy(np.array(times, dtype=np.float64))
    grid = given.detach().to(device="cpu").to(torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)}; give at least two times in one dimension")
    if not bool(torch.isfinite(grid).all()):
        raise ValueError("grid holds NaN or infinity; give finite times")
    if not bool(((grid >= -1e-6 * end) & (grid <= (1 + 1e-6) * end)).all()):
        raise ValueError(f"grid leaves the interval [0, {end}]")
    grid = grid.clamp(0.0, end)
    near = torch.nonzero(grid.diff().abs() < NEAREST * end).flatten()
    if len(near):
        at = int(near[0])
        raise ValueError(
            f"grid has two times that are equal or nearly so, number {at} and {at + 1} at {float(grid[at])}"
        )
    return grid


def _named_grid(sde: GaussianSDE, steps: int, t_start: float, t_min: float, grid: GridName | GridFn) -> Tensor:
    if callable(grid):
        return exact(grid(sde, steps, t_start, t_min))
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
    if grid in ("log_snr", "karras") and not hasattr(sde, "inverse_log_snr"):
        raise ValueError(f"grid={grid!r} needs a GaussianSDE; under {type(sde).__name__} choose uniform or quadratic")
    match grid:
        case "uniform":
            times = t_start + u * (t_min - t_start)
        case "quadratic":
            times = torch.square(math.sqrt(t_start) + u * (math.sqrt(t_min) - math.sqrt(t_start)))
        case "log_snr" | "karras":
            low, high = (_finite_log_snr(sde, t) for t in (t_start, t_min))
            if grid == "log_snr":
                times = sde.inverse_log_snr(low + u * (high - low))
            else:
                root = math.exp(-low / 14) + u * (math.exp(-high / 14) - math.exp(-low / 14))
                times = sde.inverse_log_snr(-14 * torch.log(root))
        case _:
            raise ValueError(
                f"grid={grid!r} is unknown; choose uniform, log_snr, karras, quadratic, a function or a tensor"
            )
    times[0], times[-1] = t_start, t_min  # the inverse of log-SNR may round them out of the interval
    return times


def _finite_log_snr(sde: GaussianSDE, t: float) -> float:
    """log-SNR, moved inside where it is infinite (alpha = 0 or sigma = 0 at an end)."""
    value = float(sde.log_snr(t))
    if math.isinf(value):
        inside = 1e-3 * sde.T if value > 0 else (1 - 1e-3) * sde.T
        value = float(sde.log_snr(inside))
    return value
