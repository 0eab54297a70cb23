"""How networks begin: the official initialisation, and a record of the arguments that a run folder rebuilds them from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def fan_avg_uniform_(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Fill `weight` (out, in, *kernel) in place with uniform numbers of variance scale / fan_avg.

    A scale of 0 becomes 1e-10, as in the official code: the layer starts at zero for every practical purpose, and the
    layers before it still receive a gradient at the first step.
    """
    receptive = weight[0, 0].numel()
    fan_avg = receptive * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3.0 * (scale or 1e-10) / fan_avg)
    return weight.uniform_(-bound, bound)


def arguments(local_names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, from its `locals()` at the first line: what `type(net)(**net.config)` needs."""
    return {k: v for k, v in local_names.items() if k not in ("self", "__class__")}
