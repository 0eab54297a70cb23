"""A U-Net whose last layer is exact: the posterior mean of a pixel whose prior is a histogram that the network predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scorefield.nn.initial import arguments
from scorefield.nn.unet import UNet

FAR = 5.0
"""Standard deviations outside the data's range beyond which the denoised value no longer changes."""
SMALLEST = 1e-9
"""Density that every cell keeps, so that a value the network held to be impossible still has a posterior mean."""
FARTHEST = 9.0
"""Standard deviations at which a cell's ends are cut: what lies beyond weighs nothing, and would cost denormal numbers."""


class HistogramUNet(nn.Module):
    """A `UNet` on patches that predicts a histogram for every value, for data with a bounded range and `predict="edm"`.

    Quantised data that was dequantised is uniform within cells, and values pile up in a few of them (paper and ink).
    Where noise is as small as a cell, the score of such a density is sharp, and a network is slow to learn what can be
    written down. Here the network predicts, for every value, the probabilities of K cells given the rest of the image;
    the denoised value is then the posterior mean under Gaussian noise of standard deviation s = sigma / alpha,

        E[x_0 | y] = y + s sum_k h_k E_k / sum_k h_k P_k,    y = x_t / alpha,

    where P_k is the Gaussian mass of cell k around y and E_k its first moment. As s falls the score becomes exact
    whatever the network says, and at large s it is the mean of the predicted histogram.

    Every `patch` x `patch` square is one pixel of the U-Net with more channels, which costs a factor patch^2 less.

    Called as net(x, c) with x = x_t / (sigma^2 + alpha^2 sigma_data^2)^(1/2), (B, channels, H, W), and
    c = 1/4 log(sigma / alpha), (B,): what a `ScoreModel` with predict="edm" passes.

    Main arguments:
        edges: K + 1 rising ends of the cells, in the range of the model (see `cell_edges`).
        channels: of x. patch: side of a patch, which divides H and W.
        nf, ch_mult, num_res_blocks, attn, dropout, num_classes: as in `UNet`, levels being counted in patches.
        sigma_data: that of the ScoreModel.
    """

    edges: Tensor

    def __init__(
        self,
        edges: Sequence[float],
        channels: int = 1,
        patch: int = 2,
        nf: int = 32,
        ch_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 1,
        attn: Sequence[int] = (1,),
        dropout: float = 0.0,
        num_classes: int = 0,
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.patch, self.channels, self.sigma_data = patch, channels, sigma_data
        self.num_classes = num_classes
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        self.cells = len(edges) - 1
        self.unet = UNet(
            3 * channels * patch**2,
            nf,
            ch_mult,
            num_res_blocks,
            attn,
            out_channels=self.cells * channels * patch**2,
            resblock="ddpm",
            dropout=dropout,
            num_classes=num_classes,
            time_scale=50.0,
        )

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        noise = torch.exp(4 * c).reshape(-1, *[1] * (x.ndim - 1))
        scale = torch.sqrt(noise**2 + self.sigma_data**2)
        y = x * scale
        shift = posterior_shift(self._cells_last(y), noise, self.logits(x, y, noise, c, label), self.edges)
        shift = nn.functional.pixel_shuffle(shift.movedim(-1, 1).contiguous(), self.patch)
        # edm: denoised = skip y + out F, so F = (denoised - skip y) / out with denoised = y + noise * shift
        return (y * (noise / scale) + shift * scale) / self.sigma_data

    def logits(self, x: Tensor, y: Tensor, noise: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        """Logarithms of the cells' prior probabilities, but for a constant.

        (B, H / patch, W / patch, channels patch^2, K): values in the order of `pixel_unshuffle`.
        """
        lowest, highest = self.config["edges"][0], self.config["edges"][-1]
        ends = [3 * torch.tanh((y - end) / (3 * noise)) for end in (lowest, highest)]
        h = nn.functional.pixel_unshuffle(torch.cat([x, *ends], 1), self.patch)
        out: Tensor = self.unet(h, c, label).movedim(1, -1)
        return out.reshape(*out.shape[:-1], -1, self.cells)

    def _cells_last(self, y: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(y, self.patch).movedim(1, -1)


def cell_edges(cells: Sequence[int], levels: int, low: float, high: float) -> list[float]:
    """Ends, in the range [low, high], of cells that start at the given levels; dequantised level k fills [k, k + 1)."""
    return [low + (high - low) * level / levels for level in (*cells, levels)]


def posterior_shift(y: Tensor, noise: Tensor, logits: Tensor, edges: Tensor) -> Tensor:
    """(E[x_0 | y] - y) / s for y = x_0 + s eps and x_0 from a histogram; like y.

    Main arguments:
        y: (B, *). noise: s, (B, 1, ...). logits: of the probabilities of the cells, (*y.shape, K). edges: (K + 1,).
    """
    inside = torch.relu(y - edges[0] + FAR * noise) + edges[0] - FAR * noise
    inside = edges[-1] + FAR * noise - torch.relu(edges[-1] + FAR * noise - inside)
    mass, moment = cell_moments(inside.unsqueeze(-1), noise.unsqueeze(-1), edges)
    height = torch.softmax(logits - torch.log(edges.diff()), -1) + SMALLEST
    return (height * moment).sum(-1) / (height * mass).sum(-1) + (inside - y) / noise


def cell_moments(y: Tensor, noise: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Mass and first moment of z = (x_0 - y) / s in every cell under N(0, 1), each (*, K).

    The difference of two normal distribution functions loses its digits where the cell is narrow; there the cell is a
    Gaussian of its own mean and variance, whose relative error is of fourth order in width / s.
    """
    width, middle = edges.diff(), 0.5 * (edges[1:] + edges[:-1])
    rate = 1 / noise
    u = (edges * rate - y * rate).clamp(-FARTHEST, FARTHEST)
    side = torch.sign(u)
    tail = side * torch.erfc(torch.abs(u) * math.sqrt(0.5))
    density = torch.exp(-0.5 * u * u) * (1 / math.sqrt(2 * math.pi))
    mass = 0.5 * (tail[..., :-1] - tail[..., 1:]) + 0.5 * (side[..., 1:] - side[..., :-1])
    moment = density[..., :-1] - density[..., 1:]
    wide = (width >= 0.5 * noise).to(y.dtype)
    spread = 1 + (width * rate) ** 2 / 12
    v = (middle * rate - y * rate).clamp(-FARTHEST, FARTHEST)
    bell = torch.exp(v * v * (-0.5 / spread)) * ((1 - wide) * width * rate / torch.sqrt(2 * math.pi * spread))
    return mass * wide + bell, moment * wide + bell * v / spread
