"""What a training run does, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from typing_extensions import TypedDict

from scorefield.errors import InputError, closest
from scorefield.times import Proposal, UniformTimes


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning rate, which is a function of the step alone.

    Defaults are those of Song et al. 2021, App. H, but for a shorter warm-up.
    """

    name: Literal["adam", "adamw", "muon"] = "adam"
    """Adam, AdamW with decoupled weight decay, or Muon, which learns more from each step and decays no weights."""
    lr: float = 2e-4
    """Learning rate after the warm-up."""
    beta1: float = 0.9
    """Decay of the running mean of gradients."""
    beta2: float = 0.999
    """Decay of the running mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the running mean of squared gradients."""
    weight_decay: float = 0.0
    """Weight decay."""
    warmup: int = 1000
    """Steps over which the learning rate rises linearly from zero; far fewer than the run has."""
    schedule: Literal["constant", "linear", "cosine", "cooldown"] = "constant"
    """How the learning rate falls to zero after the warm-up; cooldown is linear over the last quarter of the steps."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""

    def __post_init__(self) -> None:
        _as_numbers(self, "optim.")
        _require(self.name in ("adam", "adamw", "muon"), "optim.name", self.name, "adam, adamw or muon")
        _require(self.name != "muon" or not self.weight_decay, "optim.weight_decay", self.weight_decay, "0 with muon")
        _require(0 < self.lr < math.inf, "optim.lr", self.lr, "a positive number, such as 2e-4")
        _require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "a number from 0 up to 1")
        _require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "a number from 0 up to 1")
        _require(0 < self.eps < math.inf, "optim.eps", self.eps, "a positive number")
        _require(0 <= self.weight_decay < math.inf, "optim.weight_decay", self.weight_decay, "0 or more")
        _require(self.warmup >= 0, "optim.warmup", self.warmup, "0 steps or more")
        _choice("optim.schedule", self.schedule, ("constant", "linear", "cosine", "cooldown"))
        _require(0 <= self.clip < math.inf, "optim.clip", self.clip, "0 or more")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of the update after `step` others, of `steps` in all; the first is 0, as in the paper's code."""
        rate = self.lr * min(1.0, step / self.warmup if self.warmup else 1.0)
        left = 1 - min(1.0, max(0.0, (step - self.warmup) / max(steps - self.warmup, 1)))
        if self.schedule == "linear":
            return rate * left
        if self.schedule == "cooldown":
            return rate * min(1.0, max(0.0, 4 * (steps - step) / steps))
        if self.schedule == "cosine":
            return rate * 0.5 * (1 - math.cos(math.pi * left))
        return rate


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes, and how often it reports and saves."""

    steps: int = 100_000
    """Optimiser steps in all; with minutes the most there may be, if they are given."""
    minutes: float | None = None
    """Time after which training ends by itself, measured over all attempts; it decides the number of steps."""
    batch_size: int = 128
    """Items per step, over all processes."""
    accumulate: int = 1
    """Parts that a process cuts its share of a batch into, to need less memory; the gradient is that of the whole."""
    seed: int = 0
    """Decides data order, times, noise and dropout; the same seed gives the same run."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: float = 0.999
    """Rate of the weight average, min(ema, (1 + n) / (10 + n)) after n updates; the paper: 0.999 VE, 0.9999 VP."""
    power_ema: tuple[float, ...] = ()
    """Widths (sigma_rel, such as 0.05 0.1) of power-function averages, from which `post_hoc_ema` makes any other."""
    snapshot_every: int = 1000
    """Steps between snapshots of the power-function averages."""
    weighting: Literal["auto", "noise", "likelihood", "none", "edm", "velocity"] = "auto"
    """Weight of each noise level in the loss (see `dsm_loss`); auto is edm where the model predicts that, else noise."""
    fokker_planck: float = 0.0
    """Weight of the Fokker-Planck penalty beside the loss (see `fokker_planck_loss`), for smooth networks; 0 leaves it out."""
    probes: int = 1
    """Random signs for each of its two estimates; 0 takes all second derivatives, for data of few entries."""
    times: Proposal = UniformTimes()  # noqa: RUF009 - a frozen value
    """Where training times are drawn."""
    stratify: bool = True
    """Spread the times of a batch evenly."""
    reduce: Literal["mean", "sum"] = "mean"
    """Mean of the loss over the entries of an item, or half their sum as in the paper's VE configurations."""
    dequantize: bool = False
    """Add uniform noise of one level to integer data, as likelihoods need it."""
    flip: bool = False
    """Mirror images left to right at random."""
    label_dropout: float = 0.1
    """Share of labels that are withheld, so that a network with classes also learns the data without (Ho & Salimans)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the network's products; weights and sums stay in float32."""
    shard: bool = False
    """Spread weights, averages and optimiser state over the processes (FSDP), for networks that do not fit one device."""
    channels_last: bool = False
    """Memory format of image networks, faster on most hardware."""
    compile: bool = False
    """Compile the network with torch.compile."""
    workers: int = 2
    """Threads that read slow data ahead."""
    log_every: int = 50
    """Steps between lines of log.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept; older ones are removed."""
    keep_best: bool = True
    """Keep the checkpoint with the least held-out loss, or running loss where nothing is held out, beside the newest."""
    on_divergence: Literal["stop", "rollback"] = "stop"
    """What a loss that is not finite or explodes does: stop, or go back to the last checkpoint and on with other data."""
    rollbacks: int = 3
    """Rollbacks after which a further divergence stops the run."""
    explosion: float = 1000.0
    """A loss so many times its running mean has exploded; 0 lets it."""
    sample_every: int = 0
    """Steps between sample grids from fixed seeds, in samples/; 0 draws none."""
    sample_count: int = 16
    """Samples in a grid."""
    trackers: tuple[str, ...] | None = None
    """Where figures go besides log.jsonl, by accelerate's names, such as wandb; tensorboard if it is installed."""
    report: bool = True
    """Write report.html at the end and with every sample grid."""

    def __post_init__(self) -> None:
        _as_numbers(self)
        positive = ("steps", "batch_size", "accumulate", "snapshot_every", "log_every", "checkpoint_every", "keep")
        for name in (*positive, "sample_count"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        if self.minutes is not None:
            _require(0 < self.minutes < math.inf, "minutes", self.minutes, "a positive number, such as 10")
            schedules = "constant or cooldown with minutes, whose course does not depend on the number of steps"
            _require(self.optim.schedule in ("constant", "cooldown"), "schedule", self.optim.schedule, schedules)
        _require(0 <= self.seed < 2**63, "seed", self.seed, "an integer from 0 to 2**63 - 1")
        _require(0 <= self.ema < 1, "ema", self.ema, "a rate from 0 up to 1, such as 0.999")
        _require(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "a share from 0 to 1")
        for name in ("workers", "rollbacks", "explosion", "sample_every", "fokker_planck", "probes"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for width in self.power_ema:
            _require(0 < width < WIDEST, "power_ema", width, f"widths between 0 and {WIDEST}, such as 0.05 0.1")
        _choice("weighting", self.weighting, ("auto", "noise", "likelihood", "none", "edm", "velocity"))
        _choice("reduce", self.reduce, ("mean", "sum"))
        _choice("on_divergence", self.on_divergence, ("stop", "rollback"))
        _choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        _require(callable(self.times), "times", self.times, "a proposal, such as scorefield.times.LogSNRTimes()")

    def updated(self, **changes: Any) -> TrainConfig:
        """The configuration with some fields replaced; fields of the optimiser may be named without `optim`.

        Raises:
            InputError: a field that does not exist, or a value that is out of range.
        """
        own = {f.name for f in fields(self)}
        inner = {f.name for f in fields(OptimConfig)} - own
        for name in changes:
            if name not in own | inner:
                hint = f"; did you mean {SYNONYMS[name]}?" if name in SYNONYMS else closest(name, own | inner)
                raise InputError(f"train() has no option {name!r}{hint}")
        if changes.get("minutes") is not None:
            changes.setdefault("steps", UNLIMITED)
        optim = replace(changes.get("optim", self.optim), **{k: v for k, v in changes.items() if k in inner})
        return replace(self, **{k: v for k, v in changes.items() if k in own} | {"optim": optim})


SYNONYMS = {
    "learning_rate": "lr",
    "epochs": "steps (one epoch is the number of items over batch_size)",
    "num_epochs": "steps (one epoch is the number of items over batch_size)",
    "max_steps": "steps",
    "num_steps": "steps",
    "n_steps": "steps",
    "iterations": "steps",
    "batch": "batch_size",
    "optimizer": "optim",
    "grad_clip": "clip",
    "ema_decay": "ema",
}
"""What other trainers call an option."""
UNLIMITED = 10**9
"""Steps of a run that ends by the clock, unless fewer are asked for."""
WIDEST = 0.28
"""The relative width of a uniform average is 12^(-1/2) = 0.289; wider ones would look away from the present."""

MAY_CHANGE = (
    "steps",
    "minutes",
    "workers",
    "log_every",
    "checkpoint_every",
    "keep",
    "keep_best",
    "compile",
    "shard",
    "on_divergence",
    "rollbacks",
    "explosion",
    "snapshot_every",
    "sample_every",
    "sample_count",
    "trackers",
    "report",
)
"""Fields that a resumed run may change: they leave the computation as it was."""


class Options(TypedDict, total=False):
    """Fields of `TrainConfig` and `OptimConfig` by name, as `train` takes them."""

    steps: int
    minutes: float | None
    batch_size: int
    accumulate: int
    seed: int
    optim: OptimConfig
    name: Literal["adam", "adamw", "muon"]
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    warmup: int
    schedule: Literal["constant", "linear", "cosine", "cooldown"]
    clip: float
    ema: float
    power_ema: tuple[float, ...]
    snapshot_every: int
    weighting: Literal["auto", "noise", "likelihood", "none", "edm", "velocity"]
    fokker_planck: float
    probes: int
    times: Proposal
    stratify: bool
    reduce: Literal["mean", "sum"]
    dequantize: bool
    flip: bool
    label_dropout: float
    precision: Literal["fp32", "bf16", "fp16"]
    shard: bool
    channels_last: bool
    compile: bool
    workers: int
    log_every: int
    checkpoint_every: int
    keep: int
    keep_best: bool
    on_divergence: Literal["stop", "rollback"]
    rollbacks: int
    explosion: float
    sample_every: int
    sample_count: int
    trackers: tuple[str, ...] | None
    report: bool


def _choice(name: str, value: object, known: tuple[str, ...]) -> None:
    _require(value in known, name, value, "one of " + ", ".join(known))


def _as_numbers(config: Any, prefix: str = "") -> None:
    """Make numbers of any kind Python's own, so that they compare, print and are written as such.

    Raises:
        InputError: a field that counts is not whole, or one of numbers holds none.
    """
    for f in fields(config):
        value, kind = getattr(config, f.name), str(f.type).removesuffix(" | None")
        if kind not in ("int", "float") or (value is None and "None" in str(f.type)):
            continue
        number = _plain(value)
        if number is None or (kind == "int" and not (math.isfinite(number) and number == int(number))):
            raise InputError(
                f"{prefix}{f.name}={value!r} is impossible; expected {'a whole ' * (kind == 'int') or 'a '}number"
            )
        if type(value) not in (int, float) or (kind == "int" and type(value) is float):
            object.__setattr__(config, f.name, int(number) if kind == "int" else float(number))


def _plain(value: Any) -> float | int | None:
    """A number of NumPy or torch as one of Python; None for what is none."""
    if isinstance(value, int | float):
        return value
    item = getattr(value, "item", None)
    found = item() if item is not None and not getattr(value, "ndim", 0) else None
    return found if isinstance(found, int | float) else None


def _require(condition: bool, name: str, value: object, right: str) -> None:
    if not condition:
        raise InputError(f"{name}={value} is impossible; expected {right}")
