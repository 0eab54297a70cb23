"""Two passes of a network that see the same dropout mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def masked(seed: int, device: torch.device, call: Callable[[], Tensor]) -> Tensor:
    """A pass whose dropout masks are those of the seed, on whatever device they are drawn."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return call()
