"""Ancestral sampling whose noise has the covariance that the model itself implies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import exact, onto, wide_dtype
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field, Solver, Task, Tick, integrate
from scorefield.tweedie import tweedie


@dataclass(frozen=True)
class AnalyticAncestral(Solver):
    r"""Ancestral sampling with the optimal reverse variance (Bao et al. 2022, Thm. 1), for any Gaussian SDE.

    p(x_s | x_t) is matched in mean and covariance: that of p(x_s | x_t, x_0), plus k^2 Cov[x_0 | x_t] with
    k = alpha_s v / sigma_t^2, v the variance of the forward transition. It is exact on Gaussians in any number of steps.

    Main arguments:
        covariance: what is known of Cov[x_0 | x_t].
            "mean": a multiple of the identity, its mean over dimensions, by (sigma^2 / alpha) tr(dD/dx) / d with one random
                probe for each sample; or, with `sample(..., pilots=)`, also over those trajectories, once, before sampling,
                which then takes no derivatives. (The paper's 1 - E|eps|^2 / d is the same number, but a difference of near
                equals where the noise is large: under VE its sampling error made variances five times too large.)
            "full": (sigma^2 / alpha) times the Jacobian of the denoiser, one reverse pass for each dimension and step;
                for vectors.
    """

    covariance: Literal["mean", "full"] = "mean"
    measured: Mapping[float, float] | None = field(default=None, repr=False, compare=False)

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 100

    def __post_init__(self) -> None:
        if self.covariance not in ("mean", "full"):
            raise ValueError(f"covariance={self.covariance!r} is unknown; choose mean or full")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        a, v = sde.transition_coefficients(s, t)
        shrink, gain = torch.square(sde.sigma(s) / sde.sigma(t)), sde.alpha(s) * v / sde.sigma(t) ** 2
        if self.covariance == "full":
            data, root = _denoise_with_covariance(field, x, t, v * shrink, gain)
            fresh = torch.einsum("bij,bj->bi", root, noise.like(x).flatten(1)).reshape(x.shape)
        else:
            data, variance, state = self._variance(field, x, t, state, noise)
            spread = v * shrink + gain**2 * variance
            fresh = expand(torch.sqrt(spread), x) * noise.like(x)
        return expand(a * shrink, x) * x + expand(gain, x) * data + fresh, state

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.covariance == "full" or self.measured is None:
            raise ValueError(
                'AnalyticAncestral has one std for a step only with covariance="mean" that was measured before, by prepare'
            )
        sde = field.sde
        a, v = sde.transition_coefficients(s, t)
        shrink, gain = torch.square(sde.sigma(s) / sde.sigma(t)), sde.alpha(s) * v / sde.sigma(t) ** 2
        spread = v * shrink + gain**2 * self.measured[float(t)]
        return expand(a * shrink, x) * x + expand(gain, x) * field.denoise(x, t), expand(torch.sqrt(spread), x)

    def prepare(self, task: Task, tick: Tick | None = None) -> Solver:
        """Measure the mean variance along the grid where `covariance` is "mean"."""
        grid = task.times(self)
        if task.pilots is None:
            return self
        if self.covariance == "full" or not task.shared or grid is None:
            return super().prepare(task)
        field, x, noise = task.ensemble()
        _, states = integrate(_Measuring(), field, x, grid, noise, tick=tick)
        found: dict[float, list[float]] = {}
        for t, variance in states[0]:
            found.setdefault(t, []).append(variance)
        return replace(self, measured={t: sum(seen) / len(seen) for t, seen in found.items()})

    def _variance(self, field: Field, x: Tensor, t: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Tensor, Any]:
        """E[x_0 | x_t], its mean variance over dimensions, () or (B,), and the next state."""
        if self.measured is not None:
            return field.denoise(x, t), torch.as_tensor(self.measured[float(t)], dtype=torch.float64), None
        return *_denoise_with_variance(field, x, t, noise), None


@dataclass(frozen=True)
class _Measuring(AnalyticAncestral):
    """The same sampler on the pilot ensemble, whose mean it takes; its state is [(t, mean variance), ...]."""

    def _variance(self, field: Field, x: Tensor, t: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Tensor, Any]:
        data, each = _denoise_with_variance(field, x, t, noise)
        mean = exact(each.mean())
        return data, mean, [*(state or ()), (float(t), float(mean))]

    def risen(self, state: Any) -> Any:
        return state


def _denoise_with_variance(field: Field, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t], and (sigma^2 / alpha) e^T (dD/dx) e / d for a random sign vector e, (B,)."""
    if float(field.sde.alpha(t)) == 0.0:  # the data is nowhere to be seen; 0 is the safe side for a single step
        return field.denoise(x, t), torch.zeros(len(x), dtype=wide_dtype(x), device=x.device)
    law = tweedie(lambda point: field.denoise(point, t), field.sde, x, t)
    return law.mean, law.mean_variance(noise.rademacher(x)).clamp_min(0.0)


def _denoise_with_covariance(field: Field, x: Tensor, t: Tensor, base: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t], and the Cholesky factor (B, d, d) of base I + gain^2 Cov[x_0 | x_t], negative directions cut.

    Eigenvectors would be a root too, but one that the last bit of the network turns round, and without a derivative where
    eigenvalues are equal.
    """
    law = tweedie(lambda point: field.denoise(point, t), field.sde, x, t, written=True)
    covariance = float(gain) ** 2 * law.matrix()
    spectrum, basis = torch.linalg.eigh(covariance.detach())
    floor = 1e-12 * (spectrum[:, -1:].clamp_min(0.0) + float(base)) + 1e-300
    cut = (basis * (spectrum.clamp_min(0.0) - spectrum + float(base) + floor).unsqueeze(1)) @ basis.mT
    root = torch.linalg.cholesky(covariance + cut)
    return law.mean, onto(root, x)
