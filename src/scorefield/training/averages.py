"""Moving averages of the weights: exponential ones, and power functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.training.sharding import local

Decay = Callable[[int], float]
"""The decay d of the n-th update, n = 1, 2, ...: the average moves by 1 - d of its distance from the weights."""


def warmed_up(rate: float) -> Decay:
    """d = min(rate, (1 + n) / (10 + n)), as in the paper's code: early on, when the weights move fast, it forgets fast.

    Main arguments:
        rate: the largest decay, from 0 up to 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate} is impossible; expected a number from 0 up to 1, such as 0.999")
    return lambda n: min(rate, (1 + n) / (10 + n))


def power_function(sigma_rel: float) -> Decay:
    """d = (1 - 1 / n)^(gamma + 1), which gives step k of n the weight (k^(gamma+1) - (k-1)^(gamma+1)) / n^(gamma+1).

    The average has the profile (k / n)^gamma, of one shape however long the training is (Karras et al. 2024, sec. 3.1).

    Main arguments:
        sigma_rel: standard deviation of the profile relative to the length of training, such as 0.05.
    """
    exponent = power_of_width(sigma_rel) + 1
    return lambda n: (1 - 1 / n) ** exponent


def power_of_width(sigma_rel: float) -> float:
    """The gamma whose profile t^gamma on [0, 1] has this standard deviation (Karras et al. 2024, sec. 3.1).

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel={sigma_rel} is impossible; expected a number between 0 and 0.288, such as 0.05")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max())


class EMA:
    """Running average of a module's floating-point parameters and buffers; the rest is copied.

    Of a module that is spread over processes each averages its own part.

    Main arguments:
        module: whose weights to follow; the average starts at them.
        decay: of each update; a number is the rate of `warmed_up`.
    """

    def __init__(self, module: nn.Module, decay: float | Decay = 0.999) -> None:
        self.decay: Decay = decay if callable(decay) else warmed_up(decay)
        self.updates = 0
        self._live = dict(_state(module))
        # preserve_format keeps channels_last, without which the fused averages below fall back to a slow path
        self.tensors = {
            name: value.detach().clone(memory_format=torch.preserve_format) for name, value in self._live.items()
        }
        self._floats = [name for name, value in self.tensors.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights of the module."""
        self.updates += 1
        move = 1 - self.decay(self.updates)
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
            yield name, local(value.detach())
