"""A U-Net on patches of pixels that is told where the data ends: small images with bounded values, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .init import arguments
from .unet import UNet


class PatchUNet(nn.Module):
    """A `UNet` that sees every `patch` x `patch` square as one pixel with more channels, for `predict="edm"`.

    Working on patches costs a factor patch^2 less. Each pixel also brings tanh features of its distance from both ends
    of the data's range, in units of the noise: values pile up at the ends (paper and ink), and how many standard
    deviations away an end lies decides what a value near it means, more sharply than a convolution can.

    Called as net(x, c) with x = x_t / (sigma^2 + alpha^2 sigma_data^2)^(1/2), (B, channels, H, W), and
    c = 1/4 log(sigma / alpha), (B,): what a `ScoreModel` with predict="edm" passes.

    Main arguments:
        channels: of x. patch: side of a patch, which divides H and W.
        nf, ch_mult, num_res_blocks, attn: as in `UNet`, levels being counted in patches.
        low, high: ends of the data's range. sigma_data: that of the ScoreModel.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 2,
        nf: int = 32,
        ch_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 1,
        attn: Sequence[int] = (1,),
        low: float = -1.0,
        high: float = 1.0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.patch, self.low, self.high, self.sigma_data = patch, low, high, sigma_data
        self.unet = UNet(
            3 * channels * patch**2,
            nf,
            ch_mult,
            num_res_blocks,
            attn,
            out_channels=channels * patch**2,
            resblock="ddpm",
            dropout=0.0,
            time_scale=50.0,
        )

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        noise = torch.exp(4 * c).reshape(-1, *[1] * (x.ndim - 1))
        y = x * torch.sqrt(noise**2 + self.sigma_data**2)
        ends = [3 * torch.tanh((y - end) / (3 * noise)) for end in (self.low, self.high)]
        h = nn.functional.pixel_unshuffle(torch.cat([x, *ends], 1), self.patch)
        return nn.functional.pixel_shuffle(self.unet(h, c), self.patch)
