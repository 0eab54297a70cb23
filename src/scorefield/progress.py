"""A progress bar that appears only when something takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """Shows the fraction done on standard error; silent when it is not a terminal, unless `shown` is True.

    Main arguments:
        text: what is being done.
        shown: True, False, or None for "on a terminal".
    """

    def __init__(self, text: str, shown: bool | None = None, delay: float = 2.0) -> None:
        self._on = sys.stderr.isatty() if shown is None else shown
        self._text, self._delay, self._begin = text, delay, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __call__(self, fraction: float) -> None:
        """Report that `fraction` of the work, 0 to 1, is done."""
        if self._bar is None and self._on and time.monotonic() - self._begin > self._delay:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._text, total=1.0)
        if self._bar is not None:
            self._bar.update(self._task, completed=fraction)

    def part(self, rows: slice, n: int) -> Callable[[float], None]:
        """Reports for the rows of a batch of n."""
        return lambda fraction: self((rows.start + fraction * (rows.stop - rows.start)) / n)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
