"""The default of `sample`: fitted to the model where pilots are granted, else general."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.randomness import Noise, source
from scorefield.rows import held
from scorefield.sde import GaussianSDE
from scorefield.solve.exponential import DEIS, UniPC
from scorefield.solve.integrate import Field, Solver, Task, Tick
from scorefield.solve.reverse import EulerMaruyama
from scorefield.solve.tuned import Tuned, best_fit, followed


@dataclass(frozen=True)
class Fitted(Solver):
    """The default of `sample`: fitted to the model where `pilots` says how many trajectories that may cost, else general.

    Without pilots it is `UniPC(3)`, or `DEIS(3)` for a guided model, whose stiff field it follows better: with guidance
    scales from 3 to 30 it has a twentieth to a half of the error of `DPMSolver(2)` at 20 steps. No number of samples turns
    the fit on by itself: a sample would then depend on how many others were asked for.

    With pilots it is what `tune` makes of the model, from a smaller reference: max(48, 4 steps) + 5 steps evaluations of
    each pilot, kept for later calls as long as the model answers as it did.

    Main arguments:
        pilots: number of trajectories, at least 4; `sample(..., pilots=)` says the same. 8 do for images, 512 for vectors.
    """

    pilots: int | None = None

    order: ClassVar[float] = 3
    grid: ClassVar[str] = "quadratic"
    default_steps: ClassVar[int] = 20

    @property
    def flow(self) -> bool:
        return True

    def prepare(self, task: Task, tick: Tick | None = None) -> Solver:
        """The fitted solver, or the general one.

        Raises:
            ValueError: pilots are given where no fit would be for what is asked.
        """
        own = task.field.model.own_solver
        if own is not None:
            solver: Solver = own.prepare(task, tick)
            return solver
        if not isinstance(task.field.sde, GaussianSDE):
            return EulerMaruyama()
        pilots = task.pilots if self.pilots is None else self.pilots
        if pilots is None:
            return _general(task.field.model)
        steps = self.default_steps if task.steps is None else task.steps
        if (reason := _unfit(task, steps, pilots)) is not None:
            raise ValueError(f"pilots={pilots}: {reason}; leave pilots out for the general solver")
        return _cached(task, steps, pilots, tick) or _general(task.field.model)

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        return _general(field.model).step(field, x, t, s, state, noise)


def _general(model: ScoreModel) -> Solver:
    """What serves without a fit."""
    return DEIS(3) if isinstance(model.net, ScoreModel) else UniPC(3)


def _unfit(task: Task, steps: int, pilots: int) -> str | None:
    """Why a fit would not be for what is asked; None where it would."""
    model = task.field.model
    if isinstance(model.net, ScoreModel) or held(model) is not None:
        return "a guided model is too stiff to be fitted to"
    if task.field.cond:
        return "a fit is for a model without a condition"
    if task.grid is not None or task.span != (model.sde.T, model.sde.t_min):
        return "a fit chooses its own times, from T to t_min"
    if task.altered:
        return "a fit is for sampling without hooks, denoise= and grad="
    if not 2 <= steps <= 64 or task.device.type == "meta":
        return f"a fit is for 2 to 64 steps, not {steps}"
    return None if pilots >= 4 else "at least 4 are needed"


@dataclass(frozen=True)
class _Kept:
    """A fit, with what the model answered at some points of the reference path."""

    x: Tensor
    times: Tensor
    answers: tuple[Tensor, ...]
    solver: Tuned | None


_KEPT: WeakKeyDictionary[ScoreModel, dict[tuple[object, ...], _Kept]] = WeakKeyDictionary()


@torch.no_grad()
def _cached(task: Task, steps: int, pilots: int, tick: Tick | None) -> Tuned | None:
    """What `tune` makes of a model, from a smaller pilot; None where no finite solver came out.

    Neither versions of tensors nor addresses tell whether a model is still the same: weights can change in ways that torch
    does not count, and closures in ways that nobody counts. So the model is asked again at eight points of the path.
    """
    model = task.field.model
    key = (steps, pilots, task.dtype, str(task.device), *task.shape)
    kept = _KEPT.setdefault(model, {}).get(key)
    if kept is None or not _same(kept.answers, _answers(model, kept.x, kept.times)):
        nodes = max(48, 4 * steps)
        noise = source(0, pilots)
        x = model.sde.prior((pilots, *task.shape)).draw(noise, task.dtype, task.device)
        path = followed(Field(model, {}, pilots), x, noise, nodes, tick=tick)
        error, solver = best_fit(path, steps)
        at = torch.linspace(0, nodes - 1, 8, device="cpu").round().long()
        x, times = path.states[at.to(path.states.device), 0].clone(), path.times[at]
        found = solver if math.isfinite(error) else None
        kept = _KEPT[model][key] = _Kept(x, times, _answers(model, x, times), found)
    return kept.solver


def _answers(model: ScoreModel, x: Tensor, times: Tensor) -> tuple[Tensor, ...]:
    sde = model.sde
    ends = torch.tensor([sde.T, sde.t_min], dtype=torch.float64, device="cpu")
    return model.denoise(x, times), sde.alpha(times), sde.sigma(times), ends


def _same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a, b, strict=True))
