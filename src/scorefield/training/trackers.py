"""Figures for TensorBoard, or any tracker that accelerate knows by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from scorefield.errors import InputError, ScorefieldWarning, closest

TENSORBOARD = "tensorboard"


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
