"""Which sampler, and how many steps: errors of the solvers of the flow for the model at hand, from common starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.inputs import whole
from scorefield.model import ScoreModel
from scorefield.sampling import sample
from scorefield.solve import solvers
from scorefield.solve.integrate import Solver
from scorefield.solve.ode import Dopri5


@dataclass(frozen=True)
class Run:
    """One solver at one number of steps.

    Attributes:
        solver: its name. steps, nfe: steps, and evaluations of the network for each sample.
        error: root mean square over samples and entries, relative to the standard deviation of the converged samples.
        seconds: that it took.
    """

    solver: str
    steps: int
    nfe: int
    error: float
    seconds: float


@dataclass(frozen=True, repr=False)
class SamplerTable:
    """Errors of solvers against their evaluations; `runs` is sorted by evaluations, `reference` is where all of them go."""

    runs: tuple[Run, ...]
    reference: Tensor

    def best(self, error: float = 0.01) -> Run:
        """The fewest evaluations with which an error is reached; the least error where none does."""
        there = [run for run in self.runs if run.error <= error]
        return min(there, key=lambda run: (run.nfe, run.error)) if there else min(self.runs, key=lambda run: run.error)

    def __repr__(self) -> str:
        """A line for each solver: its errors at the numbers of steps, the least error first."""
        counts = sorted({run.steps for run in self.runs})
        best, curves = self.best(), self.curves()
        title = "error at steps"
        width = max(len(title), *(len(name) for name in curves))
        head = f"{title:>{width}}" + "".join(f"{count:>9}" for count in counts)
        found = {(run.solver, run.steps): f"{run.error:>9.4f}" for run in self.runs}
        lines = [
            f"{name:>{width}}" + "".join(found.get((name, count), " " * 9) for count in counts)
            for name in sorted(curves, key=lambda name: min(error for _, error in curves[name]))
        ]
        end = f"best: {best.solver} in {best.steps} steps, {best.nfe} evaluations, error {best.error:.4f} of the spread"
        return "\n".join([head, *lines, end])

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """(evaluations, error) of each solver."""
        names = dict.fromkeys(run.solver for run in self.runs)
        return {name: [(run.nfe, run.error) for run in self.runs if run.solver == name] for name in names}


def compare_samplers(
    model: ScoreModel,
    n: int = 32,
    steps: Sequence[int] = (5, 10, 20, 40),
    solver: Sequence[str] | None = None,
    seed: int = 0,
    *,
    tolerance: float = 1e-6,
    **cond: Any,
) -> SamplerTable:
    """Every solver of the probability flow from the same starts, against the flow that the model has when nothing is saved.

    Main arguments:
        n: samples. steps: numbers of them to try, each on the solver's own grid.
        solver: names (see `solve.solvers`); all that follow the flow by default. seed: of the starts.

    Other arguments:
        tolerance: of the reference, Dopri5. cond: as in `sample`.

    Raises:
        ValueError: a name that is no solver, or none that follows the flow.
    """
    n, known = whole(n, "n", "the number of samples"), flows(model)
    chosen = known if solver is None else {name: known[name] for name in solver if name in known}
    if not chosen or (solver is not None and len(chosen) < len(set(solver))):
        raise ValueError(f"solver={solver}: choose among those that follow the flow, {', '.join(sorted(known))}")
    common: dict[str, Any] = {"seed": seed, "denoise": False, "progress": False, "full": True, **cond}
    reference = sample(model, n, Dopri5(tolerance, tolerance), **common).x
    scale = exact(reference).flatten(1).std(0).mean().clamp_min(1e-12)
    runs = []
    for name, method in chosen.items():
        for count in steps:
            begin = time.perf_counter()
            found = sample(model, n, method, steps=count, **common)
            seconds = time.perf_counter() - begin
            error = torch.square(exact(found.x) - exact(reference)).mean().sqrt() / scale
            runs.append(Run(name, count, int(found.nfe.max()), float(error), seconds))
    return SamplerTable(tuple(sorted(runs, key=lambda run: run.nfe)), reference)


def flows(model: ScoreModel) -> dict[str, Solver]:
    """The solvers that need nothing to be made, follow the flow, and suit the process."""
    found = {}
    for name, kind in solvers().items():
        try:
            method = kind()
            method.check_process(model.sde)
        except (TypeError, ValueError):
            continue
        if method.flow:
            found[name] = method
    return found
