"""Posterior scores: a prior model and a measurement give a model of what was measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, expand
from scorefield.differentiate import differentiation, ordinary
from scorefield.dtypes import exact, onto
from scorefield.inputs import said, tensor_of
from scorefield.inverse.measurement import (
    DENSE,
    Linearized,
    Map,
    Measurement,
    check_rows,
    conjugate_gradients,
    dot,
    from_real_rows,
    in_rows,
    linearize,
    parts,
    read_measurement,
    real_rows,
    warn_of_foreign_units,
)
from scorefield.model import Guided, ScoreModel
from scorefield.tweedie import Tweedie, tweedie

Method: TypeAlias = Literal["dps", "pigdm", "tmpd", "mmps", "diffpir"]
METHODS: tuple[str, ...] = ("dps", "pigdm", "tmpd", "mmps", "diffpir")

MISFIT = 2.0
"""Root mean square of (y - A x) / noise from which samples are said not to explain a measurement."""
CHEAP_ITERATIONS = 100
"""Of conjugate gradients where an iteration costs an operator and its adjoint, but no network."""


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    r"""Conditions a model on y = A(x_0) + noise z by an estimate of the score of the measurement.

    With D = E[x_0 | x_t], J = dD/dx_t and a guess V of Cov[x_0 | x_t], the measurement given x_t is about
    N(A D, noise^2 + A V A^T), whose score is J^T A^T (noise^2 + A V A^T)^{-1} (y - A D). The methods differ in V:

        "mmps": sigma^2 / alpha J, which is the covariance (Rozet et al. 2024, eq. 14), solved by conjugate gradients, each
            iteration a vector-Jacobian product of the network. Exact for Gaussian data.
        "tmpd": the same matrix, written out (Boys et al. 2023, eq. 11): a vector-Jacobian product for each entry of y.
        "pigdm": sigma^2 / (sigma^2 + alpha^2), as for data of unit variance (Song et al. 2023, sec. 3.2).
        "dps": 0 (Chung et al. 2023, eq. 16). Over-confident; stiff where the noise is small.
        "diffpir": sigma^2 / alpha^2 / weight, in place of J as well, so that nothing is differentiated (Zhu et al. 2023,
            eq. 13); meant for `DDIM(eta)`.

    Operators that are not linear are linearised at D. For deterministic and stochastic solvers alike, the result is the
    exact posterior where V is exact.

    Main arguments:
        operator: A, with a call and an `adjoint`; without one it is differentiated (see `linearize`).
        y: measurement, (n, *) with one row for each sample, or one for all; a tensor, an array or a data frame.
        noise: standard deviation of the measurement noise, in units of y; a number, or a tensor that broadcasts with y.

    Other arguments:
        iterations, tolerance: of conjugate gradients in "mmps": at most so many network products at each evaluation, fewer
            where the residual has fallen by the tolerance, or the network's Jacobian proves not to be a covariance (see
            `conjugate_gradients`).
        zeta: the step size of Chung et al. 2023, Alg. 1 for "dps", at its 1000 steps: gradients of zeta |y - A D| in place
            of |y - A D|^2 / (2 noise^2). Biased, but stable for any noise.
        weight: the lambda of Zhu et al. 2023 for "diffpir".
        variance: V of "pigdm", a function of t in place of the above.

    Raises:
        ValueError: an unknown method, noise that is not positive, or a measurement that is not finite or of another shape.
    """

    operator: Measurement
    y: Tensor
    noise: float | Tensor = 0.01
    method: Method = "mmps"
    iterations: int = 50
    tolerance: float = 1e-3
    zeta: float | None = None
    weight: float = 7.0
    variance: Callable[[Tensor], Tensor] | None = None

    per_sample: ClassVar[tuple[str, ...]] = ("y", "noise")

    __repr__ = said

    def __post_init__(self) -> None:
        y = read_measurement(self.y)
        object.__setattr__(self, "y", y)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        noise = tensor_of(self.noise, "noise")
        if not bool((noise > 0).all()):
            raise ValueError(f"noise={self.noise}: the measurement noise is positive; give a small one, or use Replace")
        if noise.ndim:
            object.__setattr__(self, "noise", noise.reshape(*[1] * (y.ndim - noise.ndim), *noise.shape))
        if not self.weight > 0 or not (self.zeta is None or self.zeta > 0) or not self.tolerance >= 0:
            raise ValueError(
                f"weight={self.weight}, zeta={self.zeta}, tolerance={self.tolerance}: weight and zeta are positive, "
                "the tolerance is not negative"
            )
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: at least one is needed")

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The model of x_0 given y."""
        y = in_rows(self.operator, self.y, model.shape)
        if model.shape is not None:
            warn_of_foreign_units(self.operator, y, model.shape, model.sde.range)
        return PosteriorModel(model, replace(self, y=y))


def misfit(operator: Measurement, y: Tensor, noise: float | Tensor, x: Tensor) -> float:
    """Root mean square of (y - A x) / noise over all entries; about 1 for samples of the posterior.

    Main arguments:
        y: (B, *) or (1, *). noise: standard deviation, broadcasts with y. x: samples (B, *).
    """
    with torch.no_grad():
        value = parts(operator)[0](x)
        gap = (y.to(device=value.device, dtype=value.dtype) - value) / torch.as_tensor(noise).to(x)
        return float(torch.sqrt(torch.square(real_rows(gap)).mean()))


