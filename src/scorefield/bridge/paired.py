"""Pairs: a model that goes from a degraded x_1 to the x_0 behind it, its loss and its sampler (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scorefield.bridge.process import Bridge, asked, same_shape
from scorefield.coefficients import Time, batch_time, expand
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, generator
from scorefield.solve.integrate import Field, Solver
from scorefield.views import View


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
        return asked(self, x, t, x1, cond)

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
    same_shape(x0, x1)
    draws = generator(seed)
    if t is None:
        t = torch.rand(len(x0), generator=draws, dtype=torch.float64, device=draws.device).clamp_min(1e-3)
    mean, std = model.bridge.kernel(x0, x1, t)
    if deterministic:
        x = mean
    else:
        if noise is None:
            noise = torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
        x = mean + std * noise
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
