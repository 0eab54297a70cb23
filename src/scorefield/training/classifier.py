"""Time-dependent classifiers for guidance, trained by the same loop as score models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.data.dataset import Dataset
from scorefield.differentiate import differentiation
from scorefield.errors import CheckpointError, InputError
from scorefield.guide.classifier import Classifier
from scorefield.model import ScoreModel
from scorefield.nn.classifier import VectorClassifier, WideResNet
from scorefield.sde import GaussianSDE
from scorefield.times import LogNormalTimes
from scorefield.training.config import OptimConfig, TrainConfig
from scorefield.training.run import load
from scorefield.training.trainer import Run, train

DEFAULT = TrainConfig(
    steps=2000,
    optim=OptimConfig(name="muon", lr=2e-3, beta2=0.99, warmup=100, schedule="linear"),
    times=LogNormalTimes(mean=-0.5, std=2.0),
    label_dropout=0.0,
    channels_last=True,
    report=False,
)
"""Training of a small classifier; its times are those at which classes can be told apart, with a margin on both sides."""


def classifier_network(shape: tuple[int, ...], classes: int, depth: int = 10, width: int = 2) -> torch.nn.Module:
    """`WideResNet` for signals, images and volumes whose sides 4 divides, `VectorClassifier` for anything else."""
    dims = len(shape) - 1
    if 1 <= dims <= 3 and all(side % 4 == 0 for side in shape[1:]):
        return WideResNet(shape[0], classes, depth, width, dims=dims)  # type: ignore[arg-type]
    return VectorClassifier(math.prod(shape), classes, 64 * width)


@differentiation()
def train_classifier(
    data: Dataset,
    sde: GaussianSDE,
    *,
    out: str | Path,
    depth: int = 10,
    width: int = 2,
    held_out: Dataset | None = None,
    device: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Train p(label | x_t) on labelled data, by the cross-entropy mixed over times (Song et al. 2021, App. I.1).

    The folder is a run like any other: the same call continues it, and `load_classifier` reads it.

    Main arguments:
        data: a Dataset with labels, 0 .. K - 1. sde: the forward process. out: folder of the run.
        depth, width: of the wide residual network; 28 and 10 in the paper.

    Other arguments:
        held_out, device, progress, **options: as in `train`.

    Raises:
        InputError: data without labels, or with one class only; and as `train`.
    """
    classes = class_count(data)
    settings = DEFAULT.updated(**options, label_dropout=0.0)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(settings.seed)
        net = classifier_network(data.shape, classes, depth, width)
    model = ScoreModel(net, sde, "noise", shape=data.shape)
    return train(
        model,
        data,
        out=out,
        config=settings,
        loss=_cross_entropy,
        held_out=held_out,
        device=device,
        progress=progress,
    )


def load_classifier(run: str | Path, sde: GaussianSDE | None = None, device: str | torch.device = "cpu") -> Classifier:
    """The classifier of a run, with its averaged weights, for `ClassifierGuidance`.

    Main arguments:
        sde: the forward process of the model to be guided; the one of its training unless given. One classifier serves
            every SDE, since its network sees only the level of noise.

    Raises:
        CheckpointError: not a run, or one of a score model.
    """
    model = load(run, device=device)
    if not is_classifier(model):
        raise CheckpointError(f"{run} is a score model, not a classifier; give the folder that `classifier` wrote")
    assert isinstance(model.net, torch.nn.Module)
    classifier = Classifier(model.net, model.sde if sde is None else sde)
    return classifier.eval()


def is_classifier(model: ScoreModel) -> bool:
    """Whether what a run holds tells classes apart rather than noise from data."""
    return isinstance(model.net, WideResNet | VectorClassifier)


def class_count(data: Dataset) -> int:
    """Number of classes of labelled data.

    Raises:
        InputError: no labels, labels that are not 0 .. K - 1, or one class only.
    """
    if data.labels is None:
        raise InputError(
            f"{data.name} has no classes; give digits, a folder with a sub-folder for each class, or a .npz with 'labels'"
        )
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high < 1:
        raise InputError(f"{data.name} has labels from {low} to {high}; expected 0 .. K - 1 with at least two classes")
    return max(high + 1, len(data.classes))


def _cross_entropy(model: ScoreModel, x0: Tensor, *, t: Tensor, noise: Tensor, label: Tensor) -> Tensor:
    classifier = Classifier(model.net, model.sde)  # type: ignore[arg-type]
    x = expand(model.sde.alpha(t), x0) * x0 + expand(model.sde.sigma(t), x0) * noise
    # The trainer takes the mean over the entries of an item, of which a label has one.
    return torch.nn.functional.cross_entropy(classifier(x, t), label, reduction="none") * math.prod(x0.shape[1:])
