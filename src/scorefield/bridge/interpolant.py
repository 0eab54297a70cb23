"""Interpolants between any two samples: velocity and score of the law in between (Albergo et al. 2023; Zhou et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.bridge.process import Bridge, asked, same_shape
from scorefield.coefficients import Time, batch_time, expand
from scorefield.dtypes import check_batch
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, generator
from scorefield.solve.integrate import Field, Solver
from scorefield.views import View

NEAREST = 1e-3
"""Least distance from an end at which the slope of the noise, which is infinite there, is taken."""


class InterpolantModel(ScoreModel):
    r"""A network read through x_t = (1 - t) x_0 + t x_1 + c(t) z, c = sigma (t (1 - t))^{1/2} (Albergo et al. 2023, sec. 2).

    x_0 and x_1 have any laws, coupled or not: pairs, or rows of two samples that have nothing to do with each other. The law of
    x_t is that of a flow with the velocity E[x_1 - x_0 + c' z | x_t], and its score is -E[z | x_t] / c. So flow solvers,
    `encode` (x_0 to x_1), `decode` (x_1 to x_0) and `log_prob` with the law of x_1 as `prior=` work; `InterpolantSDE` adds
    noise. Near an end, c' is taken at 1e-3 from it.

    Main arguments:
        net: called as net(x, t, **cond) with x (B, C, *); returns (B, 2 C, *), E[x_1 - x_0 | x_t] and E[z | x_t]. With
            `sees_end` it is given x1=, and what comes out given x_1 is then p(x_0 | x_1), as for `BridgeModel`.
        bridge: a Brownian one (no reversion). shape: event shape.

    Raises:
        ValueError: a bridge of another kind.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        bridge: Bridge,
        *,
        shape: Sequence[int] | None = None,
        sees_end: bool = False,
    ) -> None:
        if type(bridge) is not Bridge or bridge.reversion:
            raise ValueError(f"an interpolant has a Brownian bridge, sf.bridge.Bridge(sigma), not {bridge}")
        super().__init__(net, bridge, "score", shape=shape)
        self.bridge = bridge
        self.sees_end = sees_end

    def parts(self, x: Tensor, t: Time, *, x1: Tensor | None = None, **cond: Any) -> tuple[Tensor, Tensor]:
        """E[x_1 - x_0 | x_t] and E[z | x_t], each like x (B, C, *)."""
        change, noise = asked(self, x, t, x1, cond, 2).chunk(2, 1)
        return change, noise

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """ "velocity", "score", or "denoise", which is E[x_0 | x_t].

        Raises:
            ValueError: "noise", of which there are two here.
        """
        change, noise = self.parts(x, t, **cond)
        time = batch_time(t, x)
        if name == "denoise":
            std = self.bridge.sigma * torch.sqrt(time * (1 - time))
            return x - expand(time, x) * change - expand(std, x) * noise
        if name == "noise":
            raise ValueError("an interpolant has no single noise: use its velocity, score or denoise")
        velocity, score = self.read(change, noise, time)
        return velocity if name == "velocity" else score

    def read(self, change: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity and score from the two parts, like them; t is (B,) or ()."""
        inside = t.clamp(NEAREST, 1 - NEAREST)
        std = self.bridge.sigma * torch.sqrt(inside * (1 - inside))
        slope = 0.5 * self.bridge.sigma**2 * (1 - 2 * inside) / std
        return change + expand(slope, noise) * noise, -expand(1 / std, noise) * noise


def interpolant_loss(
    model: InterpolantModel,
    x0: Tensor,
    x1: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    **cond: Any,
) -> Tensor:
    """|| change - (x_1 - x_0) ||^2 + || noise - z ||^2 at x_t (Albergo et al. 2023, sec. 2), summed: (B,).

    Main arguments:
        x0, x1: rows of the two samples, (B, *), paired or not. seed: an int or a generator for times and noise.

    Other arguments:
        t: times, a float or (B,), uniform by default. noise: z, like x0. cond: passed to the network.

    Raises:
        ValueError: x0 and x1 of different shapes, or not in floating point.
    """
    same_shape(x0, x1)
    check_batch(x0, "x0")
    draws = generator(seed)
    if t is None:
        t = torch.rand(len(x0), generator=draws, dtype=torch.float64, device=draws.device)
    z = (
        torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        if noise is None
        else noise
    )
    mean, std = model.bridge.kernel(x0, x1, t)
    seen = {"x1": x1} if model.sees_end else {}
    change, found = model.parts(mean + std * z, t, **seen, **cond)
    return (torch.square(change - (x1 - x0)) + torch.square(found - z)).flatten(1).sum(1)


@dataclass(frozen=True)
class InterpolantSDE(Solver):
    r"""Euler-Maruyama on dx = (velocity - e score) dt + (2 e)^{1/2} dw, from x_1 down to x_0; one evaluation a step.

    Any e >= 0 has the same marginals (Albergo et al. 2023, sec. 2): here e = noise^2 sigma^2 t (1 - t) / 2, which vanishes at
    both ends, where the score is steep. Noise added without that drift would change the law.

    Main arguments:
        noise: its strength; 0 is Euler on the flow.

    Raises:
        ValueError: a negative strength.
    """

    noise: float = 1.0

    order: ClassVar[float] = 1
    default_steps: ClassVar[int] = 100
    denoises: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: give 0 for the flow, or a positive strength")

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        model: Any = field.model
        if not hasattr(model, "parts"):
            raise ValueError(f"InterpolantSDE follows an sf.bridge.InterpolantModel, not {type(model).__name__}")
        field.calls += 1
        velocity, score = model.read(*model.parts(x, t, **field.cond), t)
        e = 0.5 * (self.noise * model.bridge.sigma) ** 2 * t * (1 - t)
        moved = x - expand(t - s, x) * (velocity - expand(e, x) * score)
        return moved + expand(torch.sqrt(2 * e * (t - s)), x) * noise.like(x), None
