"""Everything that watches a run: bar, log, trackers, sample grids, report. None of it touches what is computed."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.errors import DivergedError
from scorefield.files import atomic_file
from scorefield.model import ScoreModel
from scorefield.plot import image_grid, save_image
from scorefield.sampling import sample
from scorefield.training.batches import Batch
from scorefield.training.config import TrainConfig
from scorefield.training.log import Log, Watch
from scorefield.training.loss import Levels
from scorefield.training.page import SAMPLES, write_report
from scorefield.training.progress import Progress
from scorefield.training.trackers import Trackers


@dataclass(frozen=True)
class Moment:
    """What a callback is told after each step.

    Attributes:
        step, steps: optimiser steps done, and in all.
        loss: mean over the batch, over all processes. grad_norm: before clipping. lr: learning rate of the step.
        model: the model in training; leave it as it is.
        path: the folder of the run.
        averaged: makes a copy of the model with the averaged weights, in eval mode.
    """

    step: int
    steps: int
    loss: float
    grad_norm: float
    lr: float
    model: ScoreModel
    path: Path
    averaged: Callable[[], ScoreModel]


class Observer:
    """Shows and records a run, on the main process; elsewhere it only takes part in gathering.

    Main arguments:
        run: the folder. at: where the run stands; the log forgets what lies beyond.
        shown: whether progress is shown (see `Watch`).
    """

    def __init__(
        self,
        run: Path,
        at: Progress,
        model: ScoreModel,
        data: Dataset,
        config: TrainConfig,
        classes: int,
        accelerator: Any,
        shown: bool | None,
    ) -> None:
        self._run, self._at, self._config, self._accelerator = run, at, config, accelerator
        self._main: bool = accelerator.is_main_process
        self._range = model.sde.range if data.scaled else None
        self._shape, self._classes = data.shape, classes
        self._levels = Levels(model.sde)
        self._watch = Watch(at.step, config.steps, shown if self._main else False)
        self._trackers = Trackers(config.trackers, run, at.step) if self._main else None
        self.loss = math.nan
        self.start()

    def start(self) -> None:
        """Begin, also again after a rollback: later lines of the log go."""
        self._log = Log(self._run, self._at.step) if self._main else None
        self._levels.seen.clear()
        self._total, self._count, self._clock = 0.0, 0, time.monotonic()

    def __enter__(self) -> Observer:
        self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.__exit__(kind, error, trace)
        if error is None or isinstance(error, DivergedError):
            self.page()
        if self._trackers is not None:
            self._trackers.close()

    def losses(self, batch: Batch, each: Tensor) -> None:
        """Take in the losses of a batch, (b,)."""
        self._levels.add(batch, each)

    def step(self, loss: float, norm: float, lr: float) -> None:
        """Take in a step that was made; report if a line of the log is due."""
        at, config = self._at, self._config
        self._total, self._count = self._total + loss, self._count + 1
        self.loss = self._total / self._count
        self._watch.step(at.step)
        if at.step % config.log_every == 0 or at.step == config.steps:
            self._report(norm, lr)

    def _report(self, norm: float, lr: float) -> None:
        now, at = time.monotonic(), self._at
        speed = self._count / (now - self._clock)
        at.seconds += now - self._clock
        levels = self._levels.report(self._accelerator)
        self._watch.report(at.step, self.loss, speed)
        figures = {"loss": self.loss, "grad_norm": norm, "lr": lr, "steps_per_second": speed}
        if self._log is not None and self._trackers is not None:
            rounded = [(round(level, 2), value) for level, value in levels]
            self._log.write(step=at.step, **figures, seconds=at.seconds, levels=rounded)
            by_level = {f"loss_by_log_snr/{level}": value for level, value in rounded}
            self._trackers.figures(at.step, figures | by_level)
        self._total, self._count, self._clock = 0.0, 0, now

    def event(self, **values: Any) -> None:
        """Record something that is not of every step."""
        if self._log is not None and self._trackers is not None:
            self._log.write(step=self._at.step, **values)
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            if numbers:
                self._trackers.figures(self._at.step, numbers)

    def pictures(self, model: Callable[[], ScoreModel]) -> None:
        """Draw samples from fixed seeds into samples/, and write the report anew."""
        begin, count, step = time.monotonic(), self._config.sample_count, self._at.step
        averaged = model() if self._main or self._config.shard else None  # parts of it may lie in other processes
        if averaged is None or not self._main:
            return
        cond: dict[str, Any] = {}
        if self._classes:
            cond["label"] = torch.arange(count, device=self._accelerator.device) % self._classes
        x = sample(averaged, count, shape=self._shape, seed=self._config.seed, progress=False, **cond)
        place = self._run / SAMPLES / f"step-{step:06d}"
        if len(self._shape) == 3 and self._shape[0] in (1, 3):
            side = max(self._shape[1:])
            low, high = self._range or (float(x.min()), float(x.max()))
            grid = image_grid(x, None, low, high, zoom=max(1, 64 // side))
            save_image(grid, place.with_suffix(".png"))
            if self._trackers is not None:
                self._trackers.picture(step, grid)
        else:
            content = io.BytesIO()
            np.save(content, x.float().cpu().numpy())
            with atomic_file(place.with_suffix(".npy")) as file:
                file.write(content.getvalue())
        self.page()
        self._clock += time.monotonic() - begin  # the speed is that of training

    def page(self) -> None:
        """Write the report anew, where one is wanted."""
        if self._main and self._config.report:
            write_report(self._run)
