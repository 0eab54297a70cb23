"""Processes pinned at both ends: Brownian and mean-reverting bridges, paired restoration, Schrodinger bridges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from scorefield.minimize import minimize
from scorefield.model import ScoreModel, View
from scorefield.randomness import Noise, generator
from scorefield.sde import SDE, Time, as_time, batch_time, expand
from scorefield.solve.integrate import Field, Solver

Draw: TypeAlias = "Callable[[int, torch.Generator], Tensor]"


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
        _same_shape(x0, x1)
        forward, backward = self.clock(batch_time(t, x0))
        both = self._whole(forward, backward)
        mean = expand(backward / both, x0) * x0 + expand(forward / both, x0) * x1
        return mean, expand(torch.sqrt(forward * backward / both), x0)

    def posterior(self, x_t: Tensor, x0: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of p(x_s | x_0, x_t) for s <= t: the bridge from x_0 to x_t (Liu et al. 2023, eq. 4).

        Raises:
            ValueError: some s is later than its t.
        """
        _same_shape(x_t, x0)
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
        if self.steps < 2 or not self.beta_max > 0:
            raise ValueError(f"steps={self.steps}, beta_max={self.beta_max}: give at least 2 steps and a positive rate")

    def betas(self) -> Tensor:
        """The table, (steps,), float64."""
        ends = math.sqrt(1e-4), math.sqrt(self.beta_max / self.steps)
        ramp = torch.linspace(*ends, self.steps, dtype=torch.float64) ** 2
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


class BridgeModel(ScoreModel):
    r"""A network that knows, at x_t of a bridge, where the path came from: E[x_0 | x_t], also given x_1.

    The network predicts (x_t - x_0) / (variance passed by t)^(1/2) (Liu et al. 2023, eq. 12). Where it does not see x_1, the
    chain it drives has the right marginal law of x_0 but the wrong law of x_0 given x_1; so it does by default.

    Main arguments:
        net: called as net(x, t, x1=x1, **cond), or without x1 where `sees_end` is False; returns a tensor like x.
        bridge: the process. shape: event shape.
        sees_end: whether the network is shown x_1.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        bridge: Bridge,
        *,
        shape: Sequence[int] | None = None,
        sees_end: bool = True,
    ) -> None:
        super().__init__(net, bridge, "data", shape=shape)
        self.bridge = bridge
        self.sees_end = sees_end

    def offset(self, x: Tensor, t: Time, *, x1: Tensor | None = None, **cond: Any) -> Tensor:
        """What the network says: E[x_t - x_0 | x_t] over its scale, like x."""
        if self.sees_end:
            if x1 is None:
                raise ValueError("this bridge model sees the end of the path: give x1=, one row for each sample")
            cond = cond | {"x1": x1}
        dtype = self.dtype if any(True for _ in self.parameters()) else x.dtype
        time = batch_time(t, x).to(device=x.device, dtype=dtype).expand(len(x))
        y: Tensor = self.net(x.to(dtype), time, **cond)
        if y.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}")
        return y.to(x.dtype)

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """E[x_0 | x_t] for "denoise"; no other view exists without the law of the other end.

        Raises:
            ValueError: another view.
        """
        if name != "denoise":
            raise ValueError(f"a bridge model has no {name}: sample it with sf.bridge.BridgeAncestral()")
        scale = torch.sqrt(self.bridge.passed(batch_time(t, x)))
        return x - expand(scale, x) * self.offset(x, t, **cond)


def bridge_loss(
    model: BridgeModel,
    x0: Tensor,
    x1: Tensor,
    *,
    mask: Tensor | None = None,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    deterministic: bool = False,
    **cond: Any,
) -> Tensor:
    """|| net(x_t, t) - (x_t - x_0) / std(t) ||^2 for pairs of clean x_0 and degraded x_1 (Liu et al. 2023, eq. 12), (B,).

    Main arguments:
        x0, x1: pairs, (B, *). mask: where the loss counts, broadcasts with x0; for inpainting the hole.
        seed: an int or a generator for times and noise.

    Other arguments:
        t: times, a float or (B,). noise: like x0. deterministic: the bridge without noise ("OT-ODE").

    Raises:
        ValueError: x0 and x1 of different shapes, or integers.
    """
    _same_shape(x0, x1)
    if not x0.is_floating_point():
        raise ValueError(f"x0 has dtype {x0.dtype}; give data in floating point")
    draws = generator(seed)
    if t is None:
        t = torch.rand(len(x0), generator=draws, dtype=torch.float64).clamp_min(1e-3)
    mean, std = model.bridge.kernel(x0, x1, t)
    if deterministic:
        x = mean
    else:
        z = torch.randn(x0.shape, generator=draws, dtype=x0.dtype).to(x0.device) if noise is None else noise
        x = mean + std * z
    seen = {"x1": x1} if model.sees_end else {}
    target = (x - x0) / expand(torch.sqrt(model.bridge.passed(batch_time(t, x0))), x0)
    error = torch.square(model.offset(x, t, **seen, **cond) - target)
    return (error if mask is None else error * mask).flatten(1).sum(1)


@dataclass(frozen=True)
class BridgeAncestral(Solver):
    """x_s drawn from p(x_s | x_0, x_t) with the denoised estimate for x_0 (Liu et al. 2023, Alg. 1); one evaluation a step.

    Start it at x_1: sf.sample(model, n, BridgeAncestral(), x_init=x1, x1=x1).

    Main arguments:
        deterministic: the mean alone, as for a bridge that was trained without noise.
    """

    deterministic: bool = False

    order: ClassVar[float] = 1
    default_steps: ClassVar[int] = 100
    denoises: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        bridge: Any = field.sde
        mean, std = bridge.posterior(x, field.denoise(x, t), s, t)
        return mean if self.deterministic else mean + std * noise.like(x), None


# Schrodinger bridges


def gaussian_bridge(a: Tensor, b: Tensor, sigma: float = 1.0) -> Tensor:
    r"""Cov(x_0, x_1) of the Schrodinger bridge between N(m_0, A) and N(m_1, B), reference sigma W (Bunne et al. 2023, Thm. 3).

    C = 1/2 (A^{1/2} (4 A^{1/2} B A^{1/2} + sigma^4 I)^{1/2} A^{-1/2} - sigma^2 I), the coupling of entropic optimal
    transport with cost |x - y|^2 / 2 and regularisation sigma^2. The bridge has the marginal covariance
    (1 - t)^2 A + t^2 B + t (1 - t) (C + C^T) + sigma^2 t (1 - t) I.

    Main arguments:
        a, b: covariances (D, D), positive definite; the result is float64.

    Raises:
        ValueError: matrices of other shapes, not symmetric, or not positive definite.
    """
    one, two = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if one.ndim != 2 or one.shape != two.shape or one.shape[0] != one.shape[1]:
        raise ValueError(f"a has shape {tuple(one.shape)} and b {tuple(two.shape)}; give two covariances (D, D)")
    root, inverse = _root(one, "a")
    _root(two, "b")
    eye = torch.eye(len(one), dtype=torch.float64)
    middle = _root(4 * root @ two @ root + sigma**4 * eye, "a and b")[0]
    return 0.5 * (root @ middle @ inverse - sigma**2 * eye)


def _root(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Square root and its inverse."""
    if not torch.allclose(matrix, matrix.mT, rtol=1e-8, atol=1e-10):
        raise ValueError(f"{name}: a covariance is symmetric")
    values, basis = torch.linalg.eigh(matrix)
    if not bool((values > 0).all()):
        raise ValueError(
            f"{name}: the covariance must be positive definite; its smallest eigenvalue is {values[0]:.3g}"
        )
    return (basis * values.sqrt()) @ basis.mT, (basis / values.sqrt()) @ basis.mT


