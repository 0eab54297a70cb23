"""The training loop."""

from __future__ import annotations

import math
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from scorefield.data.dataset import Dataset, to_range
from scorefield.data.labels import with_classes_of
from scorefield.data.libraries import kept_randomness, seed_all
from scorefield.data.open import as_dataset
from scorefield.differentiate import differentiation
from scorefield.dtypes import warn_of_units
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.files import check_folder
from scorefield.model import ScoreModel
from scorefield.parallel import Processes
from scorefield.sampling import blind
from scorefield.sde import SDE, GaussianSDE
from scorefield.training.averages import save_snapshot
from scorefield.training.batches import Feed, derived_seed
from scorefield.training.checkpoint import best_checkpoint, read_checkpoint
from scorefield.training.classes import class_count, learns_classes
from scorefield.training.config import Options, TrainConfig
from scorefield.training.interrupt import StopSignals
from scorefield.training.log import read_log
from scorefield.training.loss import Loss, held_out_loss
from scorefield.training.monitor import Callback, Moment, Observer
from scorefield.training.optimizer import held, make_accelerator, own_randomness
from scorefield.training.plan import Plan
from scorefield.training.progress import Progress, fault
from scorefield.training.run import load_weights, to_go_on
from scorefield.training.saves import Saves
from scorefield.training.weights import Weights

if TYPE_CHECKING:
    from scorefield.charts import Chart

LOOKED_AT = 4096
"""Items at most from which the spread of the data is measured."""
RISEN = 0.02
"""Relative rise of the held-out loss over its least value that is told."""


