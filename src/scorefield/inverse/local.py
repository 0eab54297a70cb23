"""The law of x_0 given x_t near a point, as a Gaussian with its full covariance: for few dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.inverse.measurement import Measurement, matrix_of, parts, real_rows
from scorefield.solve.integrate import Field

TOGETHER = 2**14
"""Products with the Jacobians of so many particles at a time."""


@dataclass(frozen=True)
class Local:
    r"""N(D, U diag(l) U^T) for x_0 given x_t, and the measurement A(x_0) = A(D) + H (x_0 - D), one for each particle.

    D = E[x_0 | x_t] and the covariance sigma^2 / alpha dD/dx_t are the exact first two moments; both are all there is to know
    where the data is Gaussian, and the operator linear.

    Attributes:
        data: D, (P, d). basis: U, (P, d, d). spread: l, (P, d), not negative. residual: y - A(D), (P, m). slope: H, (P, m, d).
        factor: Cholesky factor of noise^2 I + H U diag(l) U^T H^T, (P, m, m). All float64.
    """

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

    def rows(self, index: Tensor) -> Local:
        """That of some of the particles."""
        return Local(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

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
    ratio = float(field.sde.sigma(t) ** 2 / field.sde.alpha(t))
    with torch.enable_grad():
        live = x.detach().requires_grad_()
        data = field.denoise(live, t).flatten(1)
        jacobian = _jacobian(data, live).double()
    values, basis = torch.linalg.eigh(0.5 * ratio * (jacobian + jacobian.mT))
    centre = data.detach()
    call, adjoint = parts(operator)
    if adjoint is not None:
        value = real_rows(call(centre.reshape(x.shape))).double()
        slope = matrix_of(operator, tuple(shape), x).expand(len(x), -1, -1)
    else:
        with torch.enable_grad():
            point = centre.clone().requires_grad_()
            image = real_rows(call(point.reshape(x.shape)))
            slope = _jacobian(image, point).double()
        value = image.detach().double()
    spread = values.clamp_min(0.0)
    residual = real_rows(y.to(x.device)).double() - value
    return Local(centre.double(), basis, spread, residual, slope, _factor(slope @ basis, spread, noise))


def log_normal(residual: Tensor, factor: Tensor) -> Tensor:
    """log N(residual; 0, L L^T), (P,)."""
    scaled = torch.linalg.solve_triangular(factor, residual.unsqueeze(2), upper=False).squeeze(2)
    logs = torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(1)
    return -0.5 * torch.square(scaled).sum(1) - logs - 0.5 * residual.shape[1] * math.log(2 * math.pi)


def _jacobian(value: Tensor, point: Tensor) -> Tensor:
    """d value / d point of each particle, (P, m, d), from value (P, m); several rows at a time."""
    count, m = value.shape
    units = torch.eye(m, dtype=value.dtype, device=value.device).unsqueeze(1).expand(m, count, m)
    size = max(1, TOGETHER // count)
    rows = [
        torch.autograd.grad(value, point, units[i : i + size], retain_graph=True, is_grads_batched=True)[0]
        for i in range(0, m, size)
    ]
    return torch.cat(rows).flatten(2).transpose(0, 1)


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v.unsqueeze(2)).squeeze(2)


def _factor(turned: Tensor, diagonal: Tensor, noise: float) -> Tensor:
    eye = torch.eye(turned.shape[1], dtype=turned.dtype, device=turned.device)
    factor: Tensor = torch.linalg.cholesky((turned * diagonal.unsqueeze(1)) @ turned.mT + noise**2 * eye)
    return factor
