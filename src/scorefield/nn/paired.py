"""A network that sees what is to be restored beside the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, expand


class Shifted(Protocol):
    """An SDE whose mean leads to y: `VPIDM`, `OUVE`."""

    def shift(self, t: Time) -> Tensor: ...


class Paired(nn.Module):
    """Shows a network the state x = u + c(t) y beside y, where u = x - c(t) y is what a model of `VPIDM` or `OUVE` is given.

    `ScoreModel(Paired(net, sde), sde, "noise")` then takes y=: `dsm_loss(model, x0, y=y)` trains it, and every sampler passes
    it on. The noise is the same in x and in u, and so is the score.

    Main arguments:
        net: called as net(cat, t) with cat (B, 2 C, *), x in the first half of the channels and y in the second; returns
            (B, C, *), or (B, 2 C, *), of which the first half counts, so that any network of `sf.nn` for 2 C channels serves.
        sde: has `shift(t)`, the factor c on y.
    """

    exact_time = True
    own_time = True
    """It reads t as the time of the SDE, and x as it is."""

    def __init__(self, net: Callable[..., Tensor], sde: Shifted) -> None:
        super().__init__()
        if not hasattr(sde, "shift"):
            raise ValueError(f"Paired needs an SDE with shift(t), such as sf.VPIDM() or sf.OUVE(), not {sde!r}")
        self.config: dict[str, Any] = {"net": net, "sde": sde}
        self.net, self.sde = net, sde

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if y is None:
            raise ValueError("y is missing: this network restores, so give y=, what is to be restored, like x")
        if not isinstance(y, Tensor):
            raise ValueError(f"y is {type(y).__name__}; give a tensor of shape {tuple(x.shape)}, that of x")
        if y.shape != x.shape:
            raise ValueError(f"y has shape {tuple(y.shape)}; expected {tuple(x.shape)}, that of x")
        y = y.to(x)
        shown = torch.cat([x + expand(self.sde.shift(t), x) * y, y], dim=1)
        time = t if getattr(self.net, "exact_time", False) else t.to(x.dtype)
        out: Tensor = self.net(shown, time)
        return out[:, : x.shape[1]] if out.shape == shown.shape else out
