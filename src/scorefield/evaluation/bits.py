"""Bits per dimension and loss of data under a model, item by item."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, Range, to_range
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.likelihood import log_prob
from scorefield.model import ScoreModel
from scorefield.objective import Weighting, dsm_loss
from scorefield.parallel import Processes
from scorefield.progress import Bar
from scorefield.training.batches import derived_seed, step_generator

CHUNK = 50
"""Items at a time; fixed, since the times of a loss are spread over the items that are taken together."""


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
        x = _input(data, index, interval, seed).to(model.device)
        seeds = [derived_seed(seed, "likelihood", i) for i in index]
        found = log_prob(model, x, seed=seeds, progress=False)
        if data.levels is not None:
            low, high = interval or (0.0, 1.0)
            return found.bits_per_dim(data.levels, low, high)
        nats = found.nats
        if data.range is not None and interval is not None:
            nats = nats + dims * math.log((interval[1] - interval[0]) / (data.range[1] - data.range[0]))
        return -nats / (dims * math.log(2))

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
        x = _input(data, index, interval, None).to(model.device)
        with torch.no_grad():
            return dsm_loss(model, x, weighting, seed=derived_seed(seed, "loss", index.start)) / dims

    return _over(data, values, "loss", processes, progress)


def _input(data: Dataset, index: range, interval: Range | None, seed: int | None) -> Tensor:
    uniform = None
    if data.levels is not None and seed is not None:
        draws = [torch.rand(data.shape, generator=step_generator(seed, "dequantize", i)) for i in index]
        uniform = torch.stack(draws)
    return to_range(data.read(index), data, interval or (0.0, 1.0), uniform)


def _over(
    data: Dataset, values: Callable[[range], Tensor], name: str, processes: Processes | None, progress: bool | None
) -> Estimate:
    shared = processes or Processes()
    own = [*range(0, data.size, CHUNK)][shared.rank :: shared.count]
    found: list[tuple[int, Tensor]] = []
    with Bar(name, progress if shared.main else False) as bar:
        for done, start in enumerate(own):
            found.append((start, values(range(start, min(start + CHUNK, data.size))).detach().double().cpu()))
            bar((done + 1) / len(own))
    parts = sorted(shared.gather(found), key=lambda part: part[0])
    return shared.broadcast(mean_of(torch.cat([value for _, value in parts])) if shared.main else Estimate(0, 0, 0))
