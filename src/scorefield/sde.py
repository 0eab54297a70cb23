"""Gaussian forward processes: two functions alpha(t) and sigma(t), and everything derived from them."""

from __future__ import annotations

import functools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from scorefield.dtypes import check_real, onto
from scorefield.errors import ScorefieldWarning
from scorefield.prior import Prior
from scorefield.randomness import Noise, Seed, source

Time: TypeAlias = "float | Tensor"


def as_time(t: Time) -> Tensor:
    """t as a float64 tensor on the CPU, where all coefficients are computed; one on another device is read back."""
    if isinstance(t, Tensor):
        return t if t.dtype is torch.float64 and t.is_cpu else t.cpu().to(torch.float64)
    return torch.tensor(float(t), dtype=torch.float64, device="cpu")


def batch_time(t: Time, x: Tensor) -> Tensor:
    """t for a batch of states x of shape (B, *): float64 on the CPU, of shape () or (B,).

    Raises:
        ValueError: any other shape, or states that are not real floating-point numbers.
    """
    check_real(x)
    time = as_time(t)
    if time.ndim > 1 or (time.ndim == 1 and time.shape[0] != x.shape[0]):
        raise ValueError(f"t has shape {tuple(time.shape)} but x has batch size {x.shape[0]}; give a float or (B,)")
    return time


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Coefficient of shape () or (B,) in the dtype of x, shaped to multiply x of shape (B, *).

    One of shape () stays where it is: on the CPU it mixes with tensors of every device.
    """
    if c.ndim == 0:
        return c.to(x.dtype)
    return onto(c, x).reshape(-1, *[1] * (x.ndim - 1))


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
        path: bool = False,
        milstein: bool = False,
        tamed: bool = False,
    ) -> Tensor:
        """X_t from x0 (B, *), forward in time in `steps` steps of Euler-Maruyama.

        Main arguments:
            t: end, T by default; a float, or one for each sample (B,).
            seed: as in `scorefield.sample`. path: all states, (steps + 1, B, *), the first being x0.

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
        noise, h, x, states = source(seed, len(x0)), end / steps, x0, [x0]
        for i in range(steps):
            x = self._forward_step(x, i * h, h, noise, milstein, tamed)
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
            if not _like(g, x):
                raise ValueError("milstein=True needs a diffusion that is a number or like x, not a matrix")
            moved = moved + expand(0.25 * h, x) * self.divergence(x, t) * (torch.square(z) - 1)
        return moved


def tame(move: Tensor, reach: float = 1.0) -> Tensor:
    """What a drift does in one step, like x, made shorter than `reach`: move / (1 + |move| / reach).

    |move| is that of one entry, the root mean square of a sample's, so that `reach` means the same in all dimensions
    (Hutzenthaler, Jentzen & Kloeden 2012, sec. 1, where `reach` is 1 over the Euclidean norm).
    """
    size = move.flatten(1).square().mean(1).sqrt() / reach
    return move / (1 + size).reshape(-1, *[1] * (move.ndim - 1))


def _like(g: float | Tensor, x: Tensor) -> bool:
    """Whether a diffusion acts on every entry of x by itself."""
    return not isinstance(g, Tensor) or g.ndim < 2 or g.shape == x.shape


def noise_shape(g: float | Tensor, x: Tensor) -> tuple[int, ...]:
    """Shape of the noise that a diffusion spreads: that of x, or (B, M) for matrices (B, D, M)."""
    return tuple(x.shape) if _like(g, x) or not isinstance(g, Tensor) else (x.shape[0], g.shape[2])


def spread_by(g: float | Tensor, z: Tensor, x: Tensor) -> Tensor:
    """G z, like x, for a diffusion as `SDE.diffusion` returns it and noise like x, or (B, M) for matrices (B, D, M)."""
    if not isinstance(g, Tensor):
        return g * z
    if g.shape == x.shape:
        return g * z
    if g.ndim < 2:
        return expand(g, x) * z
    return torch.einsum("bdm,bm->bd", g, z.flatten(1)).reshape(x.shape)


def outer(g: float | Tensor, v: Tensor) -> Tensor:
    """G G^T v, like v (B, *)."""
    if not isinstance(g, Tensor):
        return g**2 * v
    if g.shape == v.shape:
        return torch.square(g) * v
    if g.ndim < 2:
        return expand(torch.square(g), v) * v
    return torch.einsum("bdm,bem,be->bd", g, g, v.flatten(1)).reshape(v.shape)


def checked_drift(sde: SDE, x: Tensor, t: Time) -> Tensor:
    """The drift, like x.

    Raises:
        ValueError: the process returns another shape, or something else than real floating-point numbers.
    """
    f = sde.drift(x, t)
    if isinstance(f, Tensor) and not f.is_floating_point():
        raise ValueError(f"{type(sde).__name__}.drift returned {f.dtype}; return real floating-point numbers")
    if not isinstance(f, Tensor) or f.shape != x.shape:
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(
            f"{type(sde).__name__}.drift returned {got} for x of shape {tuple(x.shape)}; return a tensor like x"
        )
    return f


