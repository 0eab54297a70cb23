"""A network whose output is the gradient of a scalar: a score that is one, curl-free by construction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scorefield.differentiate import differentiation, variable


class Potential(nn.Module):
    """The gradient by x of body(x, t) -> (B, 1) or (B,); for `ScoreModel(net, sde, "score")`.

    Use a smooth activation (tanh, SiLU): the second derivatives of ReLU and of a steep softplus are spikes.

    Main arguments:
        body: called as body(x, t, **cond) with x (B, *) and t (B,).
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def value(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The potential, (B,): log p_t up to a function of t."""
        phi: Tensor = self.body(x, t, **cond)
        if phi.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"the body returned shape {tuple(phi.shape)}; give one number for each of {len(x)} samples"
            )
        return phi.reshape(len(x))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Its gradient by x, like x; the graph is kept where gradients are on."""
        keep = torch.is_grad_enabled()
        with differentiation():
            live = variable(x, keep)
            (slope,) = torch.autograd.grad(self.value(live, t, **cond).sum(), live, create_graph=keep)
        return slope
