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

from scorefield.coefficients import expand
from scorefield.randomness import Noise
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Field, Solver

History: TypeAlias = "tuple[tuple[float, Tensor], ...]"
"""(lambda, D) of the last evaluations, the latest first."""
REACH = 1.35
"""Found by trial over grids and problems; with 1.2 or 1.6 the worst case is several times worse."""


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
        mean, std = self.kernel(field, x, t, s)
        return (mean + std * noise.like(x) if self.eta > 0 else mean), None

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        sde = field.sde
        sigma_s, sigma_t = sde.sigma(s), sde.sigma(t)
        fresh = torch.zeros_like(sigma_s)
        if self.eta > 0:
            fresh = self.eta**2 * sde.transition_coefficients(s, t)[1] * torch.square(sigma_s / sigma_t)
        kept = torch.sqrt((sigma_s**2 - fresh).clamp_min(0.0)) / sigma_t
        gained = float(sde.alpha(s) - kept * sde.alpha(t))
        return (expand(kept, x) * x).add_(field.denoise(x, t), alpha=gained), expand(torch.sqrt(fresh), x)


@dataclass(frozen=True)
class _OfOrder(Solver):
    """What follows the flow by polynomials: order 1 (which is DDIM), 2 or 3."""

    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 20

    def __post_init__(self) -> None:
        check_order(self.order)

    @property
    def flow(self) -> bool:
        return True


@dataclass(frozen=True)
class DPMSolver(_OfOrder):
    """DPM-Solver++ multistep (Lu et al. 2022b, Alg. 2) for any Gaussian SDE; one evaluation a step.

    D is extrapolated from the last evaluations. Order 2 uses the paper's weights, which agree with those of the
    interpolating polynomial to its order; order 3 uses the polynomial's own. Order 3 makes its first step with one
    evaluation more, at the middle: a first step of order 1 would leave an error of order 2 at the end.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

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
class DPMSolverSingle(_OfOrder):
    """DPM-Solver++ single-step (Lu et al. 2022b, Alg. 1 and App. B): `order` evaluations a step, and no memory.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

    default_steps: ClassVar[int] = 10

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
class DEIS(_OfOrder):
    """DEIS (Zhang & Chen 2023, tAB-DEIS): the noise, interpolated in t, with exponential weights; one evaluation a step.

    x_s = (alpha_s / alpha_t) x_t + alpha_s integral from rho_t to rho_s of eps d rho,   rho = sigma / alpha

    Order 3 makes its first step with one evaluation more, at the middle, as `DPMSolver` does.

    Main arguments:
        order: 1 (which is DDIM), 2 or 3.
    """

    order: int = 3  # type: ignore[misc]

    grid: ClassVar[str] = "quadratic"

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


@dataclass(frozen=True)
class UniPC(_OfOrder):
    """UniPC (Zhao et al. 2023, Alg. 1, in data prediction) for any Gaussian SDE; one evaluation a step.

    The evaluation at t first corrects the state there, by the interpolating polynomial that includes it, and then
    predicts the state at s. The paper's B(h) cancels wherever its linear system has a full set of unknowns; where it has
    not, the paper sets one weight to 1/2, and here it is the polynomial's.

    A step that is longer than `REACH` times the mean of those it would extrapolate from uses fewer of them: that is what
    the paper's rule of lower orders for the last steps is for, and it does not need to know which step is the last.

    Main arguments:
        order: 1, 2 or 3, of the predictor; the corrector is one order higher.
    """

    order: int = 3  # type: ignore[misc]

    grid: ClassVar[str] = "quadratic"

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        sde = field.sde
        here, there = half_log_snr(sde, t), half_log_snr(sde, s)
        data = field.denoise(x, t)
        past: History = ()
        if state is not None:
            past, before, used = state
            x = self._corrected(x, float(sde.alpha(t)), here, data, past, before, used)
        history = remember(here, data, past, self.order)
        reached = _within_reach(history, there)
        weights = adams_weights([at for at, _ in reached], here, there)
        y = data_step(sde, x, t, s, weights, [d for _, d in reached])
        return y, (history, here, weights)

    def _corrected(
        self, x: Tensor, alpha: float, here: float, data: Tensor, past: History, before: float, used: list[float]
    ) -> Tensor:
        """x plus the difference between the corrector's and the predictor's sums, so that changes made by hooks stay."""
        if not (math.isfinite(here) and math.isfinite(before)):
            return x
        reached = past[: len(used)]
        weights = adams_weights([here, *(at for at, _ in reached)], before, here)
        x = torch.add(x, data, alpha=alpha * weights[0])
        for new, old, (_, value) in zip(weights[1:], used, reached, strict=True):
            x.add_(value, alpha=alpha * (new - old))
        return x


