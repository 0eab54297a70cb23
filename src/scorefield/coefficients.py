"""Coefficients: functions of time, float64 on the CPU, and how they meet states on other devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from scorefield.dtypes import check_real, onto
from scorefield.inputs import tensor_of

Time: TypeAlias = "float | Tensor"


def as_time(t: Time) -> Tensor:
    """t as a float64 tensor on the CPU, where all coefficients are computed; one on another device is read back.

    Raises:
        ValueError: it holds no numbers.
    """
    if isinstance(t, Tensor):
        if t.dtype is torch.float64 and t.is_cpu:
            return t
        if t.is_meta or t.is_complex():
            raise ValueError(f"t is a tensor of {t.dtype} on {t.device}; give times as real numbers")
        return t.cpu().to(torch.float64)
    try:
        return torch.tensor(float(t), dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):  # arrays and lists
        return as_time(tensor_of(t, "t").cpu())


def batch_time(t: Time, x: Tensor) -> Tensor:
    """t for a batch of states x of shape (B, *): float64 on the CPU, of shape () or (B,).

    Raises:
        ValueError: any other shape, or states that are not real floating-point numbers.
    """
    check_real(x)
    if x.ndim == 0:
        raise ValueError("x has shape (); give a batch (B, *), one item being (1, *)")
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


END = 4 * torch.finfo(torch.float64).eps


"""Share of T within which a time counts as an end of [0, T]."""


def of_time(formula: Callable[[Any, Tensor], Any]) -> Callable[[Any, Time], Tensor]:
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
        return low < float(time.detach()) < high
    time = time.detach()  # autograd warns of numbers that are read
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


def derivative(function: Callable[[Time], Tensor], t: Tensor) -> Tensor:
    """d function / dt for an elementwise function; zero where it does not depend on t."""

    def curve(u: Tensor) -> Tensor:
        return torch.as_tensor(function(u)) + 0 * u

    # Reverse mode takes a sixth of the time of forward mode, which handles every constant of a formula by itself. It has no
    # number where a branch that torch.where left out has none: there, and at a true pole, forward mode decides.
    value, pull = torch.func.vjp(curve, t)[:2]
    slope: Tensor = pull(torch.ones_like(value))[0]
    if not bool(torch.isfinite(slope.detach()).all()):
        t = t.contiguous()  # torch.func.jvp wants memory of its own for every entry
        slope = torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]
    return slope


def bisect(rising: Callable[[Tensor], Tensor], value: Tensor, end: float) -> Tensor:
    """Where a rising function of times in [0, end] takes given values; of their shape."""
    low, high = torch.zeros_like(value), torch.full_like(value, end)
    for _ in range(64):  # end / 2^64: all digits of any time above 1e-5 of the end
        middle = 0.5 * (low + high)
        before = rising(middle) < value
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return 0.5 * (low + high)
