"""Processes pinned at both ends: Brownian and mean-reverting bridges, and that of paired restoration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.dtypes import check_batch
from scorefield.sde import SDE


@dataclass(frozen=True)
class Bridge(SDE):
    r"""dX = -a X dt + sigma dW on [0, 1], pinned at X_0 = x_0 (the data) and X_1 = x_1 (what it became).

    With S(u) = sinh(a u) / a, which is u for a = 0,

        p(x_t | x_0, x_1) = N((S(1 - t) x_0 + S(t) x_1) / S(1), sigma^2 S(t) S(1 - t) / S(1))

    (Shi et al. 2023, eq. 3 for Brownian references; Liu et al. 2023, eq. 11).

    Main arguments:
        sigma: diffusion of the reference process, in units of the data per square root of time.
        reversion: a, its rate towards 0; 0 is Brownian motion, 1/2 the VP reference in the time of its noise.

    Raises:
        ValueError: sigma is not positive, or a rate is negative.
    """

    sigma: float = 1.0
    reversion: float = 0.0

    T: ClassVar[float] = 1.0
    t_min: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.reversion >= 0 and math.isfinite(self.sigma + self.reversion)):
            raise ValueError(f"sigma={self.sigma}, reversion={self.reversion}: give sigma > 0 and a rate from 0 up")

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Drift of the reference process, like x."""
        return -self.reversion * x

    def diffusion(self, x: Tensor, t: Time) -> float:
        """Diffusion of the reference process."""
        return self.sigma

    def clock(self, t: Time) -> tuple[Tensor, Tensor]:
        """(forward, backward): sigma^2 S(t) and sigma^2 S(1 - t), float64 and of the shape of t."""
        time = as_time(t)
        return self.sigma**2 * self._span(time), self.sigma**2 * self._span(1 - time)

    def kernel(self, x0: Tensor, x1: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (like x0) and standard deviation (broadcasts with x0) of p(x_t | x_0, x_1); t is a float or (B,)."""
        same_shape(x0, x1)
        forward, backward = self.clock(batch_time(t, x0))
        both = self._whole(forward, backward)
        mean = expand(backward / both, x0) * x0 + expand(forward / both, x0) * x1
        return mean, expand(torch.sqrt(forward * backward / both), x0)

    def posterior(self, x_t: Tensor, x0: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x_s | x_0, x_t) for s <= t: the bridge from x_0 to x_t (Liu et al. 2023, eq. 4).

        Raises:
            ValueError: some s is later than its t.
        """
        same_shape(x_t, x0)
        early, late = batch_time(s, x_t), batch_time(t, x_t)
        if bool((early > late).any()):
            raise ValueError("posterior(x_t, x0, s, t) goes back in time: s must not exceed t")
        to_s, to_t, between = self.passed(early), self.passed(late), self._between(early, late)
        at_zero = to_t == 0  # t = s = 0: x_t is x_0
        share = torch.where(at_zero, 1.0, to_s / torch.where(at_zero, 1.0, to_t))
        left = torch.where(at_zero, 0.0, between / torch.where(at_zero, 1.0, to_t))
        return expand(left, x_t) * x0 + expand(share, x_t) * x_t, expand(torch.sqrt(share * between), x_t)

    def passed(self, t: Time) -> Tensor:
        """sigma^2 S(t): for a Brownian reference the variance passed by time t."""
        return self.clock(t)[0]

    def forward_drift(self, x: Tensor, x1: Tensor, t: Time) -> Tensor:
        """Drift of the bridge towards x_1, forward in time: (x_1 - cosh(a u) x) / S(u), u = 1 - t."""
        left = 1 - batch_time(t, x)
        return expand(1 / self._span(left), x) * (x1 - expand(torch.cosh(self.reversion * left), x) * x)

    def backward_drift(self, x: Tensor, x0: Tensor, t: Time) -> Tensor:
        """Drift of the bridge towards x_0, per unit of time that runs backward: (x_0 - cosh(a t) x) / S(t)."""
        time = batch_time(t, x)
        return expand(1 / self._span(time), x) * (x0 - expand(torch.cosh(self.reversion * time), x) * x)

    def _span(self, u: Tensor) -> Tensor:
        return torch.sinh(self.reversion * u) / self.reversion if self.reversion else u

    def _between(self, s: Tensor, t: Tensor) -> Tensor:
        return self.sigma**2 * self._span(t - s)

    def _whole(self, forward: Tensor, backward: Tensor) -> Tensor:
        return self.passed(torch.ones_like(forward))


@dataclass(frozen=True)
class I2SB(Bridge):
    r"""The bridge of image-to-image restoration, with small noise at both ends (Liu et al. 2023, sec. 3.3).

    A table of `steps` variances, the squares of a linear ramp from 1e-4^(1/2) to (beta_max / steps)^(1/2) and back; time
    i / (steps - 1) is entry i. As in the reference implementation the variance before entry i includes it and so does the
    one after it, so that entry 0 is one step away from the data.

    Main arguments:
        steps: length of the table. beta_max: the largest rate, per unit of time.
    """

    steps: int = 1000
    beta_max: float = 0.3

    def __post_init__(self) -> None:
        if self.steps < 2 or not 0 < self.beta_max < math.inf:
            raise ValueError(f"steps={self.steps}, beta_max={self.beta_max}: give at least 2 steps and a positive rate")

    def betas(self) -> Tensor:
        """The table, (steps,), float64."""
        ends = math.sqrt(1e-4), math.sqrt(self.beta_max / self.steps)
        ramp = torch.linspace(*ends, self.steps, dtype=torch.float64, device="cpu") ** 2
        half = ramp[: self.steps // 2]
        middle = ramp[self.steps // 2 : self.steps // 2 + self.steps % 2]
        return torch.cat([half, middle, half.flip(0)])

    def clock(self, t: Time) -> tuple[Tensor, Tensor]:
        betas = self.betas()
        return _read_table(betas.cumsum(0), t), _read_table(betas.flip(0).cumsum(0).flip(0), t)

    def diffusion(self, x: Tensor, t: Time) -> Any:
        """Root of the variance per unit of time, (B,) or ()."""
        return torch.sqrt(_read_table(self.betas(), t) * (self.steps - 1))

    def _between(self, s: Tensor, t: Tensor) -> Tensor:
        return self.passed(t) - self.passed(s)

    def _whole(self, forward: Tensor, backward: Tensor) -> Tensor:
        return forward + backward


def _read_table(values: Tensor, t: Time) -> Tensor:
    """Entries of a table at times in [0, 1], linear in between."""
    position = as_time(t) * (len(values) - 1)
    low = position.floor().clamp(0, len(values) - 2).long()
    share = position - low
    return values[low] * (1 - share) + values[low + 1] * share


def end_of_path(x1: Any, x: Tensor) -> Tensor:
    """x_1 as a network is shown it, one row for each state x (B, *).

    Raises:
        ValueError: it is missing, or of another shape.
    """
    if not isinstance(x1, Tensor) or x1.shape != x.shape:
        got = "none" if x1 is None else tuple(x1.shape) if isinstance(x1, Tensor) else type(x1).__name__
        raise ValueError(
            f"this model sees the end of the path: give x1=, one row for each sample; it is {got} for states of shape "
            f"{tuple(x.shape)}"
        )
    return x1


def same_shape(a: Tensor, b: Tensor) -> None:
    """Refuse ends of different shapes.

    Raises:
        ValueError: they differ, or are no batches of real numbers.
    """
    check_batch(a, "the first end")
    check_batch(b, "the second end")
    if a.shape != b.shape:
        raise ValueError(
            f"the two ends have shapes {tuple(a.shape)} and {tuple(b.shape)}; give pairs of the same shape"
        )


def asked(model: Any, x: Tensor, t: Time, x1: Any, cond: dict[str, Any], channels: int = 1) -> Tensor:
    """What the network of a model between two ends says at x (B, C, *), (B, channels C, *), in the dtype of x.

    Raises:
        ValueError: no end where the network sees it, or an answer of another shape.
    """
    if model.sees_end:
        cond = cond | {"x1": end_of_path(x1, x)}
    dtype = model.dtype if any(True for _ in model.parameters()) else x.dtype
    time = batch_time(t, x).to(device=x.device, dtype=dtype).expand(len(x))
    y: Tensor = model.net(x.to(dtype), time, **cond)
    if y.shape != (len(x), channels * x.shape[1], *x.shape[2:]):
        right = "" if channels == 1 else "; return twice the channels"
        raise ValueError(f"the network returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}{right}")
    return y.to(x.dtype)
