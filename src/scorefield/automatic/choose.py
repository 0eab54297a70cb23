"""The network and the training for data and a machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from scorefield.automatic.findings import LOOKED_AT, Findings, levels_of
from scorefield.data.dataset import Dataset, to_range
from scorefield.discrete import JumpModel
from scorefield.discrete.defaults import own_loss
from scorefield.gaussians import Mixture, Principal, Stationary
from scorefield.model import ScoreModel
from scorefield.nn import MLP, BesideGaussian, BesideMixture, BesideStationary, UNet
from scorefield.nn.baseline import Beside
from scorefield.objective import dsm_loss
from scorefield.sdes import VP
from scorefield.times import LogNormalTimes
from scorefield.training.config import OptimConfig, TrainConfig
from scorefield.training.optimizer import make_optimizer
from scorefield.training.recipes import recipe

WIDTHS = {"picture": (16, 24, 32, 48, 64, 96, 128), "signal": (16, 24, 32, 48, 64), "volume": (8, 12, 16, 24, 32)}
"""Widths of U-Nets at full resolution, from which the clock chooses."""
BATCH = {"picture": 32, "signal": 32, "volume": 8, "vector": 256, "table": 256}
SMOOTH = 50.0
"""Fastest frequency at which networks read log(sigma / alpha) / 4, as in the recipe of the digits; the 1,000 of the paper's
networks is meant for t from 0 to 1."""
MANY = 1000
"""Items from which on networks are trained without dropout."""
WANTED_STEPS = 2000
"""Steps below which a narrower network is taken."""
USUAL_PACE = 0.25
"""Seconds that a step may take where no time is given."""
TRIED = 3
"""Steps that are timed."""


@dataclass(frozen=True)
class Choice:
    """What to train and how.

    Attributes:
        model: with fresh weights. config: without its length. pace: seconds a step. rows: that a mixture
            was fitted to.
    """

    model: ScoreModel
    config: TrainConfig
    pace: float
    rows: int = 0

    def __str__(self) -> str:
        net, config = self.model.net, self.config
        size = sum(p.numel() for p in self.model.parameters())
        speed = f"{1 / self.pace:.3g} steps/s here"
        beside = ""
        if isinstance(net, BesideMixture):
            beside, net = _mixture(len(net.logs), self.rows), net.net
        elif isinstance(net, BesideGaussian):
            beside, net = f" beside a Gaussian of {len(net.spectrum)} directions", net.net
        elif isinstance(net, BesideStationary):
            beside, net = " beside a stationary Gaussian", net.net
        width = getattr(net, "config", {}).get("nf") or getattr(net, "config", {}).get("width")
        if isinstance(self.model, JumpModel):
            how = f"masked states ({self.model.process!r})"
        else:
            how = f"preconditioned by the data's spread {self.model.sigma_data:.2g}"
        return (
            f"{type(net).__name__} of width {width} ({size / 1e6:.2f} M parameters){beside}, {how}; "
            f"{config.optim.name}, batches of {config.batch_size}, {speed}"
        )


def _mixture(components: int, rows: int) -> str:
    """What a mixture is made of; fitted ones are fewer than the rows, so that more are a kernel on each and the rest."""
    fitted = components - rows if components >= rows else components
    if fitted == components:
        return f" beside a mixture of {components} Gaussians"
    few = "a small Gaussian" if fitted == 0 else f"a mixture of {fitted} fitted Gaussians and a small one"
    return f" beside {few} on each of the {rows:,} rows"


def choose(found: Findings, seconds: float | None, steps: int | None, device: torch.device, seed: int) -> Choice:
    """Time steps of the narrowest network, and take the widest that makes enough steps in the time.

    Main arguments:
        seconds, steps: of training; one of them.
    """
    seconds = seconds if seconds is not None else USUAL_PACE * max(steps or 0, WANTED_STEPS)
    kind = found.kind
    if kind == "states":
        return _of_states(found, seconds, steps, device, seed)
    if kind in ("vector", "table"):
        model = build(found, _perceptron_width(found.data), seed)
        config = configured(found, 0.0, seed)
        pace = _pace(model, found, config, device, seconds)
    else:
        widths = [w for w in WIDTHS[kind] if w <= 32 or found.data.size >= 500]
        config = configured(found, 0.0, seed)
        narrow = _pace(build(found, widths[0], seed), found, config, device, seconds)
        # Time grows with the width a little slower than its square.
        fits = [w for w in widths if narrow * (w / widths[0]) ** 1.7 * WANTED_STEPS <= seconds]
        width = fits[-1] if fits else widths[0]
        model = build(found, width, seed)
        pace = narrow if width == widths[0] else _pace(model, found, config, device, seconds)
    return Choice(model, configured(found, steps or seconds / pace, seed), pace, min(found.data.size, LOOKED_AT))


def _of_states(found: Findings, seconds: float, steps: int | None, device: torch.device, seed: int) -> Choice:
    """The preset of categories, by the clock."""
    chosen = recipe("categories")
    model, config = chosen.build(found.data, seed), chosen.config
    optim = replace(config.optim, schedule="cooldown")
    config = config.updated(seed=seed, optim=optim, batch_size=min(config.batch_size, max(8, found.data.size // 2)))
    pace = _pace(model, found, config, device, seconds)
    count = steps or seconds / pace
    often = {"checkpoint_every": max(25, round(count / 25)), "log_every": max(10, round(count / 100))}
    ema = round(1 - 1 / min(max(count / 25, 20), 5000), 5)
    return Choice(model, config.updated(steps=max(1, round(count)), ema=ema, trackers=(), **often), pace)


def build(found: Findings, width: int, seed: int) -> ScoreModel:
    """The model with the fresh weights of a seed."""
    data, kind = found.data, found.kind
    classes = 0 if data.labels is None else found.classes
    # Dropout is for what is seen many times.
    drop = 0.0 if data.size >= MANY else 0.1
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        if kind in ("vector", "table"):
            net: nn.Module = MLP(math.prod(data.shape), width, 4, dropout=drop, time_scale=SMOOTH, num_classes=classes)
        else:
            levels = levels_of(min(data.shape[1:]))
            mult = (1, 2, 2, 2)[:levels]
            attn = (levels - 1,) if math.prod(data.shape[1:]) // 2 ** (2 * (levels - 1)) <= 256 else ()
            dims = {"signal": 1, "picture": 2, "volume": 3}[kind]
            options: dict[str, Any] = {"dims": dims, "dropout": drop, "time_scale": SMOOTH, "num_classes": classes}
            net = UNet(data.shape[0], width, mult, 1, attn, **options)
    model = ScoreModel(net, VP(), "edm", shape=data.shape, sigma_data=round(found.sigma_data, 4))
    return with_law(model, found)


def with_law(model: ScoreModel, found: Findings) -> ScoreModel:
    """The model, its network beside the law of the data where there is one."""
    law = found.law
    net: Any = model.net.net if isinstance(model.net, Beside) else model.net
    with torch.device("cpu"):
        if isinstance(law, Mixture):
            mixture = BesideMixture(net, len(law.weights), model.sigma_data)
            mixture.begin(law.weights, law.means, torch.diag_embed(law.covs) if law.covs.ndim == 2 else law.covs)
            net = mixture
        elif isinstance(law, Principal):
            gaussian = BesideGaussian(net, found.data.shape, len(law.spectrum), model.sigma_data)
            gaussian.begin(*law)
            net = gaussian
        elif isinstance(law, Stationary):
            stationary = BesideStationary(net, found.data.shape, model.sigma_data)
            stationary.begin(*law)
            net = stationary
    model.net = net
    return model


def configured(found: Findings, steps: float, seed: int) -> TrainConfig:
    """How to train for about so many steps."""
    vectors = found.kind in ("vector", "table")
    horizon = min(max(steps / 25, 20), 5000)
    # Where the noise is about as large as the data is where it is learned; densities need the small noise levels too.
    middle = math.log(found.sigma_data) - (0.5 if vectors else 0.6)
    # Beside a law the first checkpoints are nearly that law, so that a network that does not help is not kept.
    warmup = 200 if found.law is not None else 30 if vectors else 70
    # On eight Gaussians 400 steps of Muon left 0.2 nats to the best density, those of Adam 0.8 to 1.
    rate = OptimConfig(name="muon", lr=2e-3, beta2=0.99, warmup=warmup, schedule="cooldown")
    return TrainConfig(
        steps=max(1, round(steps)),
        batch_size=min(BATCH[found.kind], max(8, found.data.size // 2)),
        seed=seed,
        optim=rate,
        ema=round(1 - 1 / horizon, 5),
        weighting="edm",
        times=LogNormalTimes(round(middle, 3), 1.8),
        dequantize=found.data.levels is not None,
        channels_last=found.kind == "picture",
        checkpoint_every=max(25, round(steps / 25)),
        log_every=max(10, round(steps / 100)),
        trackers=(),
    )


def _perceptron_width(data: Dataset) -> int:
    if data.size < 300:
        return 64
    return 256 if data.size >= 20_000 or math.prod(data.shape) > 64 else 128


def _pace(model: ScoreModel, found: Findings, config: TrainConfig, device: torch.device, seconds: float) -> float:
    """Median seconds of a step, timed within a fiftieth of so many seconds if that is enough for one; weights are kept."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    count = config.batch_size
    x = found.data.read(range(min(count, found.data.size)))
    if found.kind != "states":
        x = to_range(x, found.data, model.sde.range)
    x = x.to(device)
    x = x.repeat(-(-count // len(x)), *[1] * (x.ndim - 1))[:count]
    optimizer = make_optimizer(list(model.parameters()), config)
    times = []
    for i in range(TRIED + 1):
        begin = time.monotonic()
        optimizer.zero_grad()
        if found.kind == "states":
            loss = own_loss(model)(model, x, seed=i, times=config.times).mean()  # type: ignore[arg-type]
        else:
            loss = dsm_loss(model, x, "edm", seed=i, times=config.times).mean() / math.prod(x.shape[1:])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()  # waits for the device
        times.append(time.monotonic() - begin)
        if sum(times) > seconds / 50:
            break
    model.load_state_dict(state)
    return statistics.median(times[1:] or times)  # the first warms up
