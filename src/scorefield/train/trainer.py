"""The training loop."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.data.dataset import Dataset, as_dataset
from scorefield.data.files import remove_leftovers
from scorefield.errors import DivergedError, InputError
from scorefield.model import ScoreModel
from scorefield.objective import dsm_loss
from scorefield.train.checkpoint import (
    Checkpoint,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from scorefield.train.config import TrainConfig
from scorefield.train.ema import EMA
from scorefield.train.feed import Batch, Feed
from scorefield.train.guard import StopSignals
from scorefield.train.order import derived_seed
from scorefield.train.resume import check_same_run
from scorefield.train.run import RUN_FILE, load_weights, read_run, write_run
from scorefield.train.setup import held, make_accelerator, make_optimizer, own_randomness
from scorefield.train.watch import Log, Watch

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Run:
    """The outcome of `train`.

    Attributes:
        path: the folder of the run.
        step: optimiser steps done, of `steps`.
        loss: mean loss since the last line of the log; NaN if no step was made.
        model: a copy of the model with the averaged weights, in eval mode, on the device it was trained on.
        stopped: the signal that ended training early, else None.
    """

    path: Path
    step: int
    steps: int
    loss: float
    model: ScoreModel
    stopped: str | None = None

    @property
    def finished(self) -> bool:
        """Whether every step was made."""
        return self.step >= self.steps


def train(
    model: ScoreModel,
    data: Dataset | Tensor | Any,
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    loss: Loss | None = None,
    device: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """Train a score model on data, into a folder; the same call again continues where the last one ended.

    Every step is a function of (seed, step) and of the state in the newest checkpoint, so that on a CPU a run that was
    killed and continued ends with the weights of one that was not, bit for bit.

    Main arguments:
        model: its weights are trained in place; the averaged ones are in the result.
        data: a Dataset, a tensor or array (N, *), or a sequence of tensors or (tensor, label) pairs. Data with labels
            trains a network with classes class-conditionally.
        out: folder for run.json, log.jsonl and the checkpoints step-NNNNNN.
        config, **options: a TrainConfig, and fields to replace in it or in its `optim`, such as steps=, lr=, ema=.

    Other arguments:
        loss: per-sample loss (model, x0, t=, noise=, **cond) -> (B,) in place of `dsm_loss` with `config.weighting`.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        progress: True, False, or None for a progress bar on a terminal.

    Raises:
        InputError: an option, or data that does not fit the model; a run folder in use.
        CheckpointError: the folder belongs to another run, or none of its checkpoints is intact.
        OutputError: the folder is not writable, or the disk is full; the last good checkpoint stays.
        DivergedError: the loss or its gradient is not finite; the last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    settings = (config or TrainConfig()).updated(**options)
    items = as_dataset(data)
    if model.shape is None:
        model.shape = items.shape
    if model.shape != items.shape:
        raise InputError(f"{items.name} has items of shape {items.shape} and the model expects {model.shape}")
    folder = Path(out)
    with StopSignals() as signals:
        accelerator = make_accelerator(settings, device)
        with held(folder, accelerator), own_randomness(accelerator.device):
            run = _Loop(model, items, settings, folder, accelerator, loss).run(signals, progress)
    if signals.received == signal.SIGINT:
        raise KeyboardInterrupt
    return run


class _Objective(nn.Module):
    """Mean weighted loss of a batch, as a module so that accelerate can wrap it for precision and for processes."""

    def __init__(self, model: ScoreModel, config: TrainConfig, loss: Loss | None) -> None:
        super().__init__()
        self.model = model
        self._sum = config.reduce == "sum"
        self._weighting: Any = config.weighting
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        cond: dict[str, Any] = {} if batch.label is None else {"label": batch.label}
        if self._loss is not None:
            each = self._loss(self.model, batch.x0, t=batch.t, noise=batch.noise, **cond)
        else:
            each = dsm_loss(self.model, batch.x0, self._weighting, t=batch.t, noise=batch.noise, **cond)
        if each.shape != batch.t.shape:
            raise InputError(
                f"the loss returned shape {tuple(each.shape)}; expected one value a sample, {tuple(batch.t.shape)}"
            )
        each = each * batch.weight.to(each.dtype)
        return 0.5 * each if self._sum else each / math.prod(batch.x0.shape[1:])


