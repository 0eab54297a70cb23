"""What of a run goes to its folder and comes back: its description, its checkpoints, the step to return to."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.errors import CheckpointError, DivergedError, InputError, ScorefieldWarning
from scorefield.files import remove_leftovers
from scorefield.model import ScoreModel
from scorefield.parallel import Processes
from scorefield.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from scorefield.training.config import TrainConfig
from scorefield.training.progress import Progress
from scorefield.training.run import RUN_FILE, check_same_run, has_begun, read_run, write_run
from scorefield.training.weights import Weights


@dataclass
class Saves:
    """The folder of a run; the main process reads and writes it, all processes take part in gathering.

    Main arguments:
        model, data, config, labels: what run.json says. weights, at: what checkpoints hold.
        saved: the step of the newest checkpoint.
    """

    folder: Path
    model: ScoreModel
    data: Dataset
    config: TrainConfig
    labels: bool
    weights: Weights
    at: Progress
    accelerator: Any
    processes: Processes
    saved: int = -1

    def resume(self) -> None:
        """Continue from the newest intact checkpoint, or write the first one; the main process finds out which."""
        found: Checkpoint | None = None
        if self.processes.main:
            remove_leftovers(self.folder)
            fresh = not (self.folder / RUN_FILE).exists()
            try:
                changed = fresh or check_same_run(read_run(self.folder), self.model, self.data, self.config)
            except CheckpointError:
                fresh = changed = self._begin_again()
                if not fresh:
                    raise
            if changed:
                self.describe()
            if not fresh:
                found = newest_checkpoint(self.folder, self.weights.names())
        path = self.processes.broadcast(None if found is None else found.path)
        if path is None:
            self.save(None)  # finds out at once whether the folder can be written to
        else:
            self._restore(found or read_checkpoint(path, self.weights.names()))
        if self.at.planned:
            self.describe()
        self.at.tick()

    def _begin_again(self) -> bool:
        """Clear a folder in which another training failed before its first step, as with a network of the wrong channels."""
        untouched = bool(read_run(self.folder).config) and not has_begun(self.folder)  # models from elsewhere have none
        for path in list_checkpoints(self.folder) if untouched else ():
            shutil.rmtree(path)
        return untouched

    def describe(self) -> None:
        """Write run.json, with the number of steps that the clock has decided on if it has."""
        if self.processes.main:
            config = replace(self.config, steps=self.at.planned or self.config.steps)
            write_run(self.folder, self.model, self.data, config, self.labels)

    def save(self, held_out: Callable[[], float] | None) -> None:
        """Write a checkpoint, with its held-out loss where there is one to measure."""
        if self.saved != self.at.step:
            extra = {}
            if held_out is not None and math.isfinite(value := held_out()):
                extra["held_out_loss"] = value
            groups = self.weights.groups()
            self.at.tick()
            if self.processes.main:
                self._write(groups, extra)
        self.saved = self.at.step
        self.accelerator.wait_for_everyone()

    def roll_back(self, what: str) -> None:
        """Return to the last regular checkpoint and leave out the batches up to the present one.

        Raises:
            DivergedError: the run is not to roll back, or did so often enough.
        """
        config, at, failed = self.config, self.at, self.at.step
        told = f"training stopped at step {failed}: {what}; the checkpoint of step {max(self.saved, 0)} is intact; "
        if config.on_divergence == "stop":
            raise DivergedError(told + "lower optim.lr or optim.clip, or go on with on_divergence=rollback")
        if at.rollbacks >= config.rollbacks:
            raise DivergedError(told + f"it had rolled back {at.rollbacks} times; lower optim.lr or optim.clip")
        before, bad, seconds = at.rollbacks, at.batch, at.seconds
        # One that a signal left in between would make the outcome depend on when the signal came.
        regular = [p for p in list_checkpoints(self.folder) if int(p.name[5:]) % config.checkpoint_every == 0]
        checkpoint = newest_checkpoint(self.folder, self.weights.names(), among=regular or None)
        if checkpoint is None:
            raise DivergedError(told + "lower optim.lr or optim.clip")
        self.accelerator.wait_for_everyone()
        self._restore(checkpoint)
        at.skipped, at.rollbacks, at.seconds = bad + 1 - at.step, before + 1, seconds
        if self.processes.main:
            line = f"step {failed}: {what}; rolled back to step {at.step}, leaving out its {bad + 1} first batches"
            warnings.warn(line, ScorefieldWarning, stacklevel=4)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if self.config.minutes is None and checkpoint.step > self.config.steps:
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
        minutes = self.config.minutes
        if minutes is None or (self.config.optim.schedule == "constant" and self.at.seconds < 0.9 * 60 * minutes):
            self.at.planned = 0  # more minutes than before: only a schedule without an end can go on
        self.saved = self.at.step

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
