"""DDPM's U-Net (Ho et al. 2020), and a small network for digits, as settings of `UNet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scorefield.nn.unet import UNet


def ddpm(
    in_channels: int = 3,
    nf: int = 128,
    ch_mult: Sequence[int] = (1, 2, 2, 2),
    num_res_blocks: int = 2,
    attn: Sequence[int] = (1,),
    **options: Any,
) -> UNet:
    """The network of Ho et al. 2020: plain residual sums, 32 groups, strided convolutions; options as in `UNet`."""
    settings: dict[str, Any] = {"resblock": "ddpm", "skip_rescale": False, "max_groups": 32}
    return UNet(in_channels, nf, ch_mult, num_res_blocks, attn, **(settings | options))


def digits_unet(channels: int = 1, **options: Any) -> UNet:
    """A U-Net that learns handwritten digits, 28x28 or 8x8, on a CPU in minutes; options as in `UNet`."""
    settings: dict[str, Any] = {"nf": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn": (2,), "dropout": 0.0}
    return UNet(channels, **(settings | options))