def checked_diffusion(sde: SDE, x: Tensor, t: Time) -> float | Tensor:
    """The diffusion: a number, (B,), like x, or (B, D, M).

    Raises:
        ValueError: the process returns another shape, a number that is negative or not finite, or complex numbers.
    """
    g = sde.diffusion(x, t)
    if not isinstance(g, Tensor):
        if not isinstance(g, (int, float)):
            raise ValueError(f"{type(sde).__name__}.diffusion returned {type(g).__name__}; return a number or a tensor")
        if not 0 <= g < math.inf:
            raise ValueError(f"{type(sde).__name__}.diffusion returned {g}; return 0 or a positive number, or a tensor")
        return float(g)
    if not g.is_floating_point():
        raise ValueError(f"{type(sde).__name__}.diffusion returned {g.dtype}; return real floating-point numbers")
    b, d = len(x), math.prod(x.shape[1:])
    if g.shape in ((), (b,), x.shape) or (g.ndim == 3 and g.shape[:2] == (b, d)):
        return g
    raise ValueError(
        f"{type(sde).__name__}.diffusion returned shape {tuple(g.shape)} for x of shape {tuple(x.shape)}; return a number, "
        f"({b},), {tuple(x.shape)} or ({b}, {d}, M)"
    )


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
                setattr(cls, name, _of_time(cls.__dict__[name]))

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Factor on the data at time t; the shape of t, float64."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise at time t; the shape of t, float64."""

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """(alpha'(t), sigma'(t)), per unit of time."""
        time = as_time(t)
        return _derivative(self.alpha, time), _derivative(self.sigma, time)

    def f(self, t: Time) -> Tensor:
        """Drift rate f = alpha' / alpha, so that the drift is f(t) x; -inf where alpha = 0."""
        time = as_time(t)
        alpha = self.alpha(time)
        return torch.where(alpha == 0, -torch.inf, _derivative(self.alpha, time) / alpha)

    def g2(self, t: Time) -> Tensor:
        """Squared diffusion coefficient g^2 = (sigma^2)' - 2 f sigma^2."""
        time = as_time(t)
        sigma = self.sigma(time)
        return 2 * sigma * (_derivative(self.sigma, time) - self.f(time) * sigma)

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
        target = as_time(log_snr)
        low, high = torch.zeros_like(target), torch.full_like(target, self.T)
        for _ in range(64):  # T / 2^64: all digits of any time above 1e-5 T
            middle = 0.5 * (low + high)
            later = self.log_snr(middle) > target
            low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return 0.5 * (low + high)

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


END = 4 * torch.finfo(torch.float64).eps
"""Share of T within which a time counts as an end of [0, T]."""


def _of_time(formula: Callable[[Any, Tensor], Any]) -> Callable[[Any, Time], Tensor]:
    """A user's formula as a function from any time to a float64 tensor of its shape, exactly zero where it vanishes."""

    @functools.wraps(formula)
    def method(self: Any, t: Time) -> Tensor:
        time = as_time(t)
        value = _evaluate(formula, self, time)
        low, high = END * self.T, (1 - END) * self.T
        if self._ends_exactly or _inside(time, low, high):
            return value
        # Numerical zero is zero: what changes by half of itself over some roundings of t is nothing but rounding. Its
        # slope is kept. The test is relative, so that a small constant and the tail of an exponential stay as they are.
        size, inside = value.detach(), _evaluate(formula, self, time.detach().clamp(16 * low, self.T - 16 * low))
        nothing = ((time <= low) | (time >= high)) & (size.abs() < 1e-6) & ((inside - size).abs() > 0.5 * size.abs())
        return torch.where(nothing, value - size, value)

    return method


def _inside(time: Tensor, low: float, high: float) -> bool:
    if time.ndim == 0:  # the common case, without two launches more
        return low < float(time) < high
    return time.numel() == 0 or low < float(time.min()) <= float(time.max()) < high


def _evaluate(formula: Callable[[Any, Tensor], Any], sde: Any, time: Tensor) -> Tensor:
    try:
        value = formula(sde, time)
        if isinstance(value, Tensor):
            return (
                value if value.shape == time.shape and value.dtype is time.dtype else value.to(time).expand(time.shape)
            )
        # A function of math turns a tensor of one entry into a number, which would pass for a constant.
        formula(sde, torch.tensor([0.25, 0.75], dtype=torch.float64, device="cpu") * sde.T)
    except (TypeError, ValueError, RuntimeError) as error:
        if not any(sign in str(error) for sign in ("to Python scalar", "to Scalar", "have storage")):
            raise
        name = f"{type(sde).__name__}.{getattr(formula, '__name__', 'alpha')}"
        raise ValueError(f"{name}(t): t is a tensor; use functions of torch, as torch.cos(t) for math.cos(t)") from None
    return torch.full_like(time, float(value))


def _derivative(function: Callable[[Time], Tensor], t: Tensor) -> Tensor:
    """d function / dt for an elementwise function; zero where it does not depend on t."""
    t = t.contiguous()  # torch.func.jvp wants memory of its own for every entry
    slope: Tensor = torch.func.jvp(lambda u: torch.as_tensor(function(u)) + 0 * u, (t,), (torch.ones_like(t),))[1]
    return slope
