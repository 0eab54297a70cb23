"""Command lines to values by tyro, with its boxes of error text brought to one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from scorefield.cli.names import read_times, write_times
from scorefield.cli.options import check_counts
from scorefield.errors import InputError, closest

KINDS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "STR": "a word",
    "PATH": "a path",
    "{True,False}": "True or False",
}


def parse(command: Any, args: Sequence[str], prog: str) -> Any:
    """The options of a command; None if help was asked for and printed.

    `command` is a module with `Options`, and `prepare(args) -> (args, default)` where defaults depend on the arguments.

    Raises:
        InputError: a command line that does not fit, in one line.
    """
    arguments, default = list(args), None
    if hasattr(command, "prepare"):
        arguments, default = command.prepare(arguments)
    return read(command.Options, arguments, prog, default)


def read(options: type, args: Sequence[str], prog: str, default: Any = None) -> Any:
    """An instance of the dataclass `options` (see `parse`)."""
    settings: dict[str, Any] = {"prog": prog, "description": inspect.cleandoc(options.__doc__ or "")}
    if default is not None:
        settings["default"] = default
    if "-h" in args or "--help" in args:
        with registry(), contextlib.suppress(SystemExit):
            tyro.cli(options, args=["--help"], **settings)
        return None
    complaint = io.StringIO()
    try:
        with registry(), _wide(), contextlib.redirect_stderr(complaint):
            found = tyro.cli(options, args=list(args), **settings)
    except SystemExit:
        pass
    else:
        check_counts(found)
        return found
    raise InputError(_one_line(complaint.getvalue(), lambda: known_options(options, settings), prog))


def known_options(options: type, settings: dict[str, Any]) -> list[str]:
    """The options of a command, as its help spells them."""
    text = io.StringIO()
    with registry(), _wide(), contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        tyro.cli(options, args=["--help"], **settings)
    return sorted(set(re.findall(r"(?<!\S)--?[a-z][\w.-]*", text.getvalue())))


@contextlib.contextmanager
def registry() -> Iterator[None]:
    """What tyro must know about the types of our options."""
    rules = tyro.constructors.ConstructorRegistry()

    def proposal(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if getattr(info.type, "__name__", "") != "Proposal":
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NAME[:MEAN,STD]",
            instance_from_str=lambda words: read_times(words[0]),
            is_instance=callable,
            str_from_instance=lambda value: [write_times(value)],
        )

    def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type != float | None:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT",
            instance_from_str=lambda words: float(words[0]),
            is_instance=lambda value: value is None or isinstance(value, int | float),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    rules.primitive_rule(proposal)
    rules.primitive_rule(optional)
    with rules:
        yield


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """A terminal so wide that tyro does not break lines."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(text: str, known: Any, prog: str) -> str:
    lines = [line.strip(" │╭╮╰╯─┌┐└┘|") for line in text.splitlines()]
    lines = [re.sub(r"\[/?bold\]", "", line) for line in lines if line]
    body = [line for line in lines[1:] if not re.fullmatch(r"[-─]+", line)] or ["the command line was not understood"]
    first = body[0]
    if match := re.match(r"Unrecognized options: (.*)", first):
        word = match[1].split(",")[0].strip()
        if not word.startswith("-"):
            return f"unexpected argument {word!r}; {prog} --help lists what it takes"
        near = difflib.get_close_matches(word.replace("_", "-"), known(), n=1, cutoff=0.6)
        return f"unknown option {word}" + (f"; did you mean {near[0]}?" if near else f"; {prog} --help lists them")
    if first.startswith("Missing from"):
        return f"{body[1].split(',')[0].split()[0]} is missing; give it, as {prog} --help shows"
    if match := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", first):
        choices = [c.strip(" '") for c in match[3].split(",") if c.strip(" '")]
        return f"{match[2].split('/')[-1]}={match[1]!r} is unknown{closest(match[1], choices)}"
    if match := re.match(r"Missing value for argument '(.*)'", first):
        return f"{match[1].split('/')[-1]} needs a value; {prog} --help shows which"
    if match := re.match(r"Error parsing (\S+): (.*)", first):
        option = match[1].split("/")[-1]
        wanted = re.search(rf"{re.escape(option)} (\S.*)$", "\n".join(body[1:]), re.M)
        got = re.search(r"'(?P<one>[^']*)'\]?\.?$", match[2])
        if wanted and got:
            metavar = re.sub(r"\{None\}\|", "", wanted[1])
            return f"{option}={got['one']!r} cannot be read; expected {KINDS.get(metavar, metavar)}"
        return f"{option}: {match[2]}"
    return first