def warn_of_misfit(operator: Measurement, y: Tensor, noise: float | Tensor, x: Tensor) -> None:
    """Warn of samples x (B, *) that do not explain the measurement: it lies farther from them than its noise allows."""
    if x.is_meta or not bool(torch.isfinite(x).all()):
        return
    found = misfit(operator, y, noise, x)
    if found > MISFIT:
        warnings.warn(
            f"the samples do not explain the measurement: |y - A x| is {found:.3g} times its noise where 1 is right; take more "
            "steps, method='pigdm', or a larger noise=",
            RuntimeWarning,
            stacklevel=3,
        )


class PosteriorModel(Guided):
    """What `model | Posterior(...)` is; every view derives from its denoised estimate."""

    guidance: Posterior

    @property
    def _ndim(self) -> int:
        return super()._ndim or self.guidance.y.ndim

    def denoise(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """E[x_0 | x_t = x, y] by the method, like x."""

        def prior(point: Tensor) -> Tensor:
            return self.base.denoise(point, t, **cond)

        track = torch.is_grad_enabled()
        if self.guidance.method == "diffpir":
            with differentiation(track):
                point = ordinary(x)
                law = Tweedie(point, prior(point), as_time(t), track)
                return law.mean + self._shift(law, as_time(t))
        law = tweedie(prior, self.sde, x, t, keep=track)
        with differentiation():
            shifted = law.data + self._shift(law, as_time(t))
        return shifted if track else shifted.detach()

    def inspect(self, x: Tensor, t: float = 0.0) -> None:
        p, spread = self.guidance, float(self.sde.sigma(t)) if t else 0.0
        noise = torch.sqrt(torch.square(exact(p.noise)) + spread**2)
        warn_of_misfit(p.operator, p.y, noise, x)
        super().inspect(x, t)

    def _shift(self, law: Tweedie, t: Tensor) -> Tensor:
        """E[x_0 | x_t, y] - E[x_0 | x_t] by the method, like x."""
        p, x = self.guidance, law.x
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        a = linearize(p.operator, law.data, create_graph=law.keep)
        check_rows(p.y, a.value)
        residual = (p.y.to(device=a.value.device, dtype=a.value.dtype) - a.value).expand_as(a.value)
        if not law.keep:
            residual = residual.detach()
        s2 = onto(torch.square(exact(p.noise)), residual.real if residual.is_complex() else x)
        match p.method:
            case "dps":
                return law.covariance(a.adjoint(self._dps(residual, s2, t)))
            case "pigdm":
                v = sigma**2 / (alpha**2 + sigma**2) if p.variance is None else p.variance(t)
                u = _solve(a, lambda u: expand(v, u) * u, residual, s2, CHEAP_ITERATIONS, 1e-6)
            case "mmps":
                u = _solve(a, law.covariance, residual, s2, p.iterations, p.tolerance)
            case "tmpd":
                u = _dense_solve(a, law.covariance, residual, s2)
            case _:
                v = sigma**2 / alpha.clamp_min(1e-6) ** 2 / p.weight
                u = _solve(a, lambda u: expand(v, u) * u, residual, s2, CHEAP_ITERATIONS, 1e-6)
                return expand(v, x) * a.adjoint(u)
        return law.covariance(a.adjoint(u))

    def _dps(self, residual: Tensor, s2: Tensor, t: Tensor) -> Tensor:
        zeta = self.guidance.zeta
        if zeta is None:
            return residual / s2
        # Alg. 1 moves each of 1000 steps by 2 zeta J^T A^T r / |r|; a change of score is multiplied by g^2 / 1000 there.
        length = torch.sqrt(dot(residual, residual)).clamp_min(1e-12)
        return expand(2000 * zeta / (onto(self.sde.g2(t), length) * length), residual.real) * residual


def _solve(a: Linearized, covariance: Map, b: Tensor, s2: Tensor, iterations: int, tolerance: float) -> Tensor:
    """(noise^2 + A V A^T)^{-1} b."""
    return conjugate_gradients(lambda u: s2 * u + a.forward(covariance(a.adjoint(u))), b, iterations, tolerance)


def _dense_solve(a: Linearized, covariance: Map, b: Tensor, s2: Tensor) -> Tensor:
    """The same with the matrix written out; where it is not positive, as a network may make it, negative directions are cut."""
    flat = real_rows(b)
    m = flat.shape[1]
    if m > DENSE:
        raise ValueError(f"method='tmpd' writes out a matrix for {m} measurements, at most {DENSE}; use method='mmps'")
    columns = []
    for i in range(m):
        e = torch.zeros_like(flat)
        e[:, i] = 1
        columns.append(real_rows(a.forward(covariance(a.adjoint(from_real_rows(e, b))))))
    matrix = exact(torch.stack(columns, 2))
    level = _complex_level(b, s2) if b.is_complex() else real_rows(torch.zeros_like(b) + s2)
    noise = torch.diag_embed(exact(level))
    matrix = 0.5 * (matrix + matrix.mT)
    side = exact(flat).unsqueeze(2)
    factor, failed = torch.linalg.cholesky_ex(matrix + noise)
    solved = torch.cholesky_solve(side, factor).squeeze(2)
    bad = torch.nonzero(failed).squeeze(1)
    if len(bad):
        values, basis = torch.linalg.eigh(matrix[bad])
        spread = (basis * values.clamp_min(0.0).unsqueeze(1)) @ basis.mT
        solved = solved.index_copy(0, bad, torch.linalg.solve(spread + noise[bad], side[bad]).squeeze(2))
    return from_real_rows(onto(solved, flat), b)


def _complex_level(b: Tensor, s2: Tensor) -> Tensor:
    level = torch.zeros_like(b.real) + s2
    return torch.stack([level, level], -1).flatten(1)
