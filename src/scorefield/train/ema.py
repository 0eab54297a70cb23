"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Running average of a module's floating-point parameters and buffers; the rest is copied.

    After n updates the average moves by 1 - d of its distance from the weights, d = min(rate, (1 + n) / (10 + n))
    (the paper's code): early on, when the weights move fast, the average forgets fast.

    Main arguments:
        module: whose weights to follow; the average starts at them.
        rate: the largest decay d, from 0 up to 1.
    """

    def __init__(self, module: nn.Module, rate: float = 0.999) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} is impossible; expected a number from 0 up to 1, such as 0.999")
        self.rate = rate
        self.updates = 0
        self._live = dict(_state(module))
        # preserve_format keeps channels_last, without which the fused averages below fall back to a slow path
        self.tensors = {
            name: value.detach().clone(memory_format=torch.preserve_format) for name, value in self._live.items()
        }
        self._floats = [name for name, value in self.tensors.items() if value.is_floating_point()]

    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.rate, (2 + self.updates) / (11 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights of the module."""
        move = 1 - self.decay()
        self.updates += 1
        average = [self.tensors[name] for name in self._floats]
        torch._foreach_lerp_(average, [self._live[name] for name in self._floats], move)
        for name, value in self._live.items():
            if not value.is_floating_point():
                self.tensors[name].copy_(value)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from stored averages."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.updates = updates


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict(keep_vars=True)
    for name, value in kept.items():
        if isinstance(value, Tensor):
            yield name, value.detach()
