"""What the page says of a computation: the lines of Python and the command that do the same, and errors in one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from scorefield.cli.names import solver_code
from scorefield.sde import SDE


def python(*lines: str) -> str:
    """Lines of Python; empty ones are left out."""
    return "\n".join(["import scorefield as sf", "", *filter(None, lines)]) + "\n"


def command(*parts: object) -> str:
    """A command of the shell from its words."""
    return "scorefield " + " ".join(shlex.quote(str(part)) for part in parts)


def options(**given: object) -> Iterable[object]:
    """Options of a command, without those that are None or empty."""
    for name, value in given.items():
        if value is not None and value != "":
            yield from ("-n" if name == "n" else f"--{name.replace('_', '-')}", value)


def solver_argument(word: str, sde: SDE) -> str:
    """The solver as an argument of `sf.sample`, with its comma; nothing for the default."""
    return f", {solver_code(word, sde)}" if word else ""


def one_line(error: BaseException) -> str:
    """What an error says, in the words of the page, which has no options with dashes."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(?<![\w-])--?(?=[a-z])", "", text)
