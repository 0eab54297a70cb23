"""What people see of a run: a progress bar, and log.jsonl."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from scorefield.errors import cannot_write
from scorefield.files import atomic_file

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_FILE = "log.jsonl"


class Log:
    """log.jsonl of a run: one JSON object a line; infinities and NaN become null.

    Lines of steps after `step` are dropped at the start: the run did not get there, or will get there again.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / LOG_FILE
        lines = read_log(run)
        kept = [line for line in lines if line.get("step", 0) <= step]
        if self.path.exists():
            with atomic_file(self.path, "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)

    def write(self, **values: Any) -> None:
        """Append one line of numbers, texts and lists of them.

        Raises:
            OutputError: the disk is full.
        """
        line = json.dumps(_strict(values))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that a crash cut off is left out."""
    try:
        text = (Path(run) / LOG_FILE).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


class Watch:
    """Progress of a run: a bar with loss, speed and time left on a terminal, else a line at each `report`.

    Main arguments:
        start, steps: the steps done, and in all.
        shown: True, False, or None for a bar on a terminal and nothing elsewhere.
    """

    def __init__(self, start: int, steps: int, shown: bool | None) -> None:
        terminal = sys.stderr.isatty()
        self._lines = bool(shown) and not terminal
        self._wanted = terminal and shown is not False
        self._start, self._steps, self._begin = start, steps, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Watch:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._steps, completed=self._start, loss="-", speed="")
        return self

    def step(self, done: int) -> None:
        """Report that `done` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def report(self, done: int, loss: float, speed: float) -> None:
        """Report the mean loss and the steps per second since the last report."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, loss=f"{loss:.4g}", speed=f"{speed:.3g} steps/s")
        elif self._lines:
            left = int((self._steps - done) / max(speed, 1e-9))
            print(
                f"step {done}/{self._steps}  loss {loss:.4g}  {speed:.3g} steps/s  "
                f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
