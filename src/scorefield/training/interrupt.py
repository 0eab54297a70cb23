"""What protects a run from the outside: one process at a time in its folder, and signals that wait for a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from scorefield.errors import InputError, cannot_write

LOCK_FILE = ".lock"


@contextmanager
def only_process(run: Path) -> Iterator[None]:
    """Hold the run's folder; the system lets go of it when the process ends, however it ends.

    Raises:
        OutputError: the folder cannot be created.
        InputError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        run.mkdir(parents=True, exist_ok=True)
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / LOCK_FILE, "a")  # noqa: SIM115 - open for as long as the lock is held
    except OSError as error:
        raise cannot_write(run, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{run} is being trained by another process; wait for it, or choose another --out"
            ) from error
        except OSError:
            pass  # some network file systems have no locks
        yield


class StopSignals:
    """Turns the first SIGTERM or Ctrl-C into a wish to stop after the present step; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals to no other
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.received is None:
            self._restore()