class _Loop:
    def __init__(
        self, model: ScoreModel, data: Dataset, config: TrainConfig, folder: Path, accelerator: Any, loss: Loss | None
    ) -> None:
        if config.batch_size % accelerator.num_processes:
            raise InputError(
                f"batch_size={config.batch_size} cannot be shared evenly by {accelerator.num_processes} processes; "
                "choose a multiple"
            )
        self.model, self.data, self.config, self.folder, self.accelerator = model, data, config, folder, accelerator
        self.labels = data.labels is not None and getattr(model.net, "num_classes", 0) > 0
        self.feed = Feed(
            data, config, model.sde, self.labels, rank=accelerator.process_index, world=accelerator.num_processes
        )
        model.to(accelerator.device)
        if config.channels_last and len(data.shape) == 3:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile and isinstance(model.net, nn.Module):
            model.net.compile()
        self.parameters = {p: name for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InputError("the model has no parameters to train; give it a network")
        self.optimizer = make_optimizer(list(self.parameters), config)
        self.objective, self.wrapped = accelerator.prepare(_Objective(model, config, loss), self.optimizer)
        self.ema = EMA(model, config.ema)
        self.step, self.saved, self.seconds = 0, -1, 0.0

    def run(self, signals: StopSignals, progress: bool | None) -> Run:
        self._begin()
        config, accelerator = self.config, self.accelerator
        was_training = self.model.training
        self.model.train()
        total, count, mean, stop = 0.0, 0, math.nan, False
        clock, log = time.monotonic(), Log(self.folder, self.step) if accelerator.is_main_process else None
        raw = self.feed.raw(self.step, config.steps)
        try:
            with Watch(self.step, config.steps, progress if accelerator.is_main_process else False) as watch:
                for items in raw:
                    lr = config.optim.lr_at(self.step, config.steps)
                    value, norm, stop = self._update(items, lr, signals)
                    self.step, total, count = self.step + 1, total + value, count + 1
                    watch.step(self.step)
                    mean = total / count
                    if self.step % config.log_every == 0 or self.step == config.steps:
                        now = time.monotonic()
                        speed, self.seconds, clock = count / (now - clock), self.seconds + now - clock, now
                        watch.report(self.step, mean, speed)
                        if log is not None:
                            log.write(
                                step=self.step,
                                loss=mean,
                                grad_norm=norm,
                                lr=lr,
                                steps_per_second=speed,
                                seconds=self.seconds,
                            )
                        total, count = 0.0, 0
                    if stop or self.step % config.checkpoint_every == 0 or self.step == config.steps:
                        self._save()
                    if stop:
                        break
        finally:
            raw.close()  # type: ignore[attr-defined]
            self.model.train(was_training)
        name = signal.Signals(signals.received).name if stop and signals.received else None
        return Run(self.folder, self.step, config.steps, mean, self._averaged(), name)

    def _update(self, items: Any, lr: float, signals: StopSignals) -> tuple[float, float, bool]:
        """One optimiser step; returns the loss, the norm of its gradient, and whether to stop."""
        accelerator, config = self.accelerator, self.config
        # Dropout has no generator of its own to take, so the global one starts every step from (seed, step).
        torch.manual_seed(derived_seed(config.seed, f"dropout {accelerator.process_index}", self.step))
        batch = self.feed.batch(self.step, items, accelerator.device)
        each = self.objective(batch)
        loss = each.mean()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.wrapped.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(list(self.parameters), config.optim.clip or math.inf)
        report = torch.stack([loss.detach().float(), torch.tensor(float(signals.received is not None)).to(loss.device)])
        if accelerator.num_processes > 1:  # all processes stop at the same step, or they would wait for each other
            report = accelerator.reduce(report, "mean")
        value, wish = report.tolist()
        size = float(norm)
        # With fp16 the scaler finds steps whose gradient overflowed and leaves them out by itself.
        if not math.isfinite(value) or not (math.isfinite(size) or config.precision == "fp16"):
            raise DivergedError(self._divergence(each.detach(), batch, value))
        self.wrapped.step()
        self.ema.update()
        return value, size, wish > 0

    def _divergence(self, each: Tensor, batch: Batch, value: float) -> str:
        bad = ~torch.isfinite(each)
        worst = int(bad.nonzero()[0]) if bool(bad.any()) else int(each.argmax())
        t = float(batch.t[worst])
        what = f"the loss is {value}" if bool(bad.any()) or not math.isfinite(value) else "the gradient is not finite"
        return (
            f"training stopped at step {self.step}: {what}, first at noise level sigma={float(self.model.sde.sigma(t)):.3g} "
            f"(t={t:.3g}); the checkpoint of step {max(self.saved, 0)} is intact; lower optim.lr or optim.clip"
        )

    def _begin(self) -> None:
        """Continue from the newest intact checkpoint, or write the first one."""
        main = self.accelerator.is_main_process
        if main:
            remove_leftovers(self.folder)
        checkpoint = None
        if (self.folder / RUN_FILE).exists():
            if check_same_run(read_run(self.folder), self.model, self.data, self.config) and main:
                write_run(self.folder, self.model, self.data, self.config, self.labels)
            checkpoint = newest_checkpoint(self.folder)
        elif main:
            write_run(self.folder, self.model, self.data, self.config, self.labels)
        if checkpoint is None:
            self._save()  # finds out at once whether the folder can be written to
        else:
            self._restore(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.step > self.config.steps:
            raise InputError(
                f"{self.folder} has {checkpoint.step} steps already, more than steps={self.config.steps}; "
                "ask for more, or choose another --out"
            )
        load_weights(self.model, checkpoint.tensors["model"], str(checkpoint.path))
        load_optimizer(self.optimizer, self.parameters, checkpoint.tensors["optimizer"])
        self.ema.load(checkpoint.tensors["ema"], checkpoint.state["ema_updates"])
        if self.accelerator.scaler is not None and checkpoint.state["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        self.step = self.saved = checkpoint.step
        self.seconds = checkpoint.state["seconds"]

    def _save(self) -> None:
        if self.accelerator.is_main_process and self.saved != self.step:
            scaler = self.accelerator.scaler
            save_checkpoint(
                self.folder,
                self.step,
                {
                    "model": self.model.state_dict(),
                    "ema": self.ema.tensors,
                    "optimizer": optimizer_tensors(self.optimizer, self.parameters),
                },
                {
                    "ema_updates": self.ema.updates,
                    "seconds": self.seconds,
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "seed": self.config.seed,
                    "items_seen": self.step * self.config.batch_size,
                    "torch": torch.__version__,
                },
                self.config.keep,
            )
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> ScoreModel:
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.ema.tensors)
        return model.eval()
