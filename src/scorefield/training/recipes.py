"""What `scorefield train NAME` trains: our own small recipes, and the configurations of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from scorefield.data.dataset import Dataset
from scorefield.errors import InputError, closest
from scorefield.ladder import LadderTimes, ddpm_loss
from scorefield.model import ScoreModel
from scorefield.sdes import VP
from scorefield.times import LogNormalTimes, UniformTimes
from scorefield.training.config import OptimConfig, TrainConfig
from scorefield.training.loss import Loss


@dataclass(frozen=True)
class Recipe:
    """A model and how to train it.

    Main arguments:
        name: what the command line calls it.
        model: builds the model for a dataset, with fresh weights from torch's global generator.
        config: how to train it.
        shape: event shape that the data must have; None for any.
        data: the data, where the recipe has some of its own.
        loss: the objective, where it is not `dsm_loss`.
        open: opens data by its name, where `open_data` does not, with the arguments of `data.states.open_states`.
    """

    name: str
    model: Callable[[Dataset], ScoreModel]
    config: TrainConfig
    shape: tuple[int, ...] | None = None
    data: str | None = None
    loss: Loss | None = None
    open: Callable[..., Dataset] | None = None

    def build(self, data: Dataset, seed: int, labels: bool = False) -> ScoreModel:
        """The model with the fresh weights of a seed; the global generator stays as it was.

        Other arguments:
            labels: give the network the classes of the data.

        Raises:
            InputError: the data has no classes, or the network takes none.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            model = self.model(data)
            return self._with_classes(model, data) if labels else model

    def _with_classes(self, model: ScoreModel, data: Dataset) -> ScoreModel:
        if data.labels is None:
            raise InputError(f"{data.name} has no classes; give images in sub-folders, one for each class")
        arguments = getattr(model.net, "config", {})
        if "num_classes" not in arguments:
            raise InputError(f"the network of preset {self.name} ({type(model.net).__name__}) takes no classes")
        count = len(data.classes) or int(data.labels.max()) + 1
        network: Callable[..., Any] = type(model.net)
        model.net = network(**{**arguments, "num_classes": count})
        return model


OWN = ("digits", "density", "edm", "dit", "vectors", "box", "text", "categories", "binary", "pixels", "speech")
DIGIT_CELLS = (0, 1, *range(8, 249, 16), 252, 253, 254, 255)
"""First levels of the cells of a pixel's histogram: paper and the few levels of full ink by themselves."""
BEGIN = (
    "begin with digits (nothing else needed), vectors (any array), edm (pictures), density (digits, for likelihoods), or the "
    "paper's vp/cifar10_ddpmpp_continuous; your own data needs no preset, only --data; `scorefield presets` lists all"
)
"""What to train first."""


