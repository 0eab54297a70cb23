"""Imputation by replacement, a hook on the sampling loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.dtypes import full_precision
from scorefield.inputs import said
from scorefield.inverse.measurement import (
    check_rows,
    in_rows,
    matrix_of,
    parts,
    pseudo_inverse,
    read_measurement,
    real_rows,
    warn_of_foreign_units,
)
from scorefield.inverse.operators import Operator
from scorefield.randomness import Noise
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Field
from scorefield.times import GridFn, sampling_grid

SMALL = 1024
"""Largest number of entries for which the pseudo-inverse of an operator without adjoint is written out."""


@dataclass(frozen=True, eq=False, repr=False)
class Replace:
    """After every step, what was measured follows the forward process of the measurement (Song et al. 2021, App. I.2).

    x <- x - A^+ A x + A^+ (alpha y + sigma A z), at the noise level that the step has reached.

    This is the paper's algorithm, with masks for imputation and `Grayscale` for colourisation (App. I.3: replacing the
    gray channel of an orthonormal colour transform). Its samples are biased, since the unknown part is never pulled
    towards what the measurement implies about it at larger noise; resampling with `repaint` removes most of
    the bias, `Posterior` and `twisted_smc` all of it.

    Main arguments:
        operator: linear, with __call__ and adjoint, such as `Mask`, `Grayscale`, `Downsample`.
        y: measurement without noise, A(x) of clean data: (n, *) with one row for each sample, or one for all.

    Raises:
        ValueError: a measurement that is not finite, or of another shape than A(x).
    """

    operator: Operator
    y: Tensor
    _inverse: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    per_sample: ClassVar[tuple[str, ...]] = ("y",)

    __repr__ = said

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", read_measurement(self.y))

    def bind(self, shape: tuple[int, ...]) -> Replace:
        """The hook for events of that shape."""
        return replace(self, y=in_rows(self.operator, self.y, shape))

    def check_units(self, shape: tuple[int, ...], interval: tuple[float, float]) -> None:
        """Warn of a measurement that data in that interval can hardly give."""
        warn_of_foreign_units(self.operator, self.y, shape, interval)

    def __call__(self, x: Tensor, t: Tensor, field: Field, noise: Noise) -> Tensor:
        """Replace at noise level t."""
        if not hasattr(field.sde, "alpha"):
            raise ValueError(
                f"Replace needs a GaussianSDE, not {type(field.sde).__name__}; known positions of a model of states go to "
                "sf.discrete.Infill"
            )
        y = self._measured(x)
        alpha, sigma = field.sde.alpha(t), field.sde.sigma(t)
        noised = self._apply(expand(sigma, x) * noise.like(x))
        check_rows(y, noised)
        return self._put(x, expand(alpha, x) * y + noised)

    def finish(self, x: Tensor) -> Tensor:
        """Put the clean measurement into the denoised sample."""
        return self._put(x, self._measured(x))

    def _put(self, x: Tensor, known: Tensor) -> Tensor:
        # In two terms: a masked entry minus itself is exactly zero, so that known entries come out bitwise.
        return (x - self._lift(self._apply(x), x)) + self._lift(known, x)

    def _lift(self, y: Tensor, x: Tensor) -> Tensor:
        """A^+ y, like x. Where the adjoint would have to be found by differentiation, a small matrix is written out once."""
        if parts(self.operator)[1] is not None or x[0].numel() > SMALL:
            return pseudo_inverse(self.operator, y, x)
        if "matrix" not in self._inverse:
            self._inverse["matrix"] = torch.linalg.pinv(matrix_of(self.operator, tuple(x.shape[1:]), x)).T
        rows = real_rows(y)
        with full_precision(x.device):
            return (rows @ self._inverse["matrix"].to(rows)).reshape(x.shape).to(x.dtype)

    def _apply(self, x: Tensor) -> Tensor:
        return parts(self.operator)[0](x)

    def _measured(self, x: Tensor) -> Tensor:
        y = self.y.to(
            device=x.device, dtype=x.dtype if not self.y.is_complex() else torch.promote_types(x.dtype, torch.complex64)
        )
        return y.expand(x.shape[0], *y.shape[1:]) if y.shape[0] == 1 else y


def repaint(jump: int = 10, resamples: int = 10, base: str = "uniform") -> GridFn:
    """Grid that goes back to more noise again and again (RePaint, Lugmayr et al. 2022, Alg. 1 and App. B), for `Replace`.

    Every `jump` steps down, the loop returns to where these steps began and takes them again, `resamples` times in all:
    the unknown part comes to agree with the known one at each noise level. Costs steps * resamples evaluations.

    Main arguments:
        jump: steps of the grid in one stretch. resamples: times each stretch is taken; 1 is the plain grid.
        base: name of the grid underneath.

    Use as `sf.sample(model, n, solver, hooks=[Replace(A, y)], steps=100, grid=repaint(jump=5, resamples=20))`.
    """
    if jump < 1 or resamples < 1:
        raise ValueError(f"jump={jump}, resamples={resamples}: both are at least 1")

    def grid(sde: GaussianSDE, steps: int, t_start: float, t_min: float) -> Tensor:
        plain = sampling_grid(sde, steps, t_start, t_min, base)  # type: ignore[arg-type]
        times = [plain[:1]]
        for first in range(0, steps, jump):
            stretch = plain[first : min(first + jump, steps) + 1]
            times += [stretch[1:], *[stretch] * (resamples - 1)]
        return torch.cat(times)

    return grid
