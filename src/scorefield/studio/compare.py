"""Which sampler comes how near with how many evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scorefield.diagnose import compare_samplers
from scorefield.diagnose.chapters import COMPARED, COMPARED_STEPS, COMPARED_TOLERANCE
from scorefield.diagnose.samplers import SamplerTable, flows
from scorefield.errors import InputError
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python
from scorefield.studio.work import Watch

MOST, LINES = 16, 4


def choices(opened: Opened) -> list[str]:
    """Samplers of the flow that suit a model; the others draw noise, and have no one end to come near to."""
    return sorted(flows(opened.model))


def read_steps(text: str) -> tuple[int, ...]:
    """Numbers of steps from a text such as "4, 8, 16".

    Raises:
        InputError: it holds something else, or numbers that are out of range.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() and 1 <= int(word) <= 1000 for word in words):
        raise InputError(f"the numbers of steps {text!r} cannot be read; expected such as 4, 8, 16")
    return tuple(sorted({int(word) for word in words}))


@dataclass(frozen=True)
class Compare:
    """Errors of samplers of the flow against where the flow ends when nothing is saved.

    Main arguments:
        samplers: names of classes. n: starts. steps: numbers of them.
    """

    samplers: Sequence[str] = COMPARED
    n: int = 4
    seed: int = 0
    steps: Sequence[int] = COMPARED_STEPS

    def run(self, opened: Opened, watch: Watch) -> SamplerTable:
        """Follow all of them.

        Raises:
            InputError: no sampler, or too many.
        """
        if not 1 <= len(self.samplers) <= LINES:
            raise InputError(f"{len(self.samplers)} samplers are chosen; choose one to {LINES}")
        if not 2 <= self.n <= MOST:
            raise InputError(f"n={self.n} is impossible; give 2 to {MOST} starts")
        return compare_samplers(
            opened.model, self.n, self.steps, tuple(self.samplers), self.seed, tolerance=COMPARED_TOLERANCE
        )

    def python(self, opened: Opened) -> str:
        """The same in Python: `table`."""
        arguments = f"{self.n}, {tuple(self.steps)}, {tuple(self.samplers)}, {self.seed}"
        return python(
            opened.load_line(),
            f"table = sf.diagnose.compare_samplers(model, {arguments}, tolerance={COMPARED_TOLERANCE!r})",
            "for run in table.runs:",
            '    print(f"{run.solver:12} {run.nfe:4d} evaluations, error {run.error:.4f}")',
        )

    def command(self, opened: Opened) -> str:
        """The same on the command line, which has one choice of samplers and steps; empty for others."""
        if set(self.samplers) != set(COMPARED) or tuple(self.steps) != COMPARED_STEPS or not opened.has_digits:
            return ""
        rest = options(n=self.n, seed=self.seed)
        return command("diagnose", opened.run, "--only", "samplers", *rest, "--out", "samplers.html")
