"""Backward SDEs: which start, and which control, lead to a random target (Pardoux & Peng 1990; Wang 2023).

dY = -F(t, Y, Z) dt + Z dW on [0, T] with Y_T = xi, a function of the Brownian path. For a target that is not random and an F
that does not depend on the path the answer is Z = 0 and an ordinary differential equation: with the driver of the probability
flow, Y_0 is then exactly `sf.encode`. So use this where the target is random, or where F depends on Z.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from scorefield.coefficients import expand
from scorefield.differentiate import differentiation, ordinary
from scorefield.dtypes import check_tensor
from scorefield.errors import ScorefieldWarning
from scorefield.inputs import whole
from scorefield.minimize import minimize
from scorefield.model import ScoreModel
from scorefield.randomness import generator, whole_seed

Driver: TypeAlias = "Callable[[float, Tensor, Tensor], Tensor]"
Terminal: TypeAlias = "Callable[[Tensor], Tensor]"

CONTRACTION, PUSHED = 0.05, 4
"""What is left of a push of the start below which "deep" warns; entries of the start that are pushed."""
PICARD = 50
"""Iterations of y = c + h F(t, y, z) within a step, which contract where h times the Lipschitz constant is below 1."""


@dataclass(frozen=True)
class BSDESolution:
    """A backward SDE, solved.

    Attributes:
        y0: the start, (D,). z0: the control there, (D, M). z: the control along the paths, (steps, P, D, M).
        times: of the steps, (steps,). miss: root mean square of Y_T - xi over the paths, run forward from y0 with z.
    """

    y0: Tensor
    z0: Tensor
    z: Tensor
    times: Tensor
    miss: float

    def __repr__(self) -> str:
        return f"BSDESolution(y0={[round(v, 6) for v in self.y0.tolist()]}, miss={self.miss:.3g})"


def solve(
    driver: Driver,
    terminal: Terminal,
    noise_dim: int = 1,
    *,
    T: float = 1.0,
    steps: int = 50,
    paths: int = 4096,
    method: Literal["regression", "deep"] = "regression",
    degree: int = 2,
    train_steps: int = 600,
    width: int = 32,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool | None = None,
) -> BSDESolution:
    r"""Y_0 and Z of dY = -F dt + Z dW, Y_T = xi, by the explicit scheme y_{k+1} = y_k - F(t_k, y_k, z_k) h + z_k dW.

    Compare a result with the fixed point of this scheme, which differs from the continuum by order h, rather than with the
    continuum. "regression" goes backward and fits y_{k+1} by least squares to polynomials of W_k and these times dW, which
    are exact where the solution is such a polynomial (Gobet, Lemor & Warin 2005, with the martingale term fitted too).
    "deep" learns y_0 and a network for z, forward, by the mean square of the miss (E, Han & Jentzen 2017, eq. 2.7); where the
    way forward contracts, as with the reverse driver of a score, the miss says little about y_0, and it warns.

    Main arguments:
        driver: F(t, y, z) for y (P, D) and z (P, D, M), like y; t is a float. terminal: xi from W_T (P, M): (P, D).
        noise_dim: M. T: the horizon. steps: N. paths: P, in pairs of opposite sign. seed: decides everything.

    Other arguments:
        degree: of the polynomials in every coordinate of W. train_steps, width, lr: of "deep".

    Raises:
        ValueError: counts below 1, an unknown method, a target or driver of a wrong shape, or not finite.
    """
    for name, count in (("noise_dim", noise_dim), ("steps", steps), ("paths", paths)):
        whole(count, name, "a number of them")
    if min(noise_dim, steps, paths, degree + 1) < 1 or not 0 < T < math.inf or method not in ("regression", "deep"):
        raise ValueError(
            f"noise_dim={noise_dim}, steps={steps}, paths={paths}, T={T}, method={method!r}: give positive counts and a "
            "positive horizon, and the method regression or deep"
        )
    h, draws = T / steps, generator(whole_seed(seed))
    half = torch.randn(steps, max(1, paths // 2), noise_dim, generator=draws, dtype=torch.float64, device=draws.device)
    dw = math.sqrt(h) * torch.cat([half, -half], 1)
    w = torch.cat([torch.zeros_like(dw[:1]), dw.cumsum(0)])
    xi = terminal(w[-1])
    check_tensor(xi, "what terminal returned")
    if xi.ndim != 2 or len(xi) != dw.shape[1] or not bool(torch.isfinite(xi).all()):
        raise ValueError(
            f"terminal returned shape {tuple(xi.shape)} for {dw.shape[1]} paths; give finite numbers (P, D)"
        )
    xi = xi.double()
    if bool((xi == xi[:1]).all()):
        warnings.warn(
            "the target is the same on all paths: Z = 0, and with the driver of the flow Y_0 is sf.encode",
            ScorefieldWarning,
            stacklevel=2,
        )
    if method == "deep":
        y0, z = _deep(driver, xi, w, dw, h, (train_steps, width, lr), seed, progress)
    else:
        y0, z = _regress(driver, xi, w, dw, h, degree)
    miss = float(torch.square(_forward(driver, y0.expand_as(xi), z, dw, h) - xi).mean().sqrt())
    return BSDESolution(y0, z[0].mean(0), z, h * torch.arange(steps, dtype=torch.float64, device="cpu"), miss)


def _force(driver: Driver, t: float, y: Tensor, z: Tensor) -> Tensor:
    value = driver(t, y, z)
    check_tensor(value, "what driver returned")
    if value.shape != y.shape:
        raise ValueError(
            f"driver returned shape {tuple(value.shape)} for y of shape {tuple(y.shape)}; return a tensor like y"
        )
    return value


def _regress(driver: Driver, xi: Tensor, w: Tensor, dw: Tensor, h: float, degree: int) -> tuple[Tensor, Tensor]:
    y, controls = xi, []
    m = dw.shape[2]
    for k in reversed(range(len(dw))):
        basis = torch.cat([torch.ones_like(w[k][:, :1]), *(w[k] ** p for p in range(1, degree + 1))], 1)
        basis = basis if k else basis[:, :1]  # W_0 = 0
        moved = (basis.unsqueeze(2) * dw[k].unsqueeze(1) / math.sqrt(h)).flatten(1)
        fitted = torch.linalg.lstsq(torch.cat([basis, moved], 1), y, driver="gelsd").solution
        size = basis.shape[1]
        z = torch.einsum("pb,bmd->pdm", basis, fitted[size:].reshape(size, m, -1)) / math.sqrt(h)
        centre = basis @ fitted[:size]
        y = centre
        for _ in range(PICARD):
            ahead = centre + h * _force(driver, k * h, y, z)
            gap, y = float((ahead - y).abs().max()), ahead
            if gap < 1e-13 * (1 + float(y.abs().max())):
                break
        if not bool(torch.isfinite(y).all()):
            raise ValueError(f"the scheme left the finite numbers at step {k}: take more steps, or a shorter horizon")
        controls.append(z)
    return y.mean(0), torch.stack(controls[::-1])


@differentiation()
def _deep(
    driver: Driver,
    xi: Tensor,
    w: Tensor,
    dw: Tensor,
    h: float,
    settings: tuple[int, int, float],
    seed: int,
    progress: bool | None,
) -> tuple[Tensor, Tensor]:
    train_steps, width, lr = settings
    xi, w, dw = ordinary(xi), ordinary(w), ordinary(dw)
    d, m, steps = xi.shape[1], dw.shape[2], len(dw)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(whole_seed(seed))
        net = nn.Sequential(nn.Linear(1 + m, width), nn.Tanh(), nn.Linear(width, d * m)).double()
    # Without a control at first: noise of the paths would move y_0 through a driver that is not linear.
    for p in net[-1].parameters():
        nn.init.zeros_(p)
    y0 = nn.Parameter(xi.mean(0).clone())
    clock = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")

    def control(k: int) -> Tensor:
        state = torch.cat([clock[k].expand(len(xi), 1), w[k]], 1)
        out: Tensor = net(state).reshape(-1, d, m)
        return out

    def loss(step: int) -> Tensor:
        y = y0.expand_as(xi)
        for k in range(steps):
            z = control(k)
            y = y - h * _force(driver, k * h, y, z) + torch.einsum("pdm,pm->pd", z, dw[k])
        return torch.square(y - xi).mean()

    minimize(loss, [y0, *net.parameters()], train_steps, lr=lr, clip=0.0, progress=progress, name="backward SDE")
    with torch.no_grad():
        start, z = y0.detach().clone(), torch.stack([control(k) for k in range(steps)])
        _warn_of_contraction(driver, start, z, dw, h)
    return start, z


def _warn_of_contraction(driver: Driver, y0: Tensor, z: Tensor, dw: Tensor, h: float) -> None:
    """Warn where the end hardly depends on the start, so that a small miss says little about it."""
    push = 1e-3 * (1 + y0.abs().max()) * torch.eye(len(y0), dtype=torch.float64, device="cpu")[:PUSHED]
    ends = [_forward(driver, start.expand(dw.shape[1], -1), z, dw, h) for start in (y0, *(y0 + push))]
    left = min(float((end - ends[0]).norm(dim=1).mean() / p.norm()) for end, p in zip(ends[1:], push, strict=True))
    if left < CONTRACTION:
        warnings.warn(
            f"the end moves by {left:.2g} of what the start does, so that a miss leaves the start uncertain by {1 / left:.0f} "
            "times as much; method='regression' goes backward and does not suffer from it",
            ScorefieldWarning,
            stacklevel=4,
        )


def _forward(driver: Driver, y: Tensor, z: Tensor, dw: Tensor, h: float) -> Tensor:
    """Y_T by the scheme from y (P, D), with the controls z (steps, P, D, M)."""
    for k in range(len(dw)):
        y = y - h * _force(driver, k * h, y, z[k]) + torch.einsum("pdm,pm->pd", z[k], dw[k])
    return y


def score_driver(model: ScoreModel, kind: Literal["flow", "reverse"] = "flow", tau: float | None = None) -> Driver:
    r"""F of the process from noise level tau (at BSDE time 0) to the data (at tau): F = f y - c g^2 score, c = 1/2 or 1.

    dY = (-f Y + c g^2 s(Y, tau - t)) dt + Z dW. Its sign is that of reverse sampling, which published forms of it do not all
    have. With "flow" and a target that is not random Y_0 is `sf.encode`; with "reverse" it is *not* a code: it lies where the
    reverse drift alone would have to start, far outside of the prior (81.3 for a prior of deviation 10 in the test).

    Main arguments:
        model: under a `GaussianSDE`. kind: whose drift. tau: the noise level's time, T by default.

    Raises:
        ValueError: an unknown kind, or a time outside (0, T].
    """
    end = model.sde.T if tau is None else tau
    if kind not in ("flow", "reverse") or not 0 < end <= model.sde.T:
        raise ValueError(f"kind={kind!r}, tau={end}: choose flow or reverse, and a time in (0, {model.sde.T}]")
    share = 0.5 if kind == "flow" else 1.0

    def driver(t: float, y: Tensor, z: Tensor) -> Tensor:
        r = max(end - t, model.sde.t_min)
        x = y.reshape(len(y), *(model.shape or y.shape[1:]))
        force = expand(model.sde.f(r), x) * x - expand(share * model.sde.g2(r), x) * model.score(x, r)
        return force.reshape(y.shape)

    return driver


class LipschitzMLP(nn.Module):
    """A network whose Lipschitz constant is at most `bound`: weights scaled to spectral norm 1, sorted pairs in between.

    GroupSort (Anil, Lucas & Grosse 2019) keeps gradients where ReLU would lose them. The score of data with noise sigma has the
    constant 1 / sigma^2 where the data is a point, so that below sigma = bound^(-1/2) such a network must be wrong.

    Main arguments:
        inputs, outputs: dimensions. width: even. depth: number of hidden layers. bound: the constant.
    """

    def __init__(self, inputs: int, outputs: int, width: int = 64, depth: int = 2, bound: float = 1.0) -> None:
        super().__init__()
        if width % 2 or depth < 1 or not bound > 0:
            raise ValueError(
                f"width={width}, depth={depth}, bound={bound}: give an even width, a layer and a positive bound"
            )
        sizes = [inputs, *[width] * depth, outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs) to (B, outputs)."""
        for k, layer in enumerate(self.layers):
            weight: Tensor = layer.weight  # type: ignore[assignment]
            scaled = weight / torch.linalg.matrix_norm(weight, ord=2).clamp_min(1.0)
            x = nn.functional.linear(x, scaled, layer.bias)  # type: ignore[arg-type]
            if k + 1 < len(self.layers):
                x = x.reshape(len(x), -1, 2).sort(2)[0].flatten(1)
        return self.bound * x
