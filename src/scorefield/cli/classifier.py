"""scorefield classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

import scorefield as sf
from scorefield.cli.options import COUNT, Arrays, Name, OfRun, Reading, Result, pick_device, read_data
from scorefield.errors import InputError

if TYPE_CHECKING:
    from scorefield.data.dataset import Dataset

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise in units of the data, sigma / alpha, at which the accuracy is reported."""
LOOKED_AT = 2000
"""Held-out items on which the accuracy is measured, at most."""


@dataclass(frozen=True, kw_only=True)
class Options(Reading, Arrays, OfRun):
    """Train a classifier of noised data, with which a run draws samples of a class (Song et al. 2021, App. I.1).

    Example: scorefield classifier runs/digits --data digits --out runs/digits-classifier
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder of the score model that is to be guided; its SDE and its shape are the classifier's."""
    data: Annotated[str, Name("DATA")] = "digits"
    """digits, a folder with a sub-folder for each class, or a .npz file with labels."""
    out: Annotated[str, Name("FOLDER")]
    """Folder of the classifier's run; the same command again goes on where the last one ended."""
    steps: Annotated[int, COUNT] = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, COUNT] = 128
    """Items per step."""
    lr: float = 2e-3
    """Largest learning rate."""
    depth: int = 10
    """Layers of the wide residual network, 6 n + 4; the paper's is 28."""
    width: Annotated[int, COUNT] = 2
    """Its width; the paper's is 10."""
    checkpoint_every: Annotated[int, COUNT] = 500
    """Steps between checkpoints."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.guide.classifier import accuracy
    from scorefield.training.classifier import class_count, load_classifier, train_classifier
    from scorefield.training.describe import from_json

    info = sf.training.read_run(options.run)

    def read(train: bool) -> Dataset:
        return read_data(options, options.data, info.shape, train=train, labels=True)

    whole = read(train=True)
    class_count(whole)
    device = pick_device(options.device)
    sde = from_json(info.model["sde"])
    data, test = (whole, read(train=False)) if options.data == "digits" else _split(whole)
    done = train_classifier(
        data,
        sde,
        out=options.out,
        depth=options.depth,
        width=options.width,
        device=device,
        progress=True,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=min(100, options.steps // 5),
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
    )
    if not done.finished:
        text = f"{options.out}: step {done.step} of {done.steps}, stopped; the same command goes on from here"
        return Result(text, {"out": options.out, "step": done.step, "finished": False})
    seen = test.subset(range(min(len(test), LOOKED_AT)))
    times = [t for t in (_time(sde, level) for level in LEVELS) if t is not None]
    clf = load_classifier(options.out, device=device)
    assert seen.labels is not None
    x = seen.tensor(sde.range).to(device)
    shares = accuracy(clf, sde, x, seen.labels.to(device), times, options.seed).tolist()
    levels = [float(sde.sigma(t) / sde.alpha(t)) for t in times]
    table = "\n".join(f"{level:10.3g} {share:10.3f}" for level, share in zip(levels, shares, strict=True))
    text = f"{options.out}: step {done.step}; accuracy on {len(seen)} held-out items\n     noise   accuracy\n{table}"
    curve = [{"noise": level, "accuracy": share} for level, share in zip(levels, shares, strict=True)]
    return Result(text, {"out": options.out, "step": done.step, "finished": True, "accuracy": curve})


def _split(data: Dataset) -> tuple[Dataset, Dataset]:
    """Nine tenths to train on and one to test on, drawn once and for all."""
    import torch

    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
    held = max(len(data) // 10, 1)
    if len(data) - held < 1:
        raise InputError(f"{data.name} holds one item; a classifier needs some to train on and some to test on")
    return data.subset(order[held:]), data.subset(order[:held])


def _time(sde: object, level: float) -> float | None:
    """The time of a level of noise, where the SDE reaches it."""
    import math

    from scorefield.sde import GaussianSDE

    assert isinstance(sde, GaussianSDE)
    low, high = (-0.5 * float(sde.log_snr(t)) for t in (1e-5, sde.T))
    return float(sde.inverse_log_snr(-2 * math.log(level))) if low <= math.log(level) <= high else None