@dataclass(frozen=True)
class Run:
    """The outcome of `train`.

    Attributes:
        path: the folder of the run.
        step: optimiser steps done, of `steps`.
        loss: mean loss since the last line of the log; NaN if no step was made.
        model: a copy of the model with the averaged weights, in eval mode, on the device it was trained on; where data was
            held out, those with the least loss on it.
        stopped: what ended training early, a signal, "a callback" or "the clock", else None.
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

    def plot(self) -> Chart:
        """A figure of the losses by step (needs matplotlib)."""
        from scorefield.charts import curves

        lines = read_log(self.path)
        series = {"training": "loss", "held out": "held_out_loss"}
        known = {
            name: [(line["step"], line[key]) for line in lines if isinstance(line.get(key), float)]
            for name, key in series.items()
        }
        drawn = {name: ([s for s, _ in points], [v for _, v in points]) for name, points in known.items() if points}
        return curves(drawn, "step", "loss")

    def __repr__(self) -> str:
        end = "finished" if self.finished else f"stopped by {self.stopped}"
        return f"Run({str(self.path)!r}, step {self.step:,} of {self.steps:,}, loss {self.loss:.4g}, {end})"


@differentiation()
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
    **options: Unpack[Options],
) -> Run:
    """Train a score model on data, into a folder; the same call again continues where the last one ended.

    Every step is a function of (seed, step) and of the state in the newest checkpoint, so that on a CPU a run that was
    killed and continued ends with the weights of one that was not, bit for bit.

    Main arguments:
        model: its weights are trained in place; the averaged ones are in the result. One that predicts "edm", the default
            of networks, is preconditioned by the spread of the data unless `sigma_data` was given.
        data: a Dataset, a tensor or array (N, *), or a sequence of tensors or (tensor, label) pairs. Data with labels
            trains a network with classes class-conditionally.
        out: folder for run.json, log.jsonl and the checkpoints step-NNNNNN.
        config: a `TrainConfig`, whose fields may also be given one by one:
        steps, minutes: how long; with minutes the clock decides the number of steps, over all attempts.
        batch_size, accumulate: items a step, and the parts a batch is cut into to need less memory.
        seed: decides data order, times, noise and dropout.
        name, lr, beta1, beta2, eps, weight_decay, clip: the optimiser ("adam", "adamw", "muon") and its numbers; `optim`
            takes them as one `OptimConfig`.
        warmup, schedule: steps until the full learning rate; then "constant", "linear", "cosine" or "cooldown".
        ema, power_ema, snapshot_every: averages of the weights, and snapshots for `post_hoc_ema`.
        weighting, times, stratify, reduce: the objective (see `dsm_loss`), and where training times are drawn.
        fokker_planck, probes: weight of the Fokker-Planck penalty, and the random vectors of its divergence.
        dequantize, flip, label_dropout: uniform noise on integer data, mirrored images, labels withheld.

    Other arguments:
        held_out: data whose loss under the averaged weights is measured at every checkpoint, and decides which is best.
        callbacks: functions that are called with a `Moment` after every step, on the main process; one that returns True
            ends the training, which can be continued later.
        loss: per-sample loss (model, x0, t=, noise=, **cond) -> (B,) in place of `dsm_loss` with `config.weighting`. One with
            a method `before(step, steps, model)` is told ahead of every step, as `sf.consistency.Staged` is; what a module
            remembers in its state is saved.
        device: "cpu", "cuda", "cuda:1", "mps"; the best one there is by default.
        progress: True, False, or None for a bar on a terminal and elsewhere a line every half minute.
        precision, compile, channels_last, shard, workers: how the work is done.
        log_every, sample_every, sample_count, trackers, report: what is written to be looked at.
        checkpoint_every, keep, keep_best: what is saved.
        on_divergence, rollbacks, explosion: what a loss that is not finite or explodes does.

    Raises:
        InputError: an option, or data that does not fit the model; a run folder in use.
        CheckpointError: the folder belongs to another run, or none of its checkpoints is intact.
        OutputError: the folder is not writable, or the disk is full; the last good checkpoint stays.
        DivergedError: the loss or its gradient is not finite or has exploded, and the configuration is to stop, or has
            rolled back often enough; the last good checkpoint stays.
        KeyboardInterrupt: after Ctrl-C, once the run is saved.
    """
    check_folder(out)
    settings = (config or TrainConfig()).updated(**options)
    states = getattr(model.sde, "data_states", None)  # of a jump process, which says what integers there are
    items, held_items = as_dataset(data, states), None if held_out is None else as_dataset(held_out, states)
    if model.shape is None:
        model.shape = items.shape
    for part in (items,) if held_items is None else (items, held_items):
        if part.shape != model.shape:
            raise InputError(f"{part.name} has items of shape {part.shape} and the model expects {model.shape}")
        if isinstance(model.sde, SDE):
            model.sde.check(_looked_at(part, model, settings.seed), part.name)
    folder = Path(out)
    if loss is None and model.own_loss is None and blind(model, model.sde.T):
        warnings.warn(
            f"alpha is 0 at T={model.sde.T:g}, where predict={model.predict!r} knows nothing of x_0, so that samples cannot "
            "start there; give the model predict='data', 'velocity' or 'edm', or sample with t_start= below T",
            ScorefieldWarning,
            stacklevel=2,
        )
    _fit_units(model, items, settings.seed, folder)
    model.data_levels, model.data_range = items.levels or 0, model.sde.range if items.scaled else None
    with StopSignals() as signals:
        accelerator = make_accelerator(settings, device)
        with held(folder, accelerator), own_randomness(accelerator.device):
            training = _Training(model, items, settings, folder, accelerator, loss, held_items)
            was_training = model.training
            try:
                run = training.run(callbacks, signals, progress)
            finally:
                model.train(was_training)
    if signals.received == signal.SIGINT:
        raise KeyboardInterrupt
    return run


def _looked_at(data: Dataset, model: ScoreModel, seed: int) -> Tensor:
    """At most `LOOKED_AT` items in the model's range, spread over the data."""
    most = LOOKED_AT // 8 if data.slow else LOOKED_AT
    index = range(data.size) if data.size <= most else [i * (data.size - 1) // (most - 1) for i in range(most)]
    with kept_randomness():  # of augmentation, which is the same at every call
        seed_all(derived_seed(seed, "spread", 0))
        return to_range(data.read(index), data, model.sde.range)


def _fit_units(model: ScoreModel, items: Dataset, seed: int, folder: Path) -> None:
    """Warn of data in units that are not the model's, and precondition by its spread where that is not given.

    A run that goes on keeps the spread of its start, which another machine may round otherwise.
    """
    if items.levels is None and items.range is None and isinstance(model.sde, GaussianSDE):
        _warn_of_scale(_looked_at(items, model, seed), model.sde, items.name)
    if getattr(model, "predict", "") == "edm" and not model.sigma_known:
        known = to_go_on(folder, items, seed)
        before = None if known is None else known.model.get("sigma_data")
        model.sigma_data = before if isinstance(before, float) else _spread(items, model, seed)
        model.sigma_known = True


def _warn_of_scale(x: Tensor, sde: GaussianSDE, name: str) -> None:
    """Warn of data that is not in the units of the SDE, unless its noise grows beyond the data, as VE's may."""
    if not bool(x.abs().max() < float(sde.sigma(sde.T))):
        warn_of_units(x, *sde.range, name, "the model learns from data")


def _spread(data: Dataset, model: ScoreModel, seed: int) -> float:
    """Standard deviation of the entries of data in the model's range."""
    std = float(_looked_at(data, model, seed).std())
    return float(f"{std:.4g}") if math.isfinite(std) and std > 0 else 0.5


class _Training:
    """Everything that the loop works with."""

    def __init__(
        self,
        model: ScoreModel,
        data: Dataset,
        config: TrainConfig,
        folder: Path,
        accelerator: Any,
        loss: Loss | None,
        held_out: Dataset | None,
    ) -> None:
        rank, world = accelerator.process_index, accelerator.num_processes
        if config.batch_size % (world * config.accumulate):
            raise InputError(
                f"batch_size={config.batch_size} cannot be shared evenly by {world} processes with "
                f"accumulate={config.accumulate}; choose a multiple of {world * config.accumulate}"
            )
        classes = class_count(model.net)
        if classes and held_out is not None:
            held_out = with_classes_of(held_out, data)
        labels = learns_classes(model.net, data, held_out)
        self.data, self.config, self.folder, self.accelerator = data, config, folder, accelerator
        self.loss, self.held_out, self.labels, self.classes = loss, held_out, labels, classes if labels else 0
        self.processes, self.measured = Processes(rank, world), math.nan
        self.feed = Feed(data, config, model.sde, labels, rank, world)
        self.weights = Weights(model, config, loss, accelerator)
        self.model, self.at = self.weights.live, Progress()
        self.plan = Plan(config, self.at)
        self.saves = Saves(folder, self.model, data, config, labels, self.weights, self.at, accelerator, self.processes)

    def run(self, callbacks: Sequence[Callback], signals: StopSignals, shown: bool | None) -> Run:
        """Go on from the newest checkpoint until every step is made or something asks to stop."""
        config, at, plan, weights, saves = self.config, self.at, self.plan, self.weights, self.saves
        saves.resume()
        self.model.train()
        stop: str | None = None
        with Observer(self.folder, at, plan, self.model, self.data, config, self.accelerator, shown) as observer:
            items = self.feed.raw(at.batch, config.steps + at.skipped)
            while at.step < plan.steps and not stop:
                # The loss and its gradient are a function of (seed, batch) and of the weights. Dropout has no generator
                # of its own to take, so the global one starts every step from there.
                lr = plan.lr()
                weights.tell(at.step, plan.steps)
                torch.manual_seed(derived_seed(config.seed, f"dropout {self.processes.rank}", at.batch))
                batch = self.feed.batch(at.batch, next(items), self.accelerator.device)
                each, norm = weights.backward(batch, lr)
                loss, stop, due = self._agree(each, signals)

                # A step that has diverged is not made.
                if told := fault(at, config, each, batch.t, loss, norm, self.model.sde, self.accelerator):
                    failed = at.step
                    saves.roll_back(told)
                    observer.rolled_back(failed, told)
                    items.close()
                    items = self.feed.raw(at.batch, config.steps + at.skipped)
                    continue

                # The step, the averages, and what is seen of them.
                weights.update()
                if due:
                    plan.settle()
                    saves.describe()
                at.take(loss)
                last = at.step == plan.steps
                observer.step(batch, each, loss, norm, lr)
                stop = self._call_back(callbacks, loss, norm, lr) or stop

                # Snapshots, checkpoints, pictures.
                self._keep(stop, last, observer, signals)
            items.close()
        weights.finish()
        stopped = stop if at.step < plan.steps else None
        return Run(self.folder, at.step, plan.steps, observer.loss, self._best(), stopped)

    def _keep(self, stop: str | None, last: bool, observer: Observer, signals: StopSignals) -> None:
        """Write what is due. Whoever asks to stop may kill in a few seconds, so what takes time is left out then."""
        config, step = self.config, self.at.step
        if config.power_ema and (step % config.snapshot_every == 0 or last):
            self._snapshot()
        if stop or last or step % config.checkpoint_every == 0:
            self.saves.save(None if stop else self._measure(observer, signals))
        if config.sample_every and not stop and (last or step % config.sample_every == 0):
            observer.pictures(self.weights.averaged, self.classes)
            self.accelerator.wait_for_everyone()

    def _agree(self, each: Tensor, signals: StopSignals) -> tuple[float, str | None, bool]:
        """The mean loss of all processes, why to stop, and whether the clock says how many steps there are to be.

        All processes stop at the same step, or they would wait for each other.
        """
        main = self.processes.main
        wish = 0 if signals.received is None else int(signals.received)
        report = [each.mean().item(), float(wish), float(main and self.plan.late), float(main and self.plan.due())]
        if self.processes.count > 1:
            device = self.accelerator.device
            gathered = self.accelerator.gather(torch.tensor([report], device=device)).cpu()
            report = [float(gathered[:, 0].mean()), *gathered[:, 1:].amax(0).tolist()]
        loss, number, late, due = report
        stop = signal.Signals(int(number)).name if number else "the clock" if late else None
        return loss, stop, due > 0

    def _call_back(self, callbacks: Sequence[Callback], loss: float, norm: float, lr: float) -> str | None:
        """Tell the callbacks; whether one of them wants to stop, agreed on by all processes."""
        if not callbacks:
            return None
        wish = False
        if self.processes.main:
            at, averaged = self.at, self._averaged_on_main
            moment = Moment(at.step, self.plan.steps, loss, norm, lr, self.model, self.folder, averaged)
            for callback in callbacks:
                wish = callback(moment) is True or wish
            self.model.train()
        return "a callback" if self.processes.broadcast(wish) else None

    def _measure(self, observer: Observer, signals: StopSignals) -> Any:
        """How to measure the loss on held-out data, if there is any."""
        if self.held_out is None:
            return None

        def measure() -> float:
            model, held = self.weights.averaged(), self.held_out
            assert held is not None
            alone = self.processes.count == 1
            value = held_out_loss(
                model, held, self.config, self.loss, self.labels, self.accelerator, signals if alone else None
            )
            if math.isfinite(value):
                self.measured = value
                observer.event(held_out_loss=value)
            return value

        return measure

    def _best(self) -> ScoreModel:
        """The averaged weights with the least held-out loss; the present ones where nothing was held out."""
        model, best = self.weights.averaged(), None
        if self.held_out is not None and self.processes.main:
            best = best_checkpoint(self.folder, held_out=True)
        best = self.processes.broadcast(best)
        if best is None or best.name == f"step-{self.at.step:06d}":
            return model
        checkpoint = read_checkpoint(best, ("ema",))
        load_weights(model, checkpoint.tensors["ema"], str(best))
        least = checkpoint.state["held_out_loss"]
        if self.processes.main and self.measured > least + RISEN * abs(least):
            warnings.warn(
                f"the held-out loss was least at step {checkpoint.step:,} ({least:.4g}) and has risen to "
                f"{self.measured:.4g}: the model begins to repeat its training data; load() takes step {checkpoint.step:,}",
                ScorefieldWarning,
                stacklevel=4,
            )
        return model

    def _snapshot(self) -> None:
        averages = self.weights.snapshot()
        if self.processes.main:
            save_snapshot(self.folder, self.at.step, averages)

    def _averaged_on_main(self) -> ScoreModel:
        if self.weights.sharded:
            raise InputError("averaged() needs all processes, and callbacks run on one; leave out shard=True")
        return self.weights.averaged()