def recipe_names() -> list[str]:
    """All names, our own first."""
    from scorefield.presets import names

    return [*OWN, *names()]


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        InputError: there is none.
    """
    if name == "digits":
        return _digits()
    if name == "density":
        return _density()
    if name in ("edm", "dit"):
        return _pictures(name)
    if name == "vectors":
        return _vectors()
    if name == "box":
        return _box()
    if name in ("text", "categories", "binary", "pixels"):
        return _states(name)
    if name == "speech":
        return _speech()
    return _paper(name)


def _digits() -> Recipe:
    """About four minutes on two cores; every choice was compared at equal time (docs/demo.md)."""
    config = TrainConfig(
        steps=2300,
        batch_size=32,
        optim=OptimConfig(name="muon", lr=2e-3, beta2=0.99, warmup=70, schedule="linear"),
        ema=0.99,
        weighting="edm",
        times=LogNormalTimes(mean=-1.2, std=1.8),
        dequantize=True,
        channels_last=True,
        checkpoint_every=500,
        log_every=25,
    )
    return Recipe("digits", partial(_digit_model, 32), config, (1, 28, 28), "digits")


def _density() -> Recipe:
    """The model inside the package: that of `digits`, wider and trained for hours."""
    config = _digits().config.updated(steps=15_000, ema=0.999, checkpoint_every=500, log_every=100)
    return Recipe("density", partial(_digit_model, 40), config, (1, 28, 28), "digits")


def _digit_model(width: int, data: Dataset) -> ScoreModel:
    from scorefield.nn import HistogramUNet, cell_edges

    sde, spread = VP(), 0.6
    edges = cell_edges(DIGIT_CELLS, 256, *sde.range)
    return ScoreModel(
        HistogramUNet(edges, nf=width, sigma_data=spread), sde, "edm", shape=(1, 28, 28), sigma_data=spread
    )


def _pictures(name: str) -> Recipe:
    """Images of any size: the U-Net of Karras et al. 2022 (App. F.2 and Table 7), or a transformer, preconditioned as there."""
    from scorefield.nn import UNet, dit, levels_at

    def network(data: Dataset) -> torch.nn.Module:
        multiple = 4 if name == "edm" else 2
        if len(data.shape) != 3 or any(side % multiple for side in data.shape[1:]):
            raise InputError(
                f"{data.name} has items of shape {data.shape}; preset {name} takes images, sides divisible by {multiple}"
            )
        channels, *sides = data.shape
        if name == "dit":
            patch = next(p for p in (8, 4, 2) if p == 2 or (not any(s % p for s in sides) and min(sides) >= 16 * p))
            return dit("S", channels, patch, time_scale=50.0)
        attn = levels_at((max(sides) // 2,), max(sides), 3)
        return UNet(channels, 128, (2, 2, 2), 4, attn, dropout=0.13, time_scale=50.0)

    def model(data: Dataset) -> ScoreModel:
        return ScoreModel(network(data), VP(), "edm", shape=data.shape, sigma_data=0.5)

    config = TrainConfig(
        steps=400_000,
        batch_size=512 if name == "edm" else 256,
        optim=OptimConfig(lr=1e-3 if name == "edm" else 1e-4, warmup=20_000 if name == "edm" else 1000),
        ema=0.9993 if name == "edm" else 0.9999,
        weighting="edm",
        times=LogNormalTimes(mean=-1.2, std=1.2),
    )
    return Recipe(name, model, config)


def _vectors() -> Recipe:
    from scorefield.nn import MLP

    def model(data: Dataset) -> ScoreModel:
        size = math.prod(data.shape)
        spread = 0.5 if data.scaled else None  # which training measures
        return ScoreModel(MLP(size), VP(), "edm", shape=data.shape, sigma_data=spread)

    config = TrainConfig(steps=10_000, batch_size=256, optim=OptimConfig(lr=1e-3, warmup=100, schedule="cosine"))
    return Recipe("vectors", model, config)


def _box() -> Recipe:
    """Vectors or images that no sample may leave the range of: reflected diffusion between its ends."""
    from scorefield.nn import MLP, UNet
    from scorefield.reflected import ReflectedVE

    def model(data: Dataset) -> ScoreModel:
        if data.levels is None and data.range is None:
            raise InputError(
                f"{data.name} holds floating-point numbers; name the walls that they lie between by --range"
            )
        pictures = len(data.shape) == 3 and not any(side % 4 for side in data.shape[1:])
        net = (
            UNet(data.shape[0], 32, (1, 2, 2), 1, (), dropout=0.0, centered=False)
            if pictures
            else MLP(math.prod(data.shape))
        )
        return ScoreModel(net, ReflectedVE(0.001 if pictures else 0.01, 2.0), "noise", shape=data.shape)

    optim = OptimConfig(name="muon", lr=2e-3, beta2=0.99, warmup=70, schedule="linear")
    return Recipe("box", model, TrainConfig(steps=5000, batch_size=64, optim=optim, ema=0.99, dequantize=True))


def _states(name: str) -> Recipe:
    """Masked diffusion of text, of a table of categories, of binarised images or of images as they are."""
    from scorefield import nn
    from scorefield.data.states import open_states
    from scorefield.discrete import Absorbing, JumpModel, JumpTimes

    def network(data: Dataset, states: int) -> torch.nn.Module:
        if name == "text":
            return nn.Transformer(states + 1, states, width=128, depth=4)
        if name in ("binary", "pixels"):
            if len(data.shape) != 3 or any(side % 4 for side in data.shape[1:]):
                raise InputError(
                    f"{data.name} has items of shape {data.shape}; preset binary takes images, sides divisible by 4"
                )
            return nn.StateUNet(states + 1, data.shape[0], states, nf=32, dropout=0.0)
        sizes = getattr(data.codec, "sizes", None)
        return nn.StateMLP(states + 1, math.prod(data.shape), states, width=256, depth=3, sizes=sizes)

    def model(data: Dataset) -> ScoreModel:
        if data.levels is None:
            raise InputError(f"{data.name} holds floating-point numbers; preset {name} takes states, integers from 0")
        return JumpModel(network(data, data.levels), Absorbing(data.levels), data.shape, clock=None)

    config = TrainConfig(
        steps={"text": 6000, "categories": 4000, "binary": 3000, "pixels": 6000}[name],
        batch_size={"text": 64, "categories": 256, "binary": 32, "pixels": 32}[name],
        optim=OptimConfig(name="muon", lr=2e-3, beta2=0.99, warmup=50, schedule="linear"),
        ema=0.99,
        times=JumpTimes(),
        checkpoint_every=500,
        log_every=25,
    )
    opened = partial(open_states, levels=2) if name == "binary" else open_states
    return Recipe(name, model, config, data="digits" if name in ("binary", "pixels") else None, open=opened)


def _speech() -> Recipe:
    """Clean speech from noisy: pairs of recordings, one frame at a time, in about a minute (benchmarks/speech.py)."""
    from scorefield.data.pairs import pairs
    from scorefield.nn import FrameMLP, Paired
    from scorefield.sdes import VPIDM

    def opened(source: str, train: bool = True, codec: Any = None) -> Dataset:
        return pairs(source, codec, train=train)

    def model(data: Dataset) -> ScoreModel:
        sde = VPIDM(scale=2**-0.5)
        return ScoreModel(Paired(FrameMLP(data.codec.bins), sde), sde, "data", shape=data.shape, sigma_data=0.1)

    config = TrainConfig(
        steps=1500,
        batch_size=8,
        optim=OptimConfig(lr=2e-3, warmup=30, schedule="linear"),
        ema=0.99,
        weighting="edm",  # near that of x_0 itself, so that most of the network's room goes to where noise is removed
        times=UniformTimes(0.02),
        checkpoint_every=500,
        log_every=25,
    )
    return Recipe("speech", model, config, open=opened)


def _paper(name: str) -> Recipe:
    from scorefield.presets import get, names

    if name not in names():
        known = [*OWN, *names()]
        if "/" in name and name.partition("/")[0] not in {known_name.partition("/")[0] for known_name in names()}:
            raise InputError(f"{name} does not exist, and no preset is called so; check the path")
        near = closest(name, known)
        raise InputError(f"preset {name!r} is unknown{near if near.startswith('; did you') else f'; {BEGIN}'}")
    preset = get(name)
    size, training, optim = preset.data.image_size, preset.training, preset.optim
    config = TrainConfig(
        steps=training.n_iters
        - 1,  # the official loop counts from 0 up to n_iters and makes one more for its last save
        batch_size=training.batch_size,
        seed=preset.seed,
        optim=OptimConfig(
            lr=optim.lr,
            beta1=optim.beta1,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            warmup=optim.warmup,
            clip=max(optim.grad_clip, 0.0),
        ),
        ema=preset.model.ema_rate,
        weighting="likelihood" if training.likelihood_weighting else "noise",
        times=LadderTimes(preset.model.num_scales) if preset.discrete else UniformTimes(),
        stratify=False,
        reduce="mean" if training.reduce_mean else "sum",
        dequantize=preset.data.uniform_dequantization,
        flip=preset.data.random_flip,
        log_every=training.log_freq,
        checkpoint_every=training.snapshot_freq_for_preemption,
    )
    shape = (preset.data.num_channels, size, size)

    def model(data: Dataset) -> ScoreModel:
        built = preset.score_model()
        built.shape = shape
        return built

    ddpm = preset.discrete and isinstance(preset.sde, VP)
    return Recipe(name, model, config, shape, loss=ddpm_loss if ddpm else None)
