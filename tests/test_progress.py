"""What a long computation says: a bar on a terminal, plain lines elsewhere, nothing where nobody listens."""

import io
import sys

import pytest

from scorefield import progress
from scorefield.progress import Bar, clock


@pytest.fixture
def time(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_every_half_minute(time, capsys):
    with Bar("sampling") as bar:
        for second in range(0, 120, 10):
            time[0] = second
            bar(second / 120)
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 25 %, 2 min left",
        "sampling: 50 %, 60 s left",
        "sampling: 75 %, 30 s left",
    ]


def test_a_bar_that_is_switched_off_says_nothing(time, capsys):
    with Bar("sampling", False) as bar:
        time[0] = 100.0
        bar(0.5)
    assert capsys.readouterr().err == ""


class Log:
    """A stand-in for standard error as programs have it that keep a log."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("stream", [None, Log(), io.TextIOWrapper(io.BytesIO(), "ascii")])
def test_any_kind_of_standard_error(time, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with Bar("±") as bar:
        time[0] = 100.0
        bar(0.5)
    if isinstance(stream, Log):
        assert stream.text == "±: 50 %, 2 min left\n"


def test_times_are_said_as_people_say_them():
    assert [clock(s) for s in (5, 89, 120, 7900)] == ["5 s", "89 s", "2 min", "2 h 12 min"]


def test_a_bar_inside_another_is_not_shown_and_no_fault(time, capsys):
    with Bar("outer", True) as outer:
        time[0] = 10.0
        outer(0.1)
        with Bar("inner", True) as inner:
            time[0] = 20.0
            inner(0.5)
        outer(0.9)
    assert "inner" not in capsys.readouterr().err
    assert Bar._showing is None
