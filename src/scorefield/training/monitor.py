"""Everything that watches a run: bar, log, trackers, sample grids, report. None of it touches what is computed."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

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
from scorefield.training.log import Log, Trackers
from scorefield.training.loss import Levels
from scorefield.training.page import SAMPLES, write_report
from scorefield.training.plan import Plan
from scorefield.training.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


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


Callback = Callable[[Moment], Any]


class Observer:
    """Shows and records a run, on the main process; elsewhere it only takes part in gathering.

    Main arguments:
        run: the folder. at, plan: where the run stands, of how many steps; the log forgets what lies beyond.
        shown: whether progress is shown (see `Watch`).
    """

    def __init__(
        self,
        run: Path,
        at: Progress,
        plan: Plan,
        model: ScoreModel,
        data: Dataset,
        config: TrainConfig,
        accelerator: Any,
        shown: bool | None,
    ) -> None:
        self._run, self._at, self._plan, self._config, self._accelerator = run, at, plan, config, accelerator
        self._main: bool = accelerator.is_main_process
        self._range = model.sde.range if data.scaled else None
        self._shape, self._codec = data.shape, data.codec
        self._paired = data if data.paired else None
        self._levels = Levels(model.sde)
        self._watch = Watch(at, plan, shown if self._main else False)
        self._trackers = Trackers(config.trackers, run, at.step) if self._main else None
        self.loss = math.nan
        self._start()

    def _start(self) -> None:
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

    def rolled_back(self, failed: int, reason: str) -> None:
        """Record that the run has returned from a step to an earlier one; later lines of the log go."""
        self._start()
        self.event(rollback_from=failed, reason=reason, skipped=self._at.skipped)

    def step(self, batch: Batch, each: Tensor, loss: float, norm: float, lr: float) -> None:
        """Take in a step that was made, with its losses (b,); report if a line of the log is due."""
        at, config = self._at, self._config
        self._levels.add(batch, each)
        self._total, self._count = self._total + loss, self._count + 1
        self.loss = self._total / self._count
        self._watch.step(self.loss, self._count / max(time.monotonic() - self._clock, 1e-9))
        if at.step % config.log_every == 0 or at.step == self._plan.steps:
            self._report(norm, lr)

    def _report(self, norm: float, lr: float) -> None:
        now, at = time.monotonic(), self._at
        speed = self._count / max(now - self._clock, 1e-9)
        levels = self._levels.report(self._accelerator)
        self._watch.report(self.loss, speed)
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

    def pictures(self, model: Callable[[], ScoreModel], classes: int) -> None:
        """Draw samples from fixed seeds into samples/, of each of the classes in turn, and write the report anew."""
        begin, count, step = time.monotonic(), self._config.sample_count, self._at.step
        averaged = model() if self._main or self._config.shard else None  # parts of it may lie in other processes
        if averaged is None or not self._main:
            return
        cond: dict[str, Any] = {}
        if classes:
            cond["label"] = torch.arange(count, device=self._accelerator.device) % classes
        if self._paired is not None:
            items = self._paired.read([i % len(self._paired) for i in range(count)])
            cond["y"] = items.chunk(2, 1)[1].to(self._accelerator.device)
        x = sample(averaged, count, shape=self._shape, seed=self._config.seed, progress=False, **cond)
        place = self._run / SAMPLES / f"step-{step:06d}"
        if hasattr(self._codec, "write"):
            with atomic_file(place.with_suffix(".txt"), "w") as file:
                file.write("\n".join(self._codec.write(x)) + "\n")
        elif len(self._shape) == 3 and self._shape[0] in (1, 3):
            side = max(self._shape[1:])
            low, high = self._range or (float(x.min()), float(x.max()))
            grid = image_grid(x.float(), None, low, high, zoom=max(1, 64 // side))
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


class Watch:
    """Progress of a run: a bar with loss, speed and time left on a terminal, elsewhere lines, one every half minute.

    Main arguments:
        at, plan: where the run stands, of how many steps.
        shown: True for a line at each `report` too, False for nothing at all.
    """

    EVERY = 30.0

    def __init__(self, at: Progress, plan: Plan, shown: bool | None) -> None:
        stream = sys.stderr  # None in windows without a console; a log of the user's own may lack isatty
        terminal = stream is not None and getattr(stream, "isatty", bool)()
        self._at, self._plan, self._often = at, plan, bool(shown)
        self._wanted, self._lines = terminal and shown is not False, not terminal and shown is not False
        self._bar: Bar | None = None
        self._told = time.monotonic()

    def __enter__(self) -> Watch:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.fields[count]}  loss {task.fields[loss]}  {task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, count=self._count(), loss="-", speed="")
            self._bar.update(self._task, completed=self._plan.fraction)
        return self

    def step(self, loss: float, speed: float) -> None:
        """Report a step, the mean loss and the steps per second since the last `report`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._plan.fraction, count=self._count())
        elif self._lines and time.monotonic() - self._told > self.EVERY:
            self._line(loss, speed)

    def report(self, loss: float, speed: float) -> None:
        """Report the mean loss and the steps per second of a line of the log."""
        if self._bar is not None:
            self._bar.update(self._task, loss=f"{loss:.4g}", speed=f"{speed:.3g} steps/s")
        elif self._lines and self._often:
            self._line(loss, speed)

    def _line(self, loss: float, speed: float) -> None:
        self._told = time.monotonic()
        left = int(self._plan.seconds_left(speed))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
        line = f"step {self._count()}  loss {loss:.4g}  {speed:.3g} steps/s  {clock}"
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)

    def _count(self) -> str:
        return f"{self._at.step}/{self._plan.steps}" if self._plan.settled else str(self._at.step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