@dataclass(frozen=True)
class ExponentialSDE(Solver):
    r"""Exponential Adams-Bashforth for dx = [f x - (1 + c^2)/2 g^2 score] dt + c g dw; one evaluation a step.

    x_s = (sigma_s / sigma_t) e^{-c^2 h} x_t + alpha_s integral of (1 + c^2) e^{(1 + c^2)(l - lambda_s)} D(l) dl
          + sigma_s sqrt(1 - e^{-2 c^2 h}) z,   h = lambda_s - lambda_t

    Every strength c has the same marginals (Song et al. 2021, App. D.1); it is tau of SA-Solver (Xue et al. 2023, eq. 13).
    c = 0 is the probability flow, c = 1 the reverse SDE: SDE-DPM-Solver++ (Lu et al. 2022b, App. A) is order 1 or 2 at
    c = 1, and order 1 at c = 1 is ancestral sampling. Noise costs evaluations and repairs errors of the score.

    Main arguments:
        strength: c, not negative.
        order: 1, 2 or 3, of the extrapolation of D. With c = 0 it is the order of convergence; with noise, D moves with the
            path, the weak order is 1, and more points lower the error's constant.
    """

    strength: float = 1.0
    order: int = 2  # type: ignore[misc]

    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 50

    def __post_init__(self) -> None:
        check_order(self.order)
        if not 0 <= self.strength < math.inf:
            raise ValueError(f"strength={self.strength}: the strength of the noise is a number from 0 up")

    @property
    def flow(self) -> bool:
        return self.strength == 0

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        mean, spread, history = self._moved(field, x, t, s, state)
        return (mean if spread is None else mean + expand(spread, x) * noise.like(x)), history

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if self.order != 1:
            return super().kernel(field, x, t, s)
        mean, spread, _ = self._moved(field, x, t, s, None)
        return mean, expand(torch.zeros_like(s) if spread is None else spread, x)

    def _moved(
        self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any
    ) -> tuple[Tensor, Tensor | None, History]:
        """The mean, the standard deviation where there is noise, and the evaluations to remember."""
        sde, c2 = field.sde, self.strength**2
        here, there = half_log_snr(sde, t), half_log_snr(sde, s)
        history = remember(here, field.denoise(x, t), state, self.order)
        weights = adams_weights([at for at, _ in history], here, there, 1 + c2)
        h, alpha = there - here, float(sde.alpha(s))
        moved = expand(sde.sigma(s) / sde.sigma(t) * (math.exp(-c2 * h) if c2 else 1.0), x) * x
        for w, (_, data) in zip(weights, history, strict=True):
            moved = torch.add(moved, data, alpha=alpha * w)
        spread = sde.sigma(s) * math.sqrt(-math.expm1(-2 * c2 * h)) if c2 and h > 0 else None
        return moved, spread, history


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


def _within_reach(history: History, there: float) -> History:
    """The evaluations that a step to `there` may extrapolate from."""
    here = history[0][0]
    k = len(history)
    while k > 1 and abs(there - here) * (k - 1) > REACH * abs(here - history[k - 1][0]):
        k -= 1
    return history[:k]