def markovian_projection(a: float, b: float, c: float, sigma: float = 1.0, nodes: int = 64) -> float:
    r"""One round of iterative Markovian fitting for N(., a), N(., b) in one dimension: Cov(x_0, x_1) after, from c before.

    c' = a exp(integral over [0, 1] of (c (1 - 2 t) + t b - (1 - t) a - sigma^2 t) / Sigma_t dt), Sigma_t the marginal variance
    (Shi et al. 2023, sec. 3). Its fixed point is `gaussian_bridge`.
    """
    import numpy as np

    u, w = np.polynomial.legendre.leggauss(nodes)
    t = 0.5 * (u + 1)
    spread = (1 - t) ** 2 * a + t**2 * b + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
    slope = (c * (1 - 2 * t) + t * b - (1 - t) * a - sigma**2 * t) / spread
    return float(a * np.exp(0.5 * (w * slope).sum()))


@dataclass
class SchrodingerBridge:
    """A pair of drift networks that carry samples of either end to the other.

    Attributes:
        forward, backward: drift networks net(x, t) -> like x, t (B,) in [0, 1], each per unit of its own running time.
        bridge: the reference. pairs: simulated (x_0, x_1) of the last round.
        history: one entry for each round, (direction, mean loss).
    """

    forward: nn.Module
    backward: nn.Module
    bridge: Bridge
    pairs: tuple[Tensor, Tensor]
    history: list[tuple[str, float]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"SchrodingerBridge({self.bridge}, rounds={len(self.history)})"

    @torch.no_grad()
    def transport(
        self, x: Tensor, direction: Literal["forward", "backward"] = "forward", steps: int = 30, seed: int | None = None
    ) -> Tensor:
        """Euler-Maruyama from one end to the other, like x (Shi et al. 2023, Alg. 1)."""
        net = self.forward if direction == "forward" else self.backward
        return _simulate(net, x, self.bridge.sigma, steps, generator(seed), direction == "backward")


def _simulate(net: nn.Module, x: Tensor, sigma: float, steps: int, draws: torch.Generator, backward: bool) -> Tensor:
    h = 1.0 / steps
    for i in range(steps):
        t = 1 - i * h if backward else i * h
        z = torch.randn(x.shape, generator=draws, dtype=x.dtype).to(x.device)
        x = x + h * net(x, x.new_full((len(x),), t)) + sigma * math.sqrt(h) * z
    return x


def schrodinger_bridge(
    sample0: Draw,
    sample1: Draw,
    nets: tuple[nn.Module, nn.Module],
    sigma: float = 1.0,
    *,
    rounds: int = 6,
    start: Literal["independent", "reference"] = "independent",
    train_steps: int = 900,
    pairs: int = 10_000,
    batch: int = 512,
    steps: int = 30,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> SchrodingerBridge:
    r"""Diffusion Schrodinger bridge matching (Shi et al. 2023, Alg. 1): iterative Markovian fitting between two samplers.

    Rounds alternate between the backward and the forward drift. Each regresses the drift of bridges between the pairs of the
    round before, and its own simulation makes the pairs of the next; so each end is exact once in two rounds. Started from
    the reference process it is iterative proportional fitting, whose means take more rounds. The regression is weighted by the
    squared time that is left, without which its target blows up.

    Main arguments:
        sample0, sample1: sample(n, generator) -> (n, *), the two laws.
        nets: forward and backward drift, net(x, t) -> like x. sigma: diffusion of the Brownian reference.
        rounds: number of regressions.

    Other arguments:
        start: first pairs: "independent" ones, or "reference", x_1 = x_0 + sigma z.
        train_steps, batch, lr: of each regression. pairs: simulated for each round, in `steps` Euler-Maruyama steps.

    Raises:
        ValueError: samplers of different shapes, fewer than one round, or an unknown start.
    """
    if rounds < 1 or start not in ("reference", "independent"):
        raise ValueError(
            f"rounds={rounds}, start={start!r}: give at least one round, from reference or independent pairs"
        )
    draws, bridge = torch.Generator().manual_seed(seed), Bridge(sigma)
    x0, x1 = sample0(pairs, draws), sample1(pairs, draws)
    _same_shape(x0, x1)
    if start == "reference":
        x1 = x0 + sigma * torch.randn(x0.shape, generator=draws, dtype=x0.dtype)
    result = SchrodingerBridge(*nets, bridge, (x0, x1))
    for k in range(rounds):
        back = k % 2 == 0
        net = result.backward if back else result.forward
        ends = result.pairs

        def loss(step: int, net: nn.Module = net, ends: tuple[Tensor, Tensor] = ends, back: bool = back) -> Tensor:
            return _drift_loss(net, bridge, ends, batch, draws, back)

        losses = minimize(loss, net.parameters(), train_steps, lr=lr, average=0.99, progress=progress, name="bridge")
        with torch.no_grad():
            if back:
                x1 = sample1(pairs, draws)
                x0 = _simulate(net, x1, sigma, steps, draws, True)
            else:
                x0 = sample0(pairs, draws)
                x1 = _simulate(net, x0, sigma, steps, draws, False)
        result.pairs = (x0, x1)
        result.history.append(("backward" if back else "forward", sum(losses[-100:]) / len(losses[-100:])))
    return result


def _drift_loss(
    net: nn.Module, bridge: Bridge, ends: tuple[Tensor, Tensor], batch: int, draws: torch.Generator, back: bool
) -> Tensor:
    pick = torch.randint(len(ends[0]), (batch,), generator=draws)
    x0, x1 = ends[0][pick], ends[1][pick]
    t = torch.rand(batch, generator=draws, dtype=torch.float64) * 0.998 + 1e-3
    mean, std = bridge.kernel(x0, x1, t)
    x = mean + std * torch.randn(x0.shape, generator=draws, dtype=x0.dtype)
    target = bridge.backward_drift(x, x0, t) if back else bridge.forward_drift(x, x1, t)
    left = expand(t if back else 1 - t, x)
    error = left * (net(x, t.to(x)) - target)
    return torch.square(error).flatten(1).sum(1).mean()


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"the two ends have shapes {tuple(a.shape)} and {tuple(b.shape)}; give pairs of the same shape"
        )
