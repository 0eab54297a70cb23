"""Other networks of states: a perceptron for short vectors and tables, and a U-Net for discrete images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from scorefield.nn.initial import arguments
from scorefield.nn.mlp import MLP
from scorefield.nn.unet import UNet


class StateMLP(nn.Module):
    """A perceptron on the states of a few positions: net(x, t=None, label=None), states (B, *) -> (B, *, outputs).

    Main arguments:
        states: states of the input, a mask included.
        positions: entries of one sample.
        outputs: states of the output, those of the input unless given.
        width, depth: hidden width and number of residual layers.
        sizes: states that each position can have, where they differ, as the columns of a table do: no other is predicted.

    Other arguments:
        time: whether it looks at the time. num_classes, dropout: as in `MLP`.
    """

    def __init__(
        self,
        states: int,
        positions: int,
        outputs: int | None = None,
        width: int = 128,
        depth: int = 2,
        *,
        sizes: Sequence[int] | None = None,
        time: bool = False,
        num_classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.states, self.outputs, self.time, self.num_classes = states, outputs or states, time, num_classes
        if sizes is not None and (len(sizes) != positions or not all(1 <= n <= self.outputs for n in sizes)):
            raise ValueError(
                f"sizes={tuple(sizes)}: give {positions} numbers from 1 to {self.outputs}, one for each position"
            )
        self.entrance = nn.Linear(states * positions, width)
        self.body = MLP(width, width, depth, time_scale=100.0, num_classes=num_classes, dropout=dropout)
        self.exit = nn.Linear(width, self.outputs * positions)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)
        allowed = torch.arange(self.outputs) < torch.tensor(sizes or [self.outputs] * positions).unsqueeze(1)
        self.register_buffer("allowed", allowed, persistent=False)

    def forward(self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        one = nn.functional.one_hot(x.flatten(1), self.states).to(self.entrance.weight.dtype)
        h = self.entrance(one.flatten(1))
        h = h + self.body(h, _time(t, self.time, h), label)
        logits = self.exit(nn.functional.silu(h)).reshape(len(x), -1, self.outputs)
        floor = torch.finfo(logits.dtype).min / 4
        out: Tensor = logits.masked_fill(~cast(Tensor, self.allowed), floor)
        return out.reshape(*x.shape, -1)


class StateUNet(nn.Module):
    """`UNet` on images of states: net(x, t=None, label=None), states (B, C, *S) -> (B, C, *S, outputs).

    Every state of every channel has a vector at the entrance, and logits at the exit.

    Main arguments:
        states: states of the input, a mask included.
        channels: C.
        outputs: states of the output, those of the input unless given.
        embed: entries of the vector of a state.
        nf, ch_mult, num_res_blocks, attn and the rest: as in `UNet`.

    Other arguments:
        time: whether it looks at the time.
    """

    def __init__(
        self,
        states: int,
        channels: int = 1,
        outputs: int | None = None,
        embed: int = 8,
        *,
        nf: int = 32,
        ch_mult: Sequence[int] = (1, 2, 2),
        num_res_blocks: int = 1,
        attn: Sequence[int] = (),
        time: bool = False,
        num_classes: int = 0,
        dropout: float = 0.0,
        **unet: Any,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in arguments(locals()).items() if k != "unet"} | unet
        self.outputs, self.time, self.num_classes = outputs or states, time, num_classes
        self.entrance = nn.Embedding(states, embed)
        shared: dict[str, Any] = {"dropout": dropout, "num_classes": num_classes, "conditional": time, **unet}
        self.body = UNet(
            embed * channels, nf, ch_mult, num_res_blocks, attn, out_channels=self.outputs * channels, **shared
        )

    def forward(self, x: Tensor, t: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        if label is not None and not self.num_classes:
            raise ValueError("label: this network was built without classes; pass num_classes when building it")
        h = torch.movedim(self.entrance(x), -1, 2).flatten(1, 2)
        logits = self.body(h, _time(t, self.time, h), label)
        return torch.movedim(logits.unflatten(1, (x.shape[1], self.outputs)), 2, -1)


def _time(t: Tensor | None, needed: bool, h: Tensor) -> Tensor:
    if t is None and needed:
        raise ValueError("t is missing: this network looks at the time; leave JumpModel's clock at 't'")
    # One that does not look at it is the same at every time.
    return h.new_zeros(len(h)) if t is None or not needed else t.to(h.dtype)
