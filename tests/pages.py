"""README and the pages of docs/ as programs: their blocks, what the tests make small in them, and how they are run.

CONTRIBUTING.md says how a page is written so that it passes.
"""

from __future__ import annotations

import importlib
import re
import shlex
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from scorefield.cli import main
from scorefield.cli.app import COMMANDS
from scorefield.cli.parse import parse
from scorefield.cli.states import holds_states
from scorefield.training import read_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

STEPS = 3
"""What `steps=` becomes where it is larger; `minutes=` becomes `steps=` so many."""

TRAIN = "--steps 2 --batch-size 2 --checkpoint-every 1 --log-every 1 --sample-every 2 --sample-count 2 --trackers"
SMALL = {
    "train": TRAIN,
    "classifier": "--steps 2 --batch-size 4 --checkpoint-every 1",
    "distill": "--steps 2 --batch-size 2 --checkpoint-every 1",
    "finetune": "--steps 2 --batch-size 4 --checkpoint-every 1 --chain-steps 3",
    "sample": "-n 2 --steps 2",
    "generate": "-n 2 --steps 2",
    "infill": "-n 2 --steps 2",
    "inpaint": "-n 2 --steps 2",
    "colorize": "-n 2 --steps 2",
    "restore": "-n 2 --steps 2",
    "likelihood": "-n 2",
    "encode": "-n 4 --tolerance 0.1",
    "decode": "--tolerance 0.1",
    "interpolate": "--tolerance 0.1 -n 3",
    "statistics": "--compare 50",
    "dynamics": "--labels 200 --steps 5",
    "diagnose": "--only start",
    "evaluate": "-n 4 --steps 2 --features raw --neighbours 1",
    "demo": "--steps 2",
}
"""Options that make a command small; of an option that is given twice the last value counts."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or `<!-- given: ... -->`."""

    page: Path
    line: int  # of its first line of text, from 1
    language: str
    text: str
    skipped: str = ""  # the reason of `<!-- not run: reason -->` above it
    smaller: tuple[tuple[str, str], ...] = ()  # `<!-- smaller: 2000 -> 20; 100 -> 2 -->` above it

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """The lines that call scorefield."""
        if self.language not in ("", "sh", "bash", "shell", "console"):
            return []
        lines = [line.removeprefix("$ ") for line in small(self.text, self.smaller).splitlines()]
        return [line for line in lines if line.startswith("scorefield ")]


def blocks_of(page: Path) -> list[Block]:
    """What a page runs, in its order."""
    found, above, open_ = [], [], None
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line.strip())
        if open_ is None and fence:
            open_ = (number + 1, fence[1], [])
        elif open_ is not None and fence:
            skipped, smaller = (_marker(above, name) for name in ("not run", "smaller"))
            pairs = tuple(tuple(pair.strip().split(" -> ")) for pair in smaller.split(";") if pair)
            found.append(Block(page, open_[0], open_[1], "\n".join(open_[2]), skipped, pairs))
            open_, above = None, []
        elif open_ is not None:
            open_[2].append(line)
        elif line.strip():
            above = [*above, line.strip()] if line.startswith("<!--") else []
            if given := _marker(above[-1:], "given"):
                found.append(Block(page, number, "given", given))
    return found


def _marker(lines: list[str], name: str) -> str:
    """What `<!-- NAME: ... -->` says, if it is among the lines."""
    return next((found[1] for line in lines if (found := re.fullmatch(rf"<!-- {name}: (.+) -->", line))), "")


def small(text: str, smaller: tuple[tuple[str, str], ...] = ()) -> str:
    """Python that does the same with less work.

    Raises:
        AssertionError: a replacement of something that is not there.
    """
    for before, after in smaller:
        assert before in text, f"<!-- smaller: {before} -> {after} -->, and there is no {before}"
        text = text.replace(before, after)
    text = re.sub(r"\bminutes=[\d.]+", f"steps={STEPS}", text)
    return re.sub(r"\bsteps=([\d_]+)", lambda found: f"steps={min(int(found[1]), STEPS)}", text)


def run_python(block: Block, names: dict) -> None:
    """Run a block among the names that the blocks before it left.

    Raises:
        AssertionError: it fails, with the line of the page.
    """
    code = "\n" * (block.line - 1) + small(block.text, block.smaller)
    try:
        exec(compile(code, str(block.page), "exec"), names)
    except BaseException as error:
        here = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(block.page)]
        line = here[-1] if here else getattr(error, "lineno", block.line)
        place = f"{block.page.relative_to(ROOT)}:{line}"
        raise AssertionError(f"{place} fails: {type(error).__name__}: {error}") from error


def run_command(line: str, place: str, capsys) -> None:
    """Run a line of the shell in this process, with less work.

    Raises:
        AssertionError: its exit status is not 0.
    """
    words = shlex.split(re.sub(r" --minutes [\d.]+", "", line), comments=True)[1:]
    status = main([*words, *(smaller(words) if words[0] in COMMANDS else [])])
    out, err = capsys.readouterr()
    assert status == 0, f"{place}: `{line}` ends with status {status}: {err or out}"


def smaller(words: list[str]) -> list[str]:
    """The options to add to a command."""
    if "--help" in words or "list" in words or words[0] not in SMALL:
        return []
    if words[0] == "train" and _is_own(words[1:]):
        return ["--steps", "2", "--fast"]
    if words[0] == "likelihood" and not holds_states(read_run(words[1])):
        return [*SMALL["likelihood"].split(), "--tolerance", "0.1"]
    return SMALL[words[0]].split()


def _is_own(words: list[str]) -> bool:
    from scorefield.cli import own

    return own.words_for(words) is not None


def check_command(line: str, place: str) -> None:
    """That a line of the shell would be understood.

    Raises:
        AssertionError: an unknown command or option.
    """
    words = shlex.split(line.partition("\\")[0], comments=True)[1:]
    assert words[0] in COMMANDS or words[0].startswith("-"), f"{place}: no command {words[0]!r}"
    if words[0] not in COMMANDS:
        return
    command = importlib.import_module(f"scorefield.cli.{words[0]}")
    words = words[1:]
    if hasattr(command, "instead"):
        command, words = command.instead(words)
    try:
        assert parse(command, words, "scorefield") is not None or "--help" in words
    except ValueError as error:
        raise AssertionError(f"{place}: `{line}` is not understood: {error}") from error


def check_names(block: Block) -> None:
    """That what Python calls sf.something is there, and that the block compiles."""
    import scorefield

    compile(block.text, block.place, "exec")
    for dotted in set(re.findall(r"(?<![\w.])sf((?:\.\w+)+)", block.text)):
        value = scorefield
        for name in dotted[1:].split("."):
            assert hasattr(value, name), f"{block.place}: there is no sf{dotted}"
            value = getattr(value, name)


def run_page(page: Path, given, capsys) -> None:
    """Run all blocks of a page in the current folder, in one namespace; `given(name)` makes what the reader has."""
    names: dict = {"__name__": "__main__"}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        for block in blocks_of(page):
            if block.language == "given":
                for name in block.text.split():
                    given(name)
            elif block.language == "python" and block.skipped:
                check_names(block)
            elif block.language == "python":
                run_python(block, names)
            for line in block.commands():
                if block.skipped:
                    check_command(line, block.place)
                else:
                    run_command(line, block.place, capsys)
