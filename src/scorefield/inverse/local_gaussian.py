"""The Gaussian law of x_0 given x_t, and of a measurement of it, to second order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scorefield.differentiate import differentiation, variable
from scorefield.dtypes import exact
from scorefield.inverse.measurement import Measurement, matrix_of, parts, real_rows
from scorefield.solve.integrate import Field
from scorefield.tweedie import jacobian_of, tweedie


@dataclass(frozen=True)
class Local:
    r"""N(D, U diag(l) U^T) for x_0 given x_t, and the measurement A(x_0) = A(D) + H (x_0 - D), one for each particle.

    D = E[x_0 | x_t] and the covariance sigma^2 / alpha dD/dx_t are the exact first two moments; both are all there is to know
    where the data is Gaussian, and the operator linear.

    Attributes:
        data: D, (P, d). basis: U, (P, d, d). spread: l, (P, d), not negative. residual: y - A(D), (P, m). slope: H, (P, m, d).
        factor: Cholesky factor of noise^2 I + H U diag(l) U^T H^T, (P, m, m). All float64 on the CPU.
    """

    per_sample: ClassVar[tuple[str, ...]] = ("data", "basis", "spread", "residual", "slope", "factor")

    data: Tensor
    basis: Tensor
    spread: Tensor
    residual: Tensor
    slope: Tensor
    factor: Tensor

    @property
    def guess(self) -> Tensor:
        """log N(y; A(D), noise^2 I + H Cov H^T), (P,)."""
        return log_normal(self.residual, self.factor)

    def turn(self, diagonal: Tensor, v: Tensor) -> Tensor:
        """U diag(diagonal) U^T v, (P, d)."""
        return _apply(self.basis, diagonal * _apply(self.basis.mT, v))

    def measured(self, v: Tensor) -> Tensor:
        """H v, (P, m)."""
        return _apply(self.slope, v)

    def covariance_factor(self, diagonal: Tensor, noise: float) -> Tensor:
        """Cholesky factor of noise^2 I + H U diag(diagonal) U^T H^T, (P, m, m)."""
        return _factor(self.slope @ self.basis, diagonal, noise)

    def condition(self, v: Tensor, z: Tensor, noise: float) -> Tensor:
        """A draw of x_0 - D given y from one without, v, by Matheron's rule; z is standard normal, (P, m)."""
        misfit = (self.residual - self.measured(v) - noise * z).unsqueeze(2)
        pull = torch.cholesky_solve(misfit, self.factor).squeeze(2)
        return v + self.turn(self.spread, _apply(self.slope.mT, pull))


def local(field: Field, x: Tensor, t: Tensor, operator: Measurement, y: Tensor, noise: float) -> Local:
    """The local law at states x (P, *) and time t, for one measurement y (1, *); a network product for each dimension."""
    shape = x.shape[1:]
    moments = tweedie(lambda point: field.denoise(point, t), field.sde, x, t, keep=False, written=True)
    values, basis = torch.linalg.eigh(moments.matrix())
    centre = moments.mean.flatten(1)
    call, adjoint = parts(operator)
    if adjoint is not None:
        value = exact(real_rows(call(centre.reshape(x.shape))))
        slope = matrix_of(operator, tuple(shape), x).expand(len(x), -1, -1)
    else:
        with differentiation():
            point = variable(centre)
            image = real_rows(call(point.reshape(x.shape)))
            slope = exact(jacobian_of(image, point))
        value = exact(image.detach())
    spread = values.clamp_min(0.0)
    residual = exact(real_rows(y)) - value
    return Local(exact(centre), basis, spread, residual, slope, _factor(slope @ basis, spread, noise))


def log_normal(residual: Tensor, factor: Tensor) -> Tensor:
    """log N(residual; 0, L L^T), (P,)."""
    scaled = torch.linalg.solve_triangular(factor, residual.unsqueeze(2), upper=False).squeeze(2)
    logs = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(1)
    return -0.5 * torch.square(scaled).sum(1) - logs - 0.5 * residual.shape[1] * math.log(2 * math.pi)


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v.unsqueeze(2)).squeeze(2)


def _factor(turned: Tensor, diagonal: Tensor, noise: float) -> Tensor:
    eye = torch.eye(turned.shape[1], dtype=turned.dtype, device=turned.device)
    factor: Tensor = torch.linalg.cholesky((turned * diagonal.unsqueeze(1)) @ turned.mT + noise**2 * eye)
    return factor
