"""The training loop."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, as_dataset
from scorefield.errors import DivergedError, InputError, ScorefieldWarning
from scorefield.files import remove_leftovers
from scorefield.model import ScoreModel
from scorefield.parallel import Processes
from scorefield.training.averages import save_snapshot
from scorefield.training.batches import Feed, derived_seed
from scorefield.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from scorefield.training.config import TrainConfig
from scorefield.training.interrupt import StopSignals
from scorefield.training.loss import Loss, held_out_loss
from scorefield.training.monitor import Moment, Observer
from scorefield.training.optimizer import class_count, held, make_accelerator, own_randomness
from scorefield.training.progress import Divergence, Progress, describe
from scorefield.training.run import RUN_FILE, check_same_run, read_run, write_run
from scorefield.training.weights import Weights

Callback = Callable[[Moment], Any]


@dataclass(frozen=True)
class Run:
    """The outcome of `train`.

    Attributes:
        path: the folder of the run.
        step: optimiser steps done, of `steps`.
        loss: mean loss since the last line of the log; NaN if no step was made.
        model: a copy of the model with the averaged weights, in eval mode, on the device it was trained on.
        stopped: what ended training early, a signal or "a callback", else None.
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
    held_out: Dataset | Tensor | Any = None,
    callbacks: Sequence[Callback] = (),
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
        held_out: data whose loss under the averaged weights is measured at every checkpoint, and decides which is best.
        callbacks: functions that are called with a `Moment` after every step, on the main process; one that returns True
            ends the training, which can be continued later.
        loss: per-sample loss (model, x0, t=, noise=, **cond) -> (B,) in place of `dsm_loss` with `config.weighting`.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        progress: True, False, or None for a progress bar on a terminal.

    Raises:
        InputError: an option, or data that does not fit the model; a run folder in use.
        CheckpointError: the folder belongs to another run, or none of its checkpoints is intact.
        OutputError: the folder is not writable, or the disk is full; the last good checkpoint stays.
        DivergedError: the loss or its gradient is not finite or has exploded, and the configuration is to stop, or has
            rolled back often enough; the last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    settings = (config or TrainConfig()).updated(**options)
    items, held_items = as_dataset(data), None if held_out is None else as_dataset(held_out)
    if model.shape is None:
        model.shape = items.shape
    for part in (items, held_items):
        if part is not None and part.shape != model.shape:
            raise InputError(f"{part.name} has items of shape {part.shape} and the model expects {model.shape}")
    folder = Path(out)
    with StopSignals() as signals:
        accelerator = make_accelerator(settings, device)
        with held(folder, accelerator), own_randomness(accelerator.device):
            loop = _Loop(model, items, settings, folder, accelerator, loss, held_items, callbacks)
            run = loop.run(signals, progress)
    if signals.received == signal.SIGINT:
        raise KeyboardInterrupt
    return run


