"""Exponential integrators: exact for the linear part, in log-SNR, so that they work for every (alpha, sigma).

With lambda = log(alpha / sigma) and D = E[x_0 | x_t], the probability flow is

x_s = (sigma_s / sigma_t) x_t + alpha_s integral from lambda_t to lambda_s of e^{l - lambda_s} D(l) dl

(Lu et al. 2022b, Prop. 4.1). Where lambda is infinite (alpha = 0 at T, sigma = 0 at 0) the integral of a constant D is
still right, so such steps are of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from scorefield.randomness import Noise
from scorefield.sde import GaussianSDE, expand
from scorefield.solve.integrate import Field, Solver

History: TypeAlias = "tuple[tuple[float, Tensor], ...]"
"""(lambda, D) of the last evaluations, the latest first."""


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM (Song et al. 2021a, eq. 12) for any Gaussian SDE; one evaluation a step.

    Main arguments:
        eta: 0 is the probability flow to first order; 1 is ancestral sampling.
    """

    eta: float = 0.0

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: eta lies between 0 and 1")

    @property
    def flow(self) -> bool:
        return self.eta == 0

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        sigma_s, sigma_t = sde.sigma(s), sde.sigma(t)
        _, v = sde.transition_coefficients(s, t)
        fresh = self.eta**2 * v * torch.square(sigma_s / sigma_t)
        kept = torch.sqrt((sigma_s**2 - fresh).clamp_min(0.0)) / sigma_t
        gained = float(sde.alpha(s) - kept * sde.alpha(t))
        x = (expand(kept, x) * x).add_(field.denoise(x, t), alpha=gained)
        if self.eta > 0:
            x = x + expand(torch.sqrt(fresh), x) * noise.like(x)
        return x, None


@dataclass(frozen=True)
class DPMSolver(Solver):
    """DPM-Solver++ multistep (Lu et al. 2022b, Alg. 2) for any Gaussian SDE; one evaluation a step.

    D is extrapolated from the last evaluations. Order 2 uses the paper's weights, which agree with those of the
    interpolating polynomial to its order; order 3 uses the polynomial's own. Order 3 makes its first step with one
    evaluation more, at the middle: a first step of order 1 would leave an error of order 2 at the end.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_order(self.order)

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        here, there = half_log_snr(field.sde, t), half_log_snr(field.sde, s)
        history = remember(here, field.denoise(x, t), state, self.order)
        if len(history) == 2 and self.order == 2 and math.isfinite(there):
            whole = -math.expm1(here - there)
            slope = 0.5 * (there - here) / (here - history[1][0]) * whole
            weights = [whole + slope, -slope]
        elif self.order == 3 and state is None and math.isfinite(here) and math.isfinite(there):
            at = 0.5 * (here + there)
            middle = field.sde.inverse_log_snr(2 * at).to(t.device)
            y = data_step(field.sde, x, t, middle, adams_weights([here], here, at), [history[0][1]])
            pair = [history[0][1], field.denoise(y, middle)]
            return data_step(field.sde, x, t, s, adams_weights([here, at], here, there), pair), history
        else:
            weights = adams_weights([at for at, _ in history], here, there)
        return data_step(field.sde, x, t, s, weights, [d for _, d in history]), history


@dataclass(frozen=True)
class DPMSolverSingle(Solver):
    """DPM-Solver++ single-step (Lu et al. 2022b, Alg. 1 and App. B): `order` evaluations a step, and no memory.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_order(self.order)

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        here, there = half_log_snr(sde, t), half_log_snr(sde, s)
        data = field.denoise(x, t)
        if self.order == 1 or not (math.isfinite(here) and math.isfinite(there)):
            return data_step(sde, x, t, s, [-math.expm1(here - there)], [data]), None
        # Each stage looks ahead with what the earlier ones have seen of the slope of D.
        nodes, seen = [here], [data]
        for k in range(1, self.order):
            at = here + (there - here) * k / self.order
            middle = sde.inverse_log_snr(2 * at).to(t.device)
            y = data_step(sde, x, t, middle, adams_weights(nodes, here, at), seen)
            nodes, seen = [here, at], [data, field.denoise(y, middle)]
        whole = -math.expm1(here - there)
        if self.order == 2:
            return data_step(sde, x, t, s, [whole], [seen[1]]), None
        return data_step(sde, x, t, s, adams_weights(nodes, here, there), seen), None


