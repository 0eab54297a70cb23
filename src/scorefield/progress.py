"""Progress of what takes longer than two seconds: a bar on a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rich.progress import Progress

INTERVAL = 30.0
"""Seconds between lines where there is no terminal."""


def on_terminal() -> bool:
    """Whether standard error is a terminal; a program without one, or with a stand-in for it, has none."""
    ask = getattr(sys.stderr, "isatty", None)
    return bool(ask is not None and ask())


def say(line: str) -> None:
    """A line on standard error, where there is one."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(line + "\n")
        getattr(sys.stderr, "flush", lambda: None)()
    except (OSError, ValueError, UnicodeError):  # closed, or of an encoding without these characters
        return


def clock(seconds: float) -> str:
    """A time to come, as people say it: 40 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Bar:
    """Shows the fraction done on standard error: a bar on a terminal, else a line every half minute.

    A terminal holds one bar: one inside another is not shown.

    Main arguments:
        text: what is being done.
        shown: False is silent; True shows a bar whatever standard error is; None decides by it.
    """

    _showing: ClassVar[Bar | None] = None

    def __init__(self, text: str, shown: bool | None = None, delay: float = 2.0) -> None:
        self._terminal = shown is True or (shown is None and on_terminal())
        self._lines = shown is None and not self._terminal
        self._text, self._delay, self._begin = text, delay, time.monotonic()
        self._said = self._begin
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __call__(self, fraction: float) -> None:
        """Report that `fraction` of the work, 0 to 1, is done."""
        now = time.monotonic()
        if self._lines and now - self._said >= INTERVAL and fraction < 1:
            self._said = now
            left = f", {clock((now - self._begin) * (1 - fraction) / fraction)} left" if fraction > 0 else ""
            say(f"{self._text}: {100 * fraction:.0f} %{left}")
        due = self._terminal and now - self._begin > self._delay and sys.stderr is not None
        if due and Bar._showing is None:
            self._start()
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction)

    def part(self, rows: slice, n: int) -> Callable[[float], None]:
        """Reports for the rows of a batch of n."""
        return lambda fraction: self((rows.start + fraction * (rows.stop - rows.start)) / n)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._bar.start()
        Bar._showing = self
        self._task = self._bar.add_task(self._text, total=1.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            Bar._showing = None
            self._bar.stop()
