"""Forward processes: drift and diffusion, or two functions alpha(t) and sigma(t), and everything derived from them."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, batch_time, bisect, derivative, expand, of_time
from scorefield.diffusion import acts_by_entry, checked_diffusion, checked_drift, noise_shape, outer, spread_by, tame
from scorefield.dtypes import check_real
from scorefield.errors import ScorefieldWarning
from scorefield.prior import Prior
from scorefield.randomness import Noise, NoiseFn, Seed, source


class SDE(ABC):
    r"""Forward process dX = f(X, t) dt + G(X, t) dW on [0, T], in the sense of Ito (Song et al. 2021, App. A).

    A subclass gives `drift` and `diffusion`; with a = G G^T and (div a)_i = sum_j d a_ij / dx_j the reverse process and the
    probability flow follow from the score. A Stratonovich drift needs 1/2 sum (dG) G added first.

    What needs a Gaussian kernel (denoisers, exponential integrators, a nominal prior) is for `GaussianSDE` alone.

    Attributes:
        T: end time.
        t_min: where sampling stops by default.
        range: interval in which data is expected.
        tweedie: whether a model under it has E[x_0 | x_t], with which samplers may end.
        grid: the grid for solvers that would step evenly in log-SNR, where those steps are wasted at an end without signal.
    """

    T: ClassVar[float] = 1.0
    t_min: ClassVar[float] = 1e-3
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    tweedie: ClassVar[bool] = False
    grid: ClassVar[str | None] = None

    @abstractmethod
    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(x, t), like x (B, *); t is a float or (B,)."""

    @abstractmethod
    def diffusion(self, x: Tensor, t: Time) -> float | Tensor:
        """G(x, t): a number, one for each sample (B,), one for each entry (like x), or matrices (B, D, M), D entries of x."""

    def simulate(
        self,
        x0: Tensor,
        t: Time | None = None,
        steps: int = 400,
        seed: Seed = None,
        *,
        noise: NoiseFn | None = None,
        path: bool = False,
        milstein: bool = False,
        tamed: bool = False,
    ) -> Tensor:
        """X_t from x0 (B, *), forward in time in `steps` steps of Euler-Maruyama.

        Main arguments:
            t: end, T by default; a float, or one for each sample (B,).
            seed, noise: as in `scorefield.sample`. path: all states, (steps + 1, B, *), the first being x0.

        Other arguments:
            milstein: add 1/2 G G' (dW^2 - h), of strong order 1 (Kloeden & Platen 1992, eq. 10.3.1); for a diffusion that is a
                number or a tensor like x, each entry depending on its own entry of x.
            tamed: shorten what the drift does in a step to h f / (1 + h |f|) (Hutzenthaler et al. 2012, sec. 1), so that drifts
                that grow faster than x, such as x - x^3, do not run away; data of a spread of about one.

        Raises:
            ValueError: fewer than one step, times outside [0, T], or a drift or diffusion of a wrong shape.
        """
        end = batch_time(self.T if t is None else t, x0)
        if steps < 1 or not bool(((end >= 0) & (end <= self.T)).all()):
            raise ValueError(f"simulate to t={t} in {steps} steps: give at least one step and times in [0, {self.T}]")
        draws, h, x, states = source(seed, len(x0), noise), end / steps, x0, [x0]
        for i in range(steps):
            x = self._forward_step(x, i * h, h, draws, milstein, tamed)
            if path:
                states.append(x)
        lost = int((~torch.isfinite(x.flatten(1)).all(1)).sum()) if not x.is_meta else 0
        if lost:
            warnings.warn(
                f"{lost} of {len(x)} paths of {type(self).__name__} left the numbers for which its drift and diffusion are "
                f"defined: take more than steps={steps}, or tamed=True, and look at both where the process is near an edge",
                ScorefieldWarning,
                stacklevel=2,
            )
        return torch.stack(states) if path else x

    def reverse_drift(self, x: Tensor, t: Time, score: Tensor, noise: float = 1.0) -> Tensor:
        """Drift in forward time of the process with the same marginals whose noise is `noise` G and that runs backward, like x.

        f - (1 + noise^2) / 2 (div a + a score) (Song et al. 2021, eq. 6 and App. D.1): 1 is the reverse SDE, 0 the flow.
        """
        drift = checked_drift(self, x, t)
        spread = outer(checked_diffusion(self, x, t), score) + self.divergence(x, t)
        return drift - 0.5 * (1 + noise**2) * spread

    def velocity(self, x: Tensor, t: Time, score: Tensor) -> Tensor:
        """dx/dt of the probability flow (Song et al. 2021, eq. 37), like x."""
        return self.reverse_drift(x, t, score, 0.0)

    def divergence(self, x: Tensor, t: Time) -> Tensor:
        """div a, like x, by automatic differentiation: a derivative for each entry where G is a matrix or like x, none where
        it does not depend on x. Override it where a formula is known. Where x carries a graph, so does the result."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            live = x if keep else x.detach().requires_grad_()
            g = self.diffusion(live, t)
            if not isinstance(g, Tensor) or not g.requires_grad:
                return torch.zeros_like(x)
            if g.ndim < 2 and g.shape != x.shape:
                total = torch.square(g).sum()
                (slope,) = torch.autograd.grad(total, live, create_graph=keep, materialize_grads=True)
                return slope
        flat = (x if keep else x.detach()).flatten(1)

        def column(j: int, y: Tensor) -> Tensor:
            """The j-th column of a, (B, D), or its only entry there, (B,)."""
            g = self.diffusion(y.reshape(x.shape), t)
            assert isinstance(g, Tensor)
            return torch.square(g.flatten(1)[:, j]) if g.shape == x.shape else (g * g[:, j : j + 1]).sum(2)

        found = torch.zeros_like(flat)
        for j in range(flat.shape[1]):
            unit = torch.zeros_like(flat)
            unit[:, j] = 1
            moved = torch.func.jvp(lambda y, j=j: column(j, y), (flat,), (unit,))[1]
            if moved.ndim == 1:
                found[:, j] = moved
            else:
                found += moved
        return found.reshape(x.shape)

    def project(self, x: Tensor) -> Tensor:
        """x moved to where the process lives, like x: walls fold it back. Both loops call it after each step."""
        return x

    def check(self, x: Tensor, name: str = "data") -> None:  # noqa: B027 - most take any
        """Refuse data (B, *) from which the process cannot start.

        Raises:
            ValueError: it lies outside of the walls, where there are any.
        """

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t from x0 and standard-normal noise like it, where the kernel p(x_t | x_0) is known.

        Raises:
            ValueError: it is not.
        """
        raise ValueError(self._no_kernel())

    def noised(self, x_s: Tensor, s: Time, t: Time, noise: Noise) -> Tensor:
        """A draw from p(x_t | x_s), s < t, where the kernel is known.

        Raises:
            ValueError: it is not.
        """
        raise ValueError(
            f"the grid rises, where noise is added by a kernel that {type(self).__name__} has not; give times that only fall"
        )

    def kernel_score(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """grad log p(x_t | x_0) at x_t = x, like x, where the kernel is known.

        Raises:
            ValueError: it is not.
        """
        raise ValueError(self._no_kernel())

    def _no_kernel(self) -> str:
        return f"{type(self).__name__} has no kernel in closed form: train by sf.ssm_loss, which simulates the process"

    def prior(self, shape: Sequence[int]) -> Any:
        """The law of X_T for a batch of shape (B, *), where the process knows one.

        Raises:
            ValueError: it does not.
        """
        raise ValueError(
            f"{type(self).__name__} does not know the law of X_T: give prior=, an object with draw and log_prob, or a tensor "
            "of samples such as sde.simulate(x0)"
        )

    def _forward_step(
        self, x: Tensor, t: Tensor, h: Tensor, noise: Noise, milstein: bool, tamed: bool = False
    ) -> Tensor:
        g = checked_diffusion(self, x, t)
        move = expand(h, x) * checked_drift(self, x, t)
        ahead = x + (tame(move) if tamed else move)
        z = noise.normal(noise_shape(g, x), x.dtype, x.device)
        moved = ahead + expand(torch.sqrt(h), x) * spread_by(g, z, x)
        if milstein:
            if not acts_by_entry(g, x):
                raise ValueError("milstein=True needs a diffusion that is a number or like x, not a matrix")
            moved = moved + expand(0.25 * h, x) * self.divergence(x, t) * (torch.square(z) - 1)
        return moved


class GaussianSDE(SDE):
    r"""Forward process dx = f(t) x dt + g(t) dw whose kernel is p(x_t | x_0) = N(alpha(t) x_0, sigma(t)^2 I), t in [0, T].

    A subclass gives `alpha` and `sigma` as formulas in t, with torch operations or plain arithmetic: whatever t a caller
    gives, they receive a float64 tensor on the CPU, and what they return, be it a constant, becomes one of its shape. An
    alpha or sigma that is zero at an end of [0, T] but for the last bit, as cos(pi t / 2) at 1, is zero there. The rest follows
    from alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2 (Song et al. 2021, App. B), by automatic
    differentiation and bisection; a subclass overrides it only where a closed form is faster or more accurate.

    Attributes:
        T: end time.
        t_min: where sampling stops by default (Song et al. 2021, App. C).
        range: interval in which data is expected.
    """

    tweedie: ClassVar[bool] = True

    _ends_exactly: ClassVar[bool] = False
    """Whether alpha and sigma are known to be exactly 0 where they vanish, so that nothing needs to be looked for."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("alpha", "sigma"):
            if name in cls.__dict__:
                setattr(cls, name, of_time(cls.__dict__[name]))

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Factor on the data at time t; the shape of t, float64."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise at time t; the shape of t, float64."""

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """(alpha'(t), sigma'(t)), per unit of time."""
        time = as_time(t)
        return derivative(self.alpha, time), derivative(self.sigma, time)

    def f(self, t: Time) -> Tensor:
        """Drift rate f = alpha' / alpha, so that the drift is f(t) x; -inf where alpha = 0."""
        time = as_time(t)
        alpha = self.alpha(time)
        return torch.where(alpha == 0, -torch.inf, derivative(self.alpha, time) / alpha)

    def g2(self, t: Time) -> Tensor:
        """Squared diffusion coefficient g^2 = (sigma^2)' - 2 f sigma^2."""
        time = as_time(t)
        sigma = self.sigma(time)
        return 2 * sigma * (derivative(self.sigma, time) - self.f(time) * sigma)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """f(t) x, like x."""
        return expand(self.f(batch_time(t, x)), x) * x

    def diffusion(self, x: Tensor, t: Time) -> float | Tensor:
        """g(t), () or (B,), float64.

        Raises:
            ValueError: g^2 is negative, as sigma / alpha falls there.
        """
        time = batch_time(t, x)
        g2 = self.g2(time)
        if bool((g2 < -1e-9 * (1 + torch.square(self.sigma(time)))).any()):
            where = float(time.flatten()[int(g2.flatten().argmin())])
            raise ValueError(
                f"{type(self).__name__} has g^2 = {float(g2.min()):.3g} at t = {where:.3g}: sigma / alpha must rise with t, "
                "and no diffusion does what alpha and sigma say there"
            )
        return torch.sqrt(g2.clamp_min(0.0))

    def divergence(self, x: Tensor, t: Time) -> Tensor:
        """0: g does not depend on x."""
        return torch.zeros_like(x)

    def reverse_drift(self, x: Tensor, t: Time, score: Tensor, noise: float = 1.0) -> Tensor:
        time = batch_time(t, x)
        return expand(self.f(time), x) * x - expand(0.5 * (1 + noise**2) * self.g2(time), x) * score

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2), which decreases in t."""
        time = as_time(t)
        return 2 * (torch.log(self.alpha(time)) - torch.log(self.sigma(time)))

    def inverse_log_snr(self, log_snr: Time) -> Tensor:
        """The time at which `log_snr` takes the given value, by bisection; the shape of the argument."""
        return bisect(lambda t: -self.log_snr(t), -as_time(log_snr), self.T)

    def kernel(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (like x0) and standard deviation (broadcasts with x0) of p(x_t | x_0); t is a float or (B,)."""
        time = batch_time(t, x0)
        return expand(self.alpha(time), x0) * x0, expand(self.sigma(time), x0)

    def perturb(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """alpha x_0 + sigma noise, like x0."""
        time = batch_time(t, x0)
        return expand(self.alpha(time), x0) * x0 + expand(self.sigma(time), x0) * noise

    def kernel_score(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """(alpha x_0 - x) / sigma^2, like x."""
        time = batch_time(t, x)
        return expand(1 / self.sigma(time) ** 2, x) * (expand(self.alpha(time), x) * x0 - x)

    def transition_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """(a, v) of p(x_t | x_s) = N(a x_s, v I) for s <= t: a = alpha_t / alpha_s, v = sigma_t^2 - a^2 sigma_s^2."""
        early, late = as_time(s), as_time(t)
        same = early == late  # where alpha = 0 or sigma = 0 the quotients below would be 0 / 0
        a = torch.where(same, 1.0, self.alpha(late) / self.alpha(early))
        # expm1 of the difference of log-SNRs keeps all digits when s and t are close, where the plain difference loses them.
        v = -torch.square(self.sigma(late)) * torch.expm1(self.log_snr(late) - self.log_snr(early))
        return a, torch.where(same, 0.0, v.clamp_min(0.0))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (like x_s) and standard deviation (broadcasts with x_s) of p(x_t | x_s), s < t; floats or (B,).

        Raises:
            ValueError: some s is later than its t.
        """
        early, late = as_time(s), as_time(t)
        check_real(x_s, "x_s")
        if bool((early > late).any()):
            raise ValueError("transition(x_s, s, t) goes forward in time: s must not exceed t")
        a, v = self.transition_coefficients(early, late)
        return expand(a, x_s) * x_s, expand(torch.sqrt(v), x_s)

    def noised(self, x_s: Tensor, s: Time, t: Time, noise: Noise) -> Tensor:
        """A draw from p(x_t | x_s), s < t."""
        mean, std = self.transition(x_s, s, t)
        return mean + std * noise.like(x_s)

    def prior(self, shape: Sequence[int]) -> Prior:
        """The nominal prior N(0, sigma(T)^2 I) for a batch of shape (B, *)."""
        return Prior(tuple(shape), float(self.sigma(self.T)))
