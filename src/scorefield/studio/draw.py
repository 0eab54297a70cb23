"""Samples, and the way that they come from noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import scorefield as sf
from scorefield.cli.names import read_solver
from scorefield.errors import InputError
from scorefield.model import ScoreModel
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python, solver_argument
from scorefield.studio.work import Watch

MOST = 64
SHOWN = 8
"""Times at which one sample is shown beside what the model takes it for."""


@dataclass(frozen=True)
class Drawn:
    """Samples and their way.

    Attributes:
        x: (n, C, H, W). path: states (K, n, C, H, W), the first being noise. times: of the path, (K,).
        guessed_at: `SHOWN` places of the path. guesses: E[x_0 | x_t] of the first sample there, (8, C, H, W), of a
            flow map where it jumps to. nfe: evaluations.
    """

    x: Tensor
    path: Tensor
    times: Tensor
    guessed_at: Tensor
    guesses: Tensor
    nfe: float


@dataclass(frozen=True)
class Draw:
    """n samples.

    Main arguments:
        sampler: a word as on the command line, the default where it is empty. steps: None for the sampler's own.
        label: a class, where the run has classes. guidance: of that class; 1 is none.
    """

    n: int = 16
    sampler: str = ""
    steps: int | None = 20
    seed: int = 0
    label: int | None = None
    guidance: float = 1.0

    def run(self, opened: Opened, watch: Watch) -> Drawn:
        """Draw, and look at the way.

        Raises:
            InputError: an option out of range.
        """
        if not 1 <= self.n <= MOST:
            raise InputError(f"n={self.n} is impossible; give 1 to {MOST} samples")
        self._check(opened)
        model, cond = self._model(opened), {} if self.label is None else {"label": self.label}
        solver = read_solver(self.sampler or None, opened.model.sde, "sampler")
        chooses = solver is not None and solver.chooses(self.steps, None)
        # Evaluations of samplers with one a step and a last one; others have more, and then there is no fraction to show.
        watch.expected = self.steps + 1 if self.steps and solver is None and self.guidance == 1 else 0
        done = sf.sample(
            model,
            self.n,
            solver,
            steps=self.steps,
            shape=opened.shape,
            seed=self.seed,
            hooks=[] if chooses else [watch.hook],
            full=True,
            progress=False,
            **cond,
        )
        at = _places(done.path, opened.interval)
        with torch.no_grad():
            guess = model.jump if isinstance(model, sf.FlowMap) else model.denoise
            guesses = guess(done.path[at, 0], done.times[at].clamp_min(model.sde.t_min), **_rows(cond, len(at)))
        nfe = float(done.nfe.double().mean())
        return Drawn(done.x.cpu(), done.path.cpu(), done.times, at, guesses.cpu(), nfe)

    def python(self, opened: Opened) -> str:
        """The same in Python: `x`, and the way as `path` at `times`."""
        guided = "" if self._plain else f"model = model | sf.ClassifierFree({self.guidance!r})"
        solver = solver_argument(self.sampler, opened.model.sde)
        steps = "" if self.steps is None else f", steps={self.steps}"
        label = "" if self.label is None else f", label={self.label}"
        call = f"solution = sf.sample(model, {self.n}{solver}{steps}, seed={self.seed}, full=True{label})"
        return python(opened.load_line(), guided, call, "x, path, times = solution.x, solution.path, solution.times")

    def command(self, opened: Opened) -> str:
        """The same on the command line."""
        rest = options(n=self.n, sampler=self.sampler, steps=self.steps, seed=self.seed, label=self.label)
        if self._plain:
            return command("sample", opened.run, *rest, "--out", "samples.png")
        return command("generate", opened.run, *rest, "--guidance", self.guidance, "--out", "samples.png")

    @property
    def _plain(self) -> bool:
        return self.label is None or self.guidance == 1

    def _check(self, opened: Opened) -> None:
        if self.label is not None and not 0 <= self.label < opened.classes:
            raise InputError(f"class {self.label} does not exist; {opened.run} has {opened.classes or 'no'} classes")
        if not 0 <= self.guidance < math.inf:
            raise InputError(f"guidance={self.guidance} is impossible; expected 0 or more, such as 2")

    def _model(self, opened: Opened) -> ScoreModel:
        return opened.model if self._plain else opened.model | sf.ClassifierFree(self.guidance)


def _rows(cond: dict[str, Any], n: int) -> dict[str, Any]:
    return {name: torch.full((n,), value) for name, value in cond.items()}


def _places(path: Tensor, interval: tuple[float, float]) -> Tensor:
    """Places of the path, evenly spread over how far the picture has come: most of time is plain noise."""
    last = path[-1].double().flatten()
    far = torch.stack([(state.double().flatten() - last).square().mean().sqrt() for state in path])
    far = far / (interval[1] - interval[0])
    goal = torch.linspace(float(far[0]), 0, SHOWN, dtype=torch.float64)
    found = [int((far.cpu() - g).abs().argmin()) for g in goal]
    if len(set(found)) < SHOWN:  # a way of few steps
        found = torch.linspace(0, len(path) - 1, SHOWN).round().long().tolist()
    return torch.tensor(found)
