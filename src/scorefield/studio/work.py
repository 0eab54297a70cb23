"""Long work that says how far it is and can be stopped: it runs in a thread, and looks up at every call of the network."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from scorefield.errors import ScorefieldWarning

T = TypeVar("T")
EVERY = 0.2
"""Seconds between two looks at what the work has come to."""


class Stopped(Exception):
    """The work was asked to stop."""


class Watch:
    """What a piece of work has come to, and whether it is to stop.

    Attributes:
        calls: of the network so far. expected: calls in all, where that is known. picture: the states on the way, (B, *).
        remarks: warnings of the library, one line each.
    """

    def __init__(self) -> None:
        self.calls, self.expected = 0, 0
        self.picture: Tensor | None = None
        self.remarks: list[str] = []
        self.begin = time.monotonic()
        self._stop = threading.Event()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.begin

    @property
    def fraction(self) -> float | None:
        """Done of what is expected; None where nothing is."""
        return min(self.calls / self.expected, 1.0) if self.expected else None

    def stop(self) -> None:
        """Let the work end at the next call of the network."""
        self._stop.set()

    def look(self, *_: Any) -> None:
        """Count a call of the network.

        Raises:
            Stopped: it was asked to.
        """
        if self._stop.is_set():
            raise Stopped
        self.calls += 1

    def hook(self, x: Tensor, *_: Any) -> Tensor:
        """A hook of the sampling loop, which leaves the states as they are and keeps the last."""
        self.picture = x.detach()
        return x

    @contextmanager
    def on(self, net: nn.Module) -> Iterator[None]:
        """Look up at every call of a network."""
        handle = net.register_forward_pre_hook(self.look)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            handle.remove()
            kept = [w for w in caught if issubclass(w.category, ScorefieldWarning | RuntimeWarning)]
            self.remarks += [" ".join(str(w.message).split()) for w in kept]


class Task(Generic[T]):
    """Work in a thread of its own: iterate until it is done, then ask for its `result`."""

    def __init__(self, work: Callable[[], T], net: nn.Module, watch: Watch) -> None:
        self._work, self._net, self._watch = work, net, watch
        self._found: list[T] = []
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Watch]:
        """The watch, a few times a second while the work goes on; who leaves the loop stops the work."""
        thread = threading.Thread(target=self._body, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(EVERY)
                if thread.is_alive():
                    yield self._watch
        finally:
            self._watch.stop()
            thread.join()

    def result(self) -> T:
        """What came out.

        Raises:
            Stopped: it was stopped before. Or whatever the work raised.
        """
        if self._error is not None:
            raise self._error
        return self._found[0]

    def _body(self) -> None:
        try:
            with self._watch.on(self._net):
                self._found.append(self._work())
        except BaseException as error:
            self._error = error
