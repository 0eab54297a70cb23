"""What is written of a run while it goes on: log.jsonl, and figures for TensorBoard or any tracker of accelerate."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from scorefield.errors import InputError, ScorefieldWarning, cannot_write, closest
from scorefield.files import atomic_file, finite

LOG_FILE = "log.jsonl"
TENSORBOARD = "tensorboard"


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
        line = json.dumps(finite(values))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error


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


class Trackers:
    """The trackers of a run, opened at the first figure; one that fails is left out with a warning.

    Main arguments:
        names: as accelerate calls them; None for tensorboard where it is installed.
        run: its folder; tensorboard's files go to RUN/tensorboard.
        step: the step at which the run goes on.

    Raises:
        InputError: a name that accelerate does not know, or whose package is not installed.
    """

    def __init__(self, names: tuple[str, ...] | None, run: Path, step: int) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known, here = sorted(map(str, LOGGER_TYPE_TO_CLASS)), {str(name) for name in get_available_trackers()}
        for name in names or ():
            if name not in known:
                raise InputError(f"trackers={name} is unknown{closest(name, known)}")
            if name not in here:
                extra = "pip install 'scorefield[train]'" if name == TENSORBOARD else f"pip install {name}"
                raise InputError(f"trackers={name} needs a package that is not installed: {extra}")
        self._names = tuple(n for n in (TENSORBOARD,) if n in here) if names is None else names
        self._run, self._step = run, step
        self._open: dict[str, Any] | None = None

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step."""
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def picture(self, step: int, image: Image.Image) -> None:
        """Log a picture at a step, where the tracker takes pictures."""
        import numpy as np

        pixels = np.asarray(image.convert("RGB"))[None]

        def send(name: str, tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if name == TENSORBOARD else {}
                tracker.log_images({"samples": pixels}, step=step, **layout)

        self._each(send)

    def close(self) -> None:
        """Flush and close."""
        if self._open:
            self._each(lambda name, tracker: tracker.finish())
        self._open = None

    def _each(self, work: Callable[[str, Any], Any]) -> None:
        if self._open is None:
            self._open = {}
            for name in self._names:
                with _warned(name):
                    self._open[name] = self._start(name)
        for name in list(self._open):
            tracker = self._open.pop(name)
            with _warned(name):
                work(name, tracker)
                self._open[name] = tracker

    def _start(self, name: str) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        cls = LOGGER_TYPE_TO_CLASS[name]
        if name == TENSORBOARD:
            tracker = cls(TENSORBOARD, str(self._run), purge_step=self._step + 1)
        elif cls.requires_logging_directory:
            tracker = cls(self._run.name, str(self._run))
        else:
            tracker = cls(self._run.name)
        if hasattr(tracker, "start"):  # accelerate before 1.9 starts them when they are made
            tracker.start()
        return tracker


@contextmanager
def _warned(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        warnings.warn(f"tracker {name} failed ({reason}); going on without it", ScorefieldWarning, stacklevel=5)