class _Loop:
    def __init__(
        self,
        model: ScoreModel,
        data: Dataset,
        config: TrainConfig,
        folder: Path,
        accelerator: Any,
        loss: Loss | None,
        held_out: Dataset | None,
        callbacks: Sequence[Callback],
    ) -> None:
        parts = accelerator.num_processes * config.accumulate
        if config.batch_size % parts:
            raise InputError(
                f"batch_size={config.batch_size} cannot be shared evenly by {accelerator.num_processes} processes with "
                f"accumulate={config.accumulate}; choose a multiple of {parts}"
            )
        self.model, self.data, self.config, self.folder, self.accelerator = model, data, config, folder, accelerator
        self.loss, self.held_out, self.callbacks = loss, held_out, callbacks
        self.processes = Processes(accelerator.process_index, accelerator.num_processes)
        classes = class_count(model.net)
        self.labels = data.labels is not None and classes > 0
        if data.labels is not None and self.labels and int(data.labels.max()) >= classes:
            raise InputError(
                f"{data.name} has class {int(data.labels.max())} and the network knows {classes} classes, from 0; "
                "build it with more"
            )
        self.classes = classes if self.labels else 0
        self.feed = Feed(
            data, config, model.sde, self.labels, rank=accelerator.process_index, world=accelerator.num_processes
        )
        self.weights = Weights(model, config, loss, accelerator)
        self.model = self.weights.model
        self.at, self.saved = Progress(), -1

    def run(self, signals: StopSignals, progress: bool | None) -> Run:
        self._begin()
        was_training = self.model.training
        self.model.train()
        observer = Observer(
            self.folder, self.at, self.model, self.data, self.config, self.classes, self.accelerator, progress
        )
        try:
            with observer:
                while True:
                    try:
                        stop = self._advance(signals, observer)
                        break
                    except Divergence as error:
                        self._roll_back(str(error), observer)
        finally:
            self.model.train(was_training)
        self.weights.finish()
        name = None
        if stop:
            name = signal.Signals(signals.received).name if signals.received else "a callback"
        return Run(self.folder, self.at.step, self.config.steps, observer.loss, self.weights.averaged(), name)

    def _advance(self, signals: StopSignals, observer: Observer) -> bool:
        """Make steps until the last one or until asked to stop, which is returned."""
        config, at = self.config, self.at
        raw = self.feed.raw(at.batch, config.steps + at.skipped)
        try:
            for items in raw:
                lr = config.optim.lr_at(at.step, config.steps)
                value, norm, stop = self._update(items, lr, signals, observer)
                at.take(value)
                last = at.step == config.steps
                observer.step(value, norm, lr)
                stop = self._call_back(value, norm, lr) or stop
                if config.power_ema and (at.step % config.snapshot_every == 0 or last):
                    self._snapshot()
                # Whoever asks to stop may kill in a few seconds, so what takes time is left out then.
                if stop or last or at.step % config.checkpoint_every == 0:
                    self._save(None if stop else observer)
                if config.sample_every and not stop and (last or at.step % config.sample_every == 0):
                    observer.pictures(self.weights.averaged)
                    self.accelerator.wait_for_everyone()
                if stop:
                    return not last
        finally:
            raw.close()  # type: ignore[attr-defined]
        return False

    def _update(self, items: Any, lr: float, signals: StopSignals, observer: Observer) -> tuple[float, float, bool]:
        """One optimiser step; returns the loss, the norm of its gradient, and whether to stop.

        Raises:
            Divergence: loss or gradient are not finite, or the loss has exploded; nothing was changed.
        """
        accelerator, config, at = self.accelerator, self.config, self.at
        # Dropout has no generator of its own to take, so the global one starts every step from (seed, step).
        torch.manual_seed(derived_seed(config.seed, f"dropout {accelerator.process_index}", at.batch))
        batch = self.feed.batch(at.batch, items, accelerator.device)
        each, norm = self.weights.backward(batch, lr)
        wish = torch.tensor(float(signals.received is not None))
        report = torch.stack([each.mean().float(), wish.to(each.device)])
        if accelerator.num_processes > 1:  # all processes stop at the same step, or they would wait for each other
            report = accelerator.reduce(report, "mean")
        value, stop = report.tolist()
        exploded = at.exploded(value, config.explosion)
        # With fp16 the scaler finds steps whose gradient overflowed and leaves them out by itself.
        if exploded or not math.isfinite(value) or not (math.isfinite(norm) or config.precision == "fp16"):
            raise Divergence(describe(each, batch.t, value, exploded, self.model.sde, accelerator))
        self.weights.update()
        observer.losses(batch, each)
        return value, norm, stop > 0

    def _call_back(self, loss: float, norm: float, lr: float) -> bool:
        """Tell the callbacks; whether one of them wants to stop, agreed on by all processes."""
        if not self.callbacks:
            return False
        wish = False
        if self.accelerator.is_main_process:
            moment = Moment(
                self.at.step, self.config.steps, loss, norm, lr, self.model, self.folder, self._averaged_on_main
            )
            for callback in self.callbacks:
                wish = callback(moment) is True or wish
            self.model.train()
        return self.processes.broadcast(wish)

    def _roll_back(self, what: str, observer: Observer) -> None:
        """Return to the last regular checkpoint and leave out the batches up to the present one.

        Raises:
            DivergedError: the run is not to roll back, or did so often enough.
        """
        failed, config = self.at.step, self.config
        told = f"training stopped at step {failed}: {what}; the checkpoint of step {max(self.saved, 0)} is intact; "
        if config.on_divergence == "stop":
            raise DivergedError(told + "lower optim.lr or optim.clip, or go on with on_divergence=rollback")
        if self.at.rollbacks >= config.rollbacks:
            raise DivergedError(told + f"it had rolled back {self.at.rollbacks} times; lower optim.lr or optim.clip")
        before, bad = self.at.rollbacks, self.at.batch
        # One that a signal left in between would make the outcome depend on when the signal came.
        regular = [p for p in list_checkpoints(self.folder) if int(p.name[5:]) % config.checkpoint_every == 0]
        checkpoint = newest_checkpoint(self.folder, self.weights.names(), among=regular or None)
        if checkpoint is None:
            raise DivergedError(told + "lower optim.lr or optim.clip")
        self.accelerator.wait_for_everyone()
        self._restore(checkpoint)
        self.at.skipped, self.at.rollbacks = bad + 1 - self.at.step, before + 1
        observer.start()
        observer.event(rollback_from=failed, reason=what, skipped=self.at.skipped)
        if self.accelerator.is_main_process:
            line = f"step {failed}: {what}; rolled back to step {self.at.step}, leaving out its {bad + 1} first batches"
            warnings.warn(line, ScorefieldWarning, stacklevel=4)

    def _begin(self) -> None:
        """Continue from the newest intact checkpoint, or write the first one; the main process finds out which."""
        found: Checkpoint | None = None
        if self.accelerator.is_main_process:
            remove_leftovers(self.folder)
            if (self.folder / RUN_FILE).exists():
                if check_same_run(read_run(self.folder), self.model, self.data, self.config):
                    write_run(self.folder, self.model, self.data, self.config, self.labels)
                found = newest_checkpoint(self.folder, self.weights.names())
            else:
                write_run(self.folder, self.model, self.data, self.config, self.labels)
        path = self.processes.broadcast(None if found is None else found.path)
        if path is None:
            self._save(None)  # finds out at once whether the folder can be written to
        else:
            self._restore(found or read_checkpoint(path, self.weights.names()))

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.step > self.config.steps:
            raise InputError(
                f"{self.folder} has {checkpoint.step} steps already, more than steps={self.config.steps}; "
                "ask for more, or choose another --out"
            )
        self.weights.restore(checkpoint)
        state = checkpoint.state
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for field in fields(Progress):
            setattr(self.at, field.name, state.get(field.name, field.default))
        self.saved = self.at.step

    def _save(self, observer: Observer | None) -> None:
        """Write a checkpoint, with its held-out loss where there is an observer to tell."""
        if self.saved != self.at.step:
            extra = {}
            if self.held_out is not None and observer is not None:
                extra["held_out_loss"] = held_out_loss(
                    self.weights.averaged(), self.held_out, self.config, self.loss, self.labels, self.accelerator
                )
                observer.event(**extra)
            groups = self.weights.groups()
            if self.accelerator.is_main_process:
                self._write(groups, extra)
        self.saved = self.at.step
        self.accelerator.wait_for_everyone()

    def _write(self, groups: dict[str, dict[str, Tensor]], extra: dict[str, float]) -> None:
        scaler, at = self.accelerator.scaler, self.at
        state = {
            **asdict(at),
            **extra,
            "ema_updates": self.weights.ema.updates,
            "scaler": None if scaler is None else scaler.state_dict(),
            "seed": self.config.seed,
            "items_seen": at.batch * self.config.batch_size,
            "torch": torch.__version__,
        }
        save_checkpoint(self.folder, at.step, groups, state, self.config.keep, self.config.keep_best)

    def _snapshot(self) -> None:
        averages = self.weights.snapshot()
        if self.accelerator.is_main_process:
            save_snapshot(self.folder, self.at.step, averages)

    def _averaged_on_main(self) -> ScoreModel:
        if self.weights.sharded:
            raise InputError("averaged() needs all processes, and callbacks run on one; leave out shard=True")
        return self.weights.averaged()
