"""The loss of a batch: weighted, averaged, told apart by noise level, and measured on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data.dataset import Dataset
from scorefield.dtypes import onto, wide
from scorefield.errors import InputError
from scorefield.fokker_planck import fokker_planck_loss
from scorefield.model import ScoreModel
from scorefield.objective import dsm_loss
from scorefield.sde import GaussianSDE
from scorefield.training.batches import Batch, Feed
from scorefield.training.config import TrainConfig
from scorefield.training.interrupt import StopSignals

Loss = Callable[..., Tensor]
BINS = 12
"""Noise levels that the log tells apart, equal in log-SNR."""


class Objective(nn.Module):
    """Weighted loss of each item of a batch, (b,), as a module so that accelerate can wrap it."""

    def __init__(self, model: ScoreModel, config: TrainConfig, loss: Loss | None) -> None:
        super().__init__()
        self.model = model
        self._sum = config.reduce == "sum"
        self._weighting: Any = config.weighting
        if config.weighting == "auto":
            self._weighting = "edm" if getattr(model, "predict", "") == "edm" else "noise"
        self._loss = loss or model.own_loss
        self._penalty, self._probes = config.fokker_planck, config.probes or None
        if self._penalty and (self._loss is not None or not isinstance(model.sde, GaussianSDE)):
            raise InputError(
                f"fokker_planck={self._penalty} goes with score matching under a Gaussian SDE; leave it out, or add "
                "sf.fokker_planck_loss to a loss of your own"
            )

    def forward(self, batch: Batch) -> Tensor:
        given = {"label": batch.label, "y": batch.y}
        cond: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self._loss is not None:
            each = self._loss(self.model, batch.x0, t=batch.t, noise=batch.noise, **cond)
        else:
            each = dsm_loss(self.model, batch.x0, self._weighting, t=batch.t, noise=batch.noise, **cond)
        if self._penalty:
            each = each + self._penalty * self._fokker_planck(batch, cond).to(each)
        if each.shape != batch.t.shape:
            raise InputError(
                f"the loss returned shape {tuple(each.shape)}; expected one value a sample, {tuple(batch.t.shape)}"
            )
        each = each * onto(batch.weight, each)
        return 0.5 * each if self._sum else each / math.prod(batch.x0.shape[1:])

    def _fokker_planck(self, batch: Batch, cond: dict[str, Any]) -> Tensor:
        seed = int(torch.randint(2**62, (), device="cpu"))
        return fokker_planck_loss(
            self.model, batch.x0, t=batch.t, noise=batch.noise, probes=self._probes, seed=seed, **cond
        )


@torch.no_grad()
def held_out_loss(
    model: ScoreModel,
    data: Dataset,
    config: TrainConfig,
    loss: Loss | None,
    labels: bool,
    accelerator: Any,
    signals: StopSignals | None = None,
) -> float:
    """Mean loss on every item of `data` at times and noise that are the same at every call, over all processes.

    NaN if a signal has come in between.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    plain = replace(config, flip=False, label_dropout=0.0, accumulate=1)
    feed = Feed(data, plain, model.sde, labels, rank, world)
    objective, size = Objective(model, plain, loss), config.batch_size // world
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    with accelerator.autocast():
        for step, items in enumerate(feed.raw(0, -(-data.size // config.batch_size))):
            if signals is not None and signals.received is not None:
                return math.nan
            each = objective(feed.batch(step, items, accelerator.device)).cpu().double()
            place = step * config.batch_size + rank * size
            total += each[: max(0, data.size - place)].sum()  # the last batch goes on with items that were seen already
    mean = (total / data.size).float().to(accelerator.device)
    return float(accelerator.reduce(mean, "sum") if world > 1 else mean)


@dataclass
class Levels:
    """Losses since the last report, by noise level; kept on the device until then, so that no step waits for them."""

    sde: GaussianSDE
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, batch: Batch, each: Tensor) -> None:
        """Take in the losses (b,) of a batch."""
        self.seen.append((batch.t, each.detach()))

    def report(self, accelerator: Any) -> list[tuple[float, float]]:
        """(log-SNR, mean loss) of each level that was met, over all processes, from noise to data; forgets them."""
        edges = level_edges(self.sde)
        t = torch.cat([t for t, _ in self.seen])
        each = wide(torch.cat([each for _, each in self.seen]))
        self.seen.clear()
        if accelerator.num_processes > 1:
            t, each = accelerator.gather(onto(t, each)), accelerator.gather(each)
        where = torch.bucketize(self.sde.log_snr(t), edges[1:-1])
        count = torch.zeros(BINS, dtype=torch.float64, device="cpu").index_add_(
            0, where, torch.ones(len(each), dtype=torch.float64, device="cpu")
        )
        total = torch.zeros(BINS, dtype=torch.float64, device="cpu").index_add_(0, where, each.cpu().double())
        centres = 0.5 * (edges[1:] + edges[:-1])
        return [(float(c), float(s / n)) for c, s, n in zip(centres, total, count, strict=True) if n]


def level_edges(sde: GaussianSDE) -> Tensor:
    """Edges of the noise levels in log-SNR, rising, (BINS + 1,); finite also where alpha or sigma vanishes at an end."""
    ends = sde.log_snr(torch.tensor([0.999 * sde.T, 1e-3 * sde.T], dtype=torch.float64, device="cpu"))
    return torch.linspace(float(ends[0]), float(ends[1]), BINS + 1, dtype=torch.float64, device="cpu")