@dataclass(frozen=True)
class DEIS(Solver):
    """DEIS (Zhang & Chen 2023, tAB-DEIS): the noise, interpolated in t, with exponential weights; one evaluation a step.

    x_s = (alpha_s / alpha_t) x_t + alpha_s integral from rho_t to rho_s of eps d rho,   rho = sigma / alpha

    Order 3 makes its first step with one evaluation more, at the middle, as `DPMSolver` does.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

    order: int = 3  # type: ignore[misc]

    grid: ClassVar[str] = "quadratic"
    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_order(self.order)

    @property
    def flow(self) -> bool:
        return True

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        if float(sde.alpha(t)) == 0.0 or float(sde.alpha(s)) == 0.0:
            alpha_t, alpha_s = float(sde.alpha(t)), float(sde.alpha(s))
            kept = sde.sigma(s) / sde.sigma(t)
            return expand(kept, x) * x + expand(alpha_s - kept * alpha_t, x) * field.denoise(x, t), None
        memory: History = state or ()
        seen = ((float(t), field.noise(x, t)), *memory)[: self.order]
        if self.order == 3 and state is None:
            middle = 0.5 * (t + s)
            y = self._move(sde, x, seen, t, middle)
            return self._move(sde, x, (*seen, (float(middle), field.noise(y, middle))), t, s), seen
        return self._move(sde, x, seen, t, s), seen

    def _move(self, sde: GaussianSDE, x: Tensor, seen: History, t: Tensor, s: Tensor) -> Tensor:
        moved = expand(sde.alpha(s) / sde.alpha(t), x) * x
        for w, (_, e) in zip(self._weights(sde, [at for at, _ in seen], t, s), seen, strict=True):
            moved.add_(e, alpha=float(sde.alpha(s)) * w)
        return moved

    def _weights(self, sde: GaussianSDE, nodes: Sequence[float], t: Tensor, s: Tensor) -> list[float]:
        """Integrals of the Lagrange polynomials in t over rho, by parts so that they stay finite where sigma = 0."""
        u, w = np.polynomial.legendre.leggauss(24)
        times = 0.5 * (float(t) + float(s)) + 0.5 * (float(s) - float(t)) * torch.from_numpy(u)
        rho = (sde.sigma(times) / sde.alpha(times)).numpy()
        ends = [float(sde.sigma(at) / sde.alpha(at)) for at in (t, s)]
        weights = []
        for j, node in enumerate(nodes):
            poly = np.polynomial.Polynomial([1.0])
            for k, other in enumerate(nodes):
                if k != j:
                    poly *= np.polynomial.Polynomial([-other, 1.0]) / (node - other)
            inner = 0.5 * (float(s) - float(t)) * float((w * rho * poly.deriv()(times.numpy())).sum())
            weights.append(float(ends[1] * poly(float(s)) - ends[0] * poly(float(t))) - inner)
        return weights


def check_order(order: int) -> None:
    """Refuse anything but 1, 2 and 3."""
    if order not in (1, 2, 3):
        raise ValueError(f"order={order}: choose 1, 2 or 3")


def half_log_snr(sde: GaussianSDE, t: Tensor) -> float:
    """lambda = log(alpha / sigma) at a single time; infinite where alpha or sigma is 0."""
    return 0.5 * float(sde.log_snr(t))


def remember(at: float, value: Tensor, state: History | None, length: int) -> History:
    """The history with one more evaluation, without those that no polynomial can use."""
    kept = [(a, v) for a, v in state or () if math.isfinite(a) and a != at]
    return ((at, value), *kept)[: length if math.isfinite(at) else 1]


def adams_weights(nodes: Sequence[float], here: float, there: float, rate: float = 1.0) -> list[float]:
    """Integrals of rate e^{rate (l - there)} times the Lagrange polynomials of `nodes`, l from here to there.

    Their sum is 1 - e^{rate (here - there)}; a single node stands for a constant, also where an end is infinite.
    """
    whole = -math.expm1(rate * (here - there))
    if len(nodes) == 1 or not (math.isfinite(here) and math.isfinite(there)):
        return [whole, *[0.0] * (len(nodes) - 1)]
    h = there - here
    u = (np.array(nodes) - here) / h
    powers = np.vander(u, increasing=True).T
    return [float(w) for w in np.linalg.solve(powers, _moments(rate * h, len(nodes)))]


def _moments(z: float, n: int) -> np.ndarray:
    """Integrals of z e^{-z (1 - u)} u^m over u in [0, 1], m = 0 .. n - 1."""
    if abs(z) > 1:
        found = [-math.expm1(-z)]
        for m in range(1, n):
            found.append(1 - m / z * found[-1])
        return np.array(found)
    # The recursion divides rounding errors by z; the series does not.
    return np.array(
        [
            sum((-1) ** j * z ** (j + 1) * math.factorial(m) / math.factorial(m + j + 1) for j in range(18))
            for m in range(n)
        ]
    )


def data_step(
    sde: GaussianSDE, x: Tensor, t: Tensor, s: Tensor, weights: Sequence[float], values: Sequence[Tensor]
) -> Tensor:
    """(sigma_s / sigma_t) x + alpha_s sum of weights times values."""
    alpha = float(sde.alpha(s))
    moved = expand(sde.sigma(s) / sde.sigma(t), x) * x
    for w, value in zip(weights, values, strict=True):
        if w != 0.0:
            moved.add_(value, alpha=alpha * w)  # its own tensor: fresh memory costs more than the sum
    return moved
