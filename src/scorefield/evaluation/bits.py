"""Bits per dimension and loss of data under a model, item by item."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, Range, to_range
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.likelihood import LogProb, Places, levels_width, log_prob, places
from scorefield.model import ScoreModel
from scorefield.objective import Weighting, dsm_loss
from scorefield.parallel import Processes
from scorefield.progress import Bar
from scorefield.sde import SDE
from scorefield.training.batches import derived_seed, step_generator

CHUNK = 50
"""Items at a time; fixed, since the times of a loss are spread over the items that are taken together."""


def model_input(data: Dataset, index: Sequence[int], interval: Range | None, seed: int | None = None) -> Tensor:
    """Items (B, *) in the model's range, on the CPU.

    With a seed integers are dequantised, by noise that is a function of (seed, index), whatever the batches.
    """
    uniform = None
    if data.levels is not None and seed is not None:
        draws = [torch.rand(data.shape, generator=step_generator(seed, "dequantize", i), device="cpu") for i in index]
        uniform = torch.stack(draws)
    return to_range(data.read(index), data, interval or (0.0, 1.0), uniform)


def item_likelihoods(
    model: ScoreModel, data: Dataset, index: Sequence[int], interval: Range | None, *, seed: int = 0, **options: Any
) -> tuple[LogProb, Tensor]:
    """Likelihoods of some items by `log_prob` with `options`, and what they are in nats of the data as it is stored, (B,).

    That is log P of integers, dequantised once, and a density per unit of the data, not of the model's range, of floats.
    Probes and dequantisation of an item depend on (seed, index) alone.
    """
    x = model_input(data, index, interval, seed).to(model.device)
    if isinstance(model.sde, SDE):
        model.sde.check(x, data.name)
    seeds = [derived_seed(seed, "likelihood", i) for i in index]
    lp = log_prob(model, x, seed=seeds, progress=False, **options)
    low, high = interval or (0.0, 1.0)
    if data.levels is not None:
        return lp, lp.nats - lp.dims * math.log(levels_width(data.levels, low, high))
    if data.range is not None and interval is not None:
        return lp, lp.nats + lp.dims * math.log((high - low) / (data.range[1] - data.range[0]))
    if data.scale is not None:
        return lp, lp.nats - data.scale.log_volume(data.read(index)).to(lp.nats.device)
    return lp, lp.nats


def item_places(
    model: ScoreModel, data: Dataset, index: Sequence[int], interval: Range | None, *, seed: int = 0, **options: Any
) -> Places:
    """The same entry by entry, by `likelihood.places` with `options`; the likelihoods are those of `item_likelihoods`."""
    x = model_input(data, index, interval, seed).to(model.device)
    return places(model, x, seed=[derived_seed(seed, "likelihood", i) for i in index], **options)


def bits_per_dim(
    model: ScoreModel,
    data: Dataset,
    interval: Range | None,
    *,
    seed: int = 0,
    processes: Processes | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Mean bits per dimension of all items by the probability flow, one probe each; integers are dequantised.

    For float data these are bits of a density in the units in which the data is stored.
    """
    dims = math.prod(data.shape)

    def values(index: range) -> Tensor:
        return -item_likelihoods(model, data, index, interval, seed=seed)[1] / (dims * math.log(2))

    return _over(data, values, "likelihood", processes, progress)


def mean_loss(
    model: ScoreModel,
    data: Dataset,
    interval: Range | None,
    *,
    weighting: Weighting = "noise",
    seed: int = 0,
    processes: Processes | None = None,
    progress: bool | None = None,
) -> Estimate:
    """Mean of the denoising score matching loss (see `dsm_loss`) over all items, per entry; times are uniform."""
    dims = math.prod(data.shape)

    def values(index: range) -> Tensor:
        x = model_input(data, index, interval).to(model.device)
        with torch.no_grad():
            return dsm_loss(model, x, weighting, seed=derived_seed(seed, "loss", index.start)) / dims

    return _over(data, values, "loss", processes, progress)


def _over(
    data: Dataset, values: Callable[[range], Tensor], name: str, processes: Processes | None, progress: bool | None
) -> Estimate:
    shared = processes or Processes()
    own = [*range(0, data.size, CHUNK)][shared.rank :: shared.count]
    found: list[tuple[int, Tensor]] = []
    with Bar(name, progress if shared.main else False) as bar:
        for done, start in enumerate(own):
            found.append((start, values(range(start, min(start + CHUNK, data.size))).detach().cpu().double()))
            bar((done + 1) / len(own))
    parts = sorted(shared.gather(found), key=lambda part: part[0])
    return shared.broadcast(mean_of(torch.cat([value for _, value in parts])) if shared.main else Estimate(0, 0, 0))
