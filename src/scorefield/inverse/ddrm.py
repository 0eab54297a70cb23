"""DDRM, a solver that works in the singular vectors of the measurement, and the decompositions it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import exact, onto, wide
from scorefield.inputs import said
from scorefield.inverse.filters import AlongAxes, along
from scorefield.inverse.measurement import (
    Map,
    Measurement,
    in_rows,
    matrix_of,
    plain,
    read_measurement,
    real_rows,
    warn_of_foreign_units,
)
from scorefield.inverse.operators import Mask
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True, eq=False, repr=False)
class DDRM(Solver):
    """Denoising diffusion restoration (Kawar et al. 2022, eq. 7 and 8) for any Gaussian SDE; one evaluation a step.

    In units x / alpha, and along each right singular vector of A with singular value s, the next state is drawn around
    the denoised estimate where nothing was measured, around the measurement where the diffusion noise exceeds that of
    the measurement (noise / s), and around the estimate, moved towards the measurement, in between.

    Main arguments:
        operator: linear; masks, `Grayscale` and `Downsample` have their decomposition in closed form, others are written
            out up to 4096 entries.
        y: measurement, (n, *) with one row for each sample, or one for all.
        noise: standard deviation of the measurement noise; 0 is allowed.

    Other arguments:
        eta, eta_b: how much fresh noise, and how much of the measurement, goes into a step; the paper's 0.85 and 1.

    Raises:
        ValueError: negative noise, eta outside [0, 1], or a measurement that is not finite or of another shape.
    """

    operator: Measurement
    y: Tensor
    noise: float = 0.01
    eta: float = 0.85
    eta_b: float = 1.0

    per_sample: ClassVar[tuple[str, ...]] = ("y",)
    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    __repr__ = said

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", read_measurement(self.y))
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: the measurement noise is not negative")
        if not (0 <= self.eta <= 1 and 0 <= self.eta_b <= 1):
            raise ValueError(f"eta={self.eta}, eta_b={self.eta_b}: both lie between 0 and 1")

    def bind(self, shape: tuple[int, ...]) -> DDRM:
        """The solver for events of that shape."""
        return replace(self, y=in_rows(self.operator, self.y, shape))

    def check_units(self, shape: tuple[int, ...], interval: tuple[float, float]) -> None:
        """Warn of a measurement that data in that interval can hardly give."""
        warn_of_foreign_units(self.operator, self.y, shape, interval)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        spectrum: Spectrum = state or spectrum_of(self.operator, tuple(x.shape[1:]))
        sde = field.sde
        y = self.y if self.y.is_complex() else self.y.to(x.dtype)
        seen = wide(spectrum.read(y.to(x.device)))
        singular = onto(spectrum.singular, seen)
        measured = singular > 0
        level = self.noise / torch.where(measured, singular, 1.0)
        alpha = expand(sde.alpha(s), x)
        now, then = float(sde.sigma(t) / sde.alpha(t)), float(sde.sigma(s) / sde.alpha(s))
        if state is None and bool((spectrum.singular > 0).any()):
            x = self._start(spectrum, x, seen, level, measured, float(sde.alpha(t)), now)
        clean = field.denoise(x, t)
        estimate = wide(spectrum.into(clean))
        here = wide(spectrum.into(x / expand(sde.alpha(t), x)))
        kept = (1 - self.eta**2) ** 0.5 * then
        unseen = estimate + kept * (here - estimate) / now
        below = estimate + kept * (seen - estimate) / torch.where(level > 0, level, 1.0)
        above = estimate + self.eta_b * (seen - estimate)
        beyond = then >= level
        mean = torch.where(measured, torch.where(beyond, above, below), unseen)
        gap = (then**2 - (self.eta_b * level) ** 2).clamp_min(0.0)
        std = torch.where(measured & beyond, torch.sqrt(gap), torch.full_like(gap, self.eta * then))
        z = wide(spectrum.into(noise.like(x)))
        return alpha * spectrum.back((mean + std * z).to(x.dtype)), spectrum

    def _start(
        self, spectrum: Spectrum, x: Tensor, seen: Tensor, level: Tensor, measured: Tensor, alpha: float, now: float
    ) -> Tensor:
        """The measurement, noised to the level of the start, where there is one (eq. 7)."""
        z = wide(spectrum.into(x / alpha)) / now  # the prior is N(0, sigma_T^2), which stands for fresh noise
        first = seen + torch.sqrt((now**2 - level**2).clamp_min(0.0)) * z
        return alpha * spectrum.back(torch.where(measured, first, now * z).to(x.dtype))


@dataclass(frozen=True)
class Spectrum:
    """A = U diag(s) V^T on events: `into` is V^T x, `back` is V z, `read` is U^T y / s (0 where s = 0); coordinates are (B, D).

    `singular` has shape (D,), or (B, D) for an operator with a row for each sample.
    """

    singular: Tensor
    into: Map
    back: Map
    read: Map


def spectrum_of(operator: Measurement, shape: tuple[int, ...]) -> Spectrum:
    """The decomposition of an operator on events of that shape; what has no structure is written out as a matrix.

    Raises:
        ValueError: an operator without structure on more than 4096 entries.
    """
    found = _decomposed(operator, shape)
    return Spectrum(found.singular, plain(found.into), plain(found.back), plain(found.read))


def _decomposed(operator: Measurement, shape: tuple[int, ...]) -> Spectrum:
    if isinstance(operator, Mask):
        full = operator.mask.expand(torch.broadcast_shapes(operator.mask.shape, (1, *shape)))
        known = exact(full.flatten(1))
        return Spectrum(
            known, lambda x: x.flatten(1), lambda z: z.reshape(-1, *shape), lambda y: operator(y).flatten(1)
        )
    if isinstance(operator, AlongAxes):
        return _kronecker(operator, shape)
    matrix = matrix_of(operator, shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=True)
    r, d = len(values), matrix.shape[1]
    left, values = left[:, :r], _clean(values)

    def read(y: Tensor) -> Tensor:
        z = (real_rows(y) @ left.to(real_rows(y))) * _inverse(values).to(real_rows(y))
        return torch.nn.functional.pad(z, (0, d - r))

    return Spectrum(
        torch.nn.functional.pad(values, (0, d - r)),
        lambda x: x.flatten(1) @ right.to(x).T,
        lambda z: (z @ right.to(z)).reshape(-1, *shape),
        read,
    )


def _kronecker(operator: AlongAxes, shape: tuple[int, ...]) -> Spectrum:
    ndim = len(shape) + 1
    parts = []
    singular = torch.ones(1, *shape, dtype=torch.float64)
    for axis in operator.axes(ndim):
        n = shape[axis - 1]
        left, values, right = torch.linalg.svd(operator.factor(n), full_matrices=True)
        values = _clean(values)
        padded = torch.nn.functional.pad(values, (0, n - len(values)))
        singular = singular * padded.reshape(-1, *[1] * (ndim - axis - 1))
        inverse = torch.nn.functional.pad((left[:, : len(values)] * _inverse(values)).T, (0, 0, 0, n - len(values)))
        parts.append((axis, right, inverse))

    def chain(pick: Callable[[Tensor, Tensor], Tensor]) -> Map:
        def apply(x: Tensor) -> Tensor:
            for axis, right, inverse in parts:
                x = along(x, pick(right, inverse), axis)
            return x

        return apply

    into, back, read = chain(lambda r, i: r), chain(lambda r, i: r.T), chain(lambda r, i: i)
    return Spectrum(
        singular.expand(1, *shape).flatten(),
        lambda x: into(x).flatten(1),
        lambda z: back(z.reshape(-1, *shape)),
        lambda y: read(y).flatten(1),
    )


def _clean(values: Tensor) -> Tensor:
    """Singular values that are zero but for rounding, as zero."""
    floor = 1e-10 * float(values.max()) if math.prod(values.shape) else 0.0
    return torch.where(values > floor, values, torch.zeros_like(values))


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / torch.where(values > 0, values, 1.0), 0.0)
