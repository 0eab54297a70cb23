"""Networks in half precision that keep their quality."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from scorefield.nn.blocks import Attention, Combine, ResidualBlock
from scorefield.nn.resample import ConvDown, ConvUp

Net = TypeVar("Net", bound=nn.Module)


_TRUNK = (ResidualBlock, Attention, ConvDown, ConvUp, Combine)


def copied(net: Net) -> Net:
    """A deep copy of a module, also of one that keeps results of its last pass, as `weight_norm` does."""
    # deepcopy refuses tensors with a history; they are made again in the next pass.
    kept = [
        v for module in net.modules() for v in vars(module).values() if isinstance(v, torch.Tensor) and not v.is_leaf
    ]
    return copy.deepcopy(net, {id(v): v.detach().clone() for v in kept})


def low_precision(net: Net, dtype: torch.dtype = torch.bfloat16) -> Net:
    """A copy for evaluation whose trunk runs in `dtype`: the convolutions and the attention of a `UNet`.

    Norms, embeddings, the first layer and the last ones keep their dtype, and so does what the network returns. Unlike
    under `torch.autocast`, weights are converted once and not at every call.

    Raises:
        ValueError: there is no part of a `UNet` in it.
    """
    if not any(isinstance(module, _TRUNK) for module in net.modules()):
        raise ValueError(f"{type(net).__name__} has no trunk of a UNet; cast it as a whole, net.to({dtype})")
    net = copied(net).eval()
    for module in net.modules():
        parts: list[nn.Module | None] = []
        match module:
            case ResidualBlock():
                parts = [module.conv1, module.conv2, module.shortcut]
            case Attention():
                parts = [module.qkv, module.out]
            case ConvDown() | ConvUp() | Combine():
                parts = [module.conv]
        for part in parts:
            if part is not None:
                part.to(dtype)
    return net
