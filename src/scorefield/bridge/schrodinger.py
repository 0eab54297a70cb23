"""Schrodinger bridges between two samplers, by iterative Markovian fitting, and the exact one between Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from scorefield.bridge.process import Bridge, same_shape
from scorefield.coefficients import Time, as_time, expand
from scorefield.differentiate import differentiation
from scorefield.dtypes import check_finite
from scorefield.inputs import positive, tensor_of, whole
from scorefield.minimize import minimize
from scorefield.randomness import NoiseFn, Seed, generator, whole_seed
from scorefield.sde import SDE

Draw: TypeAlias = "Callable[[int, torch.Generator], Tensor]"
Direction: TypeAlias = Literal["forward", "backward"]


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
    one, two = tensor_of(a, "a"), tensor_of(b, "b")
    if one.is_complex() or two.is_complex():
        raise ValueError("a and b: covariances are real")
    one, two = one.double(), two.double()
    positive(sigma=sigma)
    if one.ndim != 2 or one.shape != two.shape or one.shape[0] != one.shape[1]:
        raise ValueError(f"a has shape {tuple(one.shape)} and b {tuple(two.shape)}; give two covariances (D, D)")
    root, inverse = _root(one, "a")
    _root(two, "b")
    eye = torch.eye(len(one), dtype=torch.float64, device="cpu")
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
        self,
        x: Tensor,
        direction: Direction = "forward",
        steps: int = 30,
        seed: Seed = None,
        *,
        noise: NoiseFn | None = None,
        path: bool = False,
    ) -> Tensor:
        """Euler-Maruyama from one end to the other, like x (Shi et al. 2023, Alg. 1).

        Main arguments:
            x: samples of the end that it starts from, (B, *). steps: of equal length.
            seed, noise: as in `scorefield.sample`. path: all states, (steps + 1, B, *), the first being x.

        Raises:
            ValueError: another direction, or fewer than one step.
        """
        if direction not in ("forward", "backward") or steps < 1:
            raise ValueError(
                f"direction={direction!r}, steps={steps}: choose forward or backward, and at least one step"
            )
        way = _Learned(self.forward if direction == "forward" else self.backward, self.bridge.sigma, direction)
        return way.simulate(x, None, steps, seed, noise=noise, path=path)


@dataclass(frozen=True)
class _Learned(SDE):
    """The process of a drift network on [0, 1], in its own running time; the network reads that of the bridge."""

    net: nn.Module
    sigma: float
    direction: Direction

    def drift(self, x: Tensor, t: Time) -> Tensor:
        time = as_time(t)
        drift: Tensor = self.net(x, (time if self.direction == "forward" else 1 - time).to(x).expand(len(x)))
        return drift

    def diffusion(self, x: Tensor, t: Time) -> float:
        return self.sigma


@differentiation()
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
    watch: Callable[[SchrodingerBridge], None] | None = None,
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
        watch: called after each round with what there is so far.

    Raises:
        ValueError: samplers of different shapes, fewer than one round or step, or an unknown start.
    """
    if rounds < 1 or steps < 1 or start not in ("reference", "independent"):
        raise ValueError(
            f"rounds={rounds}, steps={steps}, start={start!r}: give at least one of each, and reference or independent pairs"
        )
    for name, count in (("pairs", pairs), ("batch", batch), ("train_steps", train_steps)):
        whole(count, name, "a number of them")
    draws, bridge = generator(whole_seed(seed)), Bridge(sigma)
    x0, x1 = sample0(pairs, draws), sample1(pairs, draws)
    same_shape(x0, x1)
    check_finite(x0, "sample0")
    check_finite(x1, "sample1")
    if start == "reference":
        x1 = x0 + sigma * torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device)
    result = SchrodingerBridge(*nets, bridge, (x0, x1))
    for k in range(rounds):
        back = k % 2 == 0
        net = result.backward if back else result.forward
        ends = result.pairs

        def loss(step: int, net: nn.Module = net, ends: tuple[Tensor, Tensor] = ends, back: bool = back) -> Tensor:
            return _drift_loss(net, bridge, ends, batch, draws, back)

        losses = minimize(loss, net.parameters(), train_steps, lr=lr, average=0.99, progress=progress, name="bridge")
        direction: Direction = "backward" if back else "forward"
        with torch.no_grad():
            begin = sample1(pairs, draws) if back else sample0(pairs, draws)
        end = result.transport(begin, direction, steps, draws)
        result.pairs = (end, begin) if back else (begin, end)
        result.history.append((direction, sum(losses[-100:]) / len(losses[-100:])))
        if watch is not None:
            watch(result)
    return result


def _drift_loss(
    net: nn.Module, bridge: Bridge, ends: tuple[Tensor, Tensor], batch: int, draws: torch.Generator, back: bool
) -> Tensor:
    pick = torch.randint(len(ends[0]), (batch,), generator=draws, device=draws.device)
    x0, x1 = ends[0][pick], ends[1][pick]
    t = torch.rand(batch, generator=draws, dtype=torch.float64, device=draws.device) * 0.998 + 1e-3
    mean, std = bridge.kernel(x0, x1, t)
    x = mean + std * torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device)
    target = bridge.backward_drift(x, x0, t) if back else bridge.forward_drift(x, x1, t)
    left = expand(t if back else 1 - t, x)
    error = left * (net(x, t.to(x)) - target)
    return torch.square(error).flatten(1).sum(1).mean()
