"""DDRM, a solver that works in the singular vectors of the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.guide.rows import check_rows
from scorefield.inverse.measurement import Measurement, rows_of
from scorefield.inverse.spectral import Spectrum, spectrum_of
from scorefield.randomness import Noise
from scorefield.sde import expand
from scorefield.solve.integrate import Field, Solver


@dataclass(frozen=True, eq=False)
class DDRM(Solver):
    """Denoising diffusion restoration (Kawar et al. 2022, eq. 7 and 8) for any Gaussian SDE; one evaluation a step.

    In units x / alpha, and along each right singular vector of A with singular value s, the next state is drawn around
    the denoised estimate where nothing was measured, around the measurement where the diffusion noise exceeds that of
    the measurement (noise / s), and around the estimate, moved towards the measurement, in between.

    Main arguments:
        operator: linear; masks, `Grayscale` and `Downsample` have their decomposition in closed form, others are written
            out up to 4096 entries.
        y: measurement, (n, *) or (1, *).
        noise: standard deviation of the measurement noise; 0 is allowed.

    Other arguments:
        eta, eta_b: how much fresh noise, and how much of the measurement, goes into a step; the paper's 0.85 and 1.

    Raises:
        ValueError: negative noise, or eta outside [0, 1].
    """

    operator: Measurement
    y: Tensor
    noise: float = 0.01
    eta: float = 0.85
    eta_b: float = 1.0

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise={self.noise}: the measurement noise is not negative")
        if not (0 <= self.eta <= 1 and 0 <= self.eta_b <= 1):
            raise ValueError(f"eta={self.eta}, eta_b={self.eta_b}: both lie between 0 and 1")

    @property
    def batch(self) -> int | None:
        """Number of samples, where there is a measurement for each."""
        return self.y.shape[0] if self.y.shape[0] > 1 else None

    def rows(self, index: Tensor, ndim: int) -> DDRM:
        """The solver for a subset of the samples of a batch with `ndim` dimensions."""
        y = self.y
        if y.shape[0] > 1:
            check_rows(index, y.shape[0], "y")
            y = y[index.to(y.device)]
        return DDRM(rows_of(self.operator, index, ndim), y, self.noise, self.eta, self.eta_b)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        spectrum: Spectrum = state or spectrum_of(self.operator, tuple(x.shape[1:]))
        sde = field.sde
        y = self.y.to(x.device)
        seen = spectrum.read(y if y.is_complex() else y.to(x.dtype)).double()
        singular = spectrum.singular.to(x.device)
        measured = singular > 0
        level = self.noise / torch.where(measured, singular, 1.0)
        alpha = expand(sde.alpha(s), x)
        now, then = float(sde.sigma(t) / sde.alpha(t)), float(sde.sigma(s) / sde.alpha(s))
        if state is None and bool(measured.any()):
            x = self._start(spectrum, x, seen, level, measured, float(sde.alpha(t)), now)
        clean = field.denoise(x, t)
        estimate = spectrum.into(clean).double()
        here = spectrum.into(x / expand(sde.alpha(t), x)).double()
        kept = (1 - self.eta**2) ** 0.5 * then
        unseen = estimate + kept * (here - estimate) / now
        below = estimate + kept * (seen - estimate) / torch.where(level > 0, level, 1.0)
        above = estimate + self.eta_b * (seen - estimate)
        beyond = then >= level
        mean = torch.where(measured, torch.where(beyond, above, below), unseen)
        gap = (then**2 - (self.eta_b * level) ** 2).clamp_min(0.0)
        std = torch.where(measured & beyond, torch.sqrt(gap), torch.full_like(gap, self.eta * then))
        z = spectrum.into(noise.like(x)).double()
        return alpha * spectrum.back((mean + std * z).to(x.dtype)), spectrum

    def _start(
        self, spectrum: Spectrum, x: Tensor, seen: Tensor, level: Tensor, measured: Tensor, alpha: float, now: float
    ) -> Tensor:
        """The measurement, noised to the level of the start, where there is one (eq. 7)."""
        z = spectrum.into(x / alpha).double() / now  # the prior is N(0, sigma_T^2), which stands for fresh noise
        first = seen + torch.sqrt((now**2 - level**2).clamp_min(0.0)) * z
        return alpha * spectrum.back(torch.where(measured, first, now * z).to(x.dtype))
