"""Probabilities of integers: variational dequantisation and the importance-weighted bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from scorefield.dtypes import onto, wide
from scorefield.likelihood.dequantize import check_levels, levels_width
from scorefield.likelihood.elbo import elbo
from scorefield.likelihood.log_prob import log_prob
from scorefield.likelihood.result import LogProb
from scorefield.model import ScoreModel
from scorefield.nn.resample import Dims, conv
from scorefield.randomness import Seed, source


class VariationalDequantizer(nn.Module):
    """A conditional flow q(u | x) on the unit cell of every integer, in place of uniform noise (Ho et al. 2019, sec. 3.1).

    Affine couplings over a checkerboard, between a logit and a sigmoid; a fresh one is exactly uniform. It is called as
    dequantizer(x, seed) -> (floats, log q), both differentiable, and trained by `dequantization_loss`.

    Main arguments:
        shape: event shape (C, *S) with one to three sides, or (D,).
        levels, low, high: integers 0 .. levels - 1 fill [low, high].
        width: hidden channels. layers: couplings.
    """

    mask: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        low: float = -1.0,
        high: float = 1.0,
        *,
        width: int = 32,
        layers: int = 4,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.levels, self.low, self.high = levels, low, high
        self.cells = levels_width(levels, low, high)
        sides = len(self.shape) - 1
        if not 0 <= sides <= 3:
            raise ValueError(f"shape={self.shape}: give (D,) or (C, *S) with one to three sides")
        channels = self.shape[0]

        def layer(inputs: int, outputs: int) -> nn.Module:
            return nn.Linear(inputs, outputs) if sides == 0 else conv(cast(Dims, sides), inputs, outputs)

        self.nets = nn.ModuleList()
        for _ in range(layers):
            last = layer(width, 2 * channels)
            for p in last.parameters():
                nn.init.zeros_(p)
            self.nets.append(nn.Sequential(layer(2 * channels, width), nn.SiLU(), layer(width, width), nn.SiLU(), last))
        grid = torch.zeros(self.shape)
        for axis, size in enumerate(self.shape):
            grid = grid + torch.arange(size).reshape(-1, *[1] * (len(self.shape) - 1 - axis))
        self.register_buffer("mask", (grid % 2).float(), persistent=False)

    def forward(self, x: Tensor, seed: Seed = None) -> tuple[Tensor, Tensor]:
        """Integers (B, *shape) to (floats in [low, high] like x, log q(u | x) in nats (B,)).

        Raises:
            ValueError: a value outside 0 .. levels - 1, or another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x has event shape {tuple(x.shape[1:])}; this dequantizer was built for {self.shape}")
        check_levels(x, self.levels)
        level = x.to(self.mask.dtype)
        scaled = 2 * (level + 0.5) / self.levels - 1
        drawn = source(seed, len(x)).normal(x.shape, torch.float64, torch.device("cpu"))
        z = torch.logit(onto(torch.special.ndtr(drawn).clamp(1e-6, 1 - 1e-6), level))
        # A logistic variable has the density of the sigmoid's slope.
        log_q = _log_slope(z).flatten(1).sum(1)
        for i, net in enumerate(self.nets):
            keep = self.mask if i % 2 else 1 - self.mask
            scale, shift = net(torch.cat([keep * z, scaled], 1)).chunk(2, 1)
            scale = (1 - keep) * 2 * torch.tanh(scale / 2)
            z = z * torch.exp(scale) + (1 - keep) * shift
            log_q = log_q - scale.flatten(1).sum(1)
        log_q = log_q - _log_slope(z).flatten(1).sum(1)
        floats: Tensor = self.low + (level + torch.sigmoid(z)) / self.cells
        return floats, log_q


def dequantization_loss(
    model: ScoreModel, dequantizer: VariationalDequantizer, x: Tensor, *, seed: int | None = None, **cond: Any
) -> Tensor:
    """An unbiased estimate of the negative bound on log P(x) in nats, (B,): one evaluation of the network.

    Its gradient trains the dequantizer alone where the model's parameters are frozen, else both together.

    Main arguments:
        x: integers (B, *).
    """
    floats, log_q = dequantizer(x, seed)
    inside: Tensor = elbo(model, floats, 1, seed=seed, grad=True, **cond).draws.squeeze(1)
    loss: Tensor = log_q + math.prod(x.shape[1:]) * math.log(dequantizer.cells) - inside
    return loss


def discrete_log_prob(
    model: ScoreModel,
    x: Tensor,
    dequantizer: VariationalDequantizer | None = None,
    samples: int = 5,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    seed: int | None = 0,
    **options: Any,
) -> LogProb:
    """log P(x) of integers 0 .. levels - 1 by several dequantisations, each with probes of its own.

    Main arguments:
        x: integers, (B, *).
        dequantizer: a trained one; uniform noise for None.
        samples: dequantisations K: the paper averages 5 runs, the importance-weighted bound wants many.
        options: those of `log_prob`.

    Returns:
        nats are the mean over dequantisations, a lower bound on log P(x), which is what papers average over runs; its
        standard error is over dequantisations and probes together. `importance_weighted()` is the tighter bound.

    Raises:
        ValueError: an argument out of range.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one dequantisation is needed")
    quantizer = VariationalDequantizer(tuple(x.shape[1:]), levels, low, high, layers=0)
    flow = quantizer.to(x.device) if dequantizer is None else dequantizer
    keys = torch.randint(2**62, (2 * samples,), generator=_generator(seed), device="cpu").tolist()
    dims = math.prod(x.shape[1:])
    columns, parts = [], []
    for k in range(samples):
        with torch.no_grad():
            floats, log_q = flow(x, keys[2 * k])
        lp = log_prob(model, floats.to(model.dtype), seed=keys[2 * k + 1], **options)
        columns.append(lp.nats - dims * math.log(flow.cells) - wide(log_q))
        parts.append(lp)
    nfe, status = (torch.stack([getattr(lp, name) for lp in parts]) for name in ("nfe", "status"))
    return replace(LogProb.of_draws(torch.stack(columns, 1), nfe.sum(0), status.amax(0), dims), discrete=True)


def _log_slope(z: Tensor) -> Tensor:
    return -nn.functional.softplus(z) - nn.functional.softplus(-z)


def _generator(seed: int | None) -> torch.Generator:
    made = torch.Generator()
    if seed is None:
        made.seed()
    else:
        made.manual_seed(seed)
    return made
