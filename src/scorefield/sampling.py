"""The user's door: sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from scorefield.conditions import warn_of_dropout
from scorefield.inputs import as_tensor, whole
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike, SamplePrior
from scorefield.progress import Bar
from scorefield.randomness import Noise, NoiseFn, Seed, chunks
from scorefield.rows import bound, held, take
from scorefield.sde import GaussianSDE
from scorefield.solve.fitted import Fitted
from scorefield.solve.integrate import NOT_FINITE, SUCCESS, Field, Hook, Solution, Solver, Task, Tick
from scorefield.times import GridFn, GridName, as_grid

LIKELIHOOD_T_MIN = 1e-5
"""Where likelihoods and codes start (Song et al. 2021, App. C)."""


Grid: TypeAlias = "GridName | GridFn | Tensor | None"


@overload
def sample(model: ScoreModel, n: int, solver: Solver | None = ..., *, full: Literal[True], **rest: Any) -> Solution: ...
@overload
def sample(
    model: ScoreModel, n: int, solver: Solver | None = ..., *, full: Literal[False] = ..., **rest: Any
) -> Tensor: ...
def sample(
    model: ScoreModel,
    n: int,
    solver: Solver | None = None,
    *,
    steps: int | None = None,
    grid: Grid = None,
    shape: Sequence[int] | None = None,
    seed: Seed = None,
    noise: NoiseFn | None = None,
    x_init: Tensor | None = None,
    t_start: float | None = None,
    t_min: float | None = None,
    denoise: bool | None = None,
    prior: PriorLike | Tensor | Literal["nominal", "exact"] = "nominal",
    hooks: Sequence[Hook] = (),
    full: bool = False,
    progress: bool | None = None,
    batch_size: int | None = None,
    pilots: int | None = None,
    grad: bool = False,
    **cond: Any,
) -> Tensor | Solution:
    """n samples of a model, (n, *shape), in the dtype and on the device of `x_init`, else of the model.

    Main arguments:
        solver: by default `UniPC(3)`, or `DEIS(3)` for a guided model (see `solve.Fitted`); adaptive ones choose their own
            steps unless `steps` or `grid` is given.
        steps: number of steps; the solver's own default.
        seed: an int, one int for each sample, or a torch.Generator. Sample i of an int seed depends on (seed, i) alone,
            so neither batch size nor batch-mates matter; a sample with a seed of its own is sample 0 of that seed.
        batch_size: samples at a time; all at once by default.
        pilots: number of trajectories, with random numbers of their own, that are followed before sampling: the default
            solver is then fitted to the model, grid and weights (see `solve.tune`), `Langevin` measures the norm that sets
            its steps, `AnalyticAncestral` its variance. They are not part of `nfe`. By default there are none.

    Other arguments:
        grid: name, function or tensor of times (see `scorefield.times.sampling_grid`).
        shape: event shape, where the model does not know it.
        noise: callable that returns the next standard-normal tensor of the whole batch, the prior's first; not with seed.
        x_init: states at t_start, (n, *), in place of a draw from the prior.
        t_start: where to start, T by default; before T with x_init, or with a prior that is the law there (see
            `diagnose.fit_prior`). t_min: where to stop, `sde.t_min` by default.
        denoise: end with E[x_0 | x] (Tweedie); by default what the solver's method does (ODE solvers: no).
        prior: "nominal" N(0, sigma(T)^2 I), "exact" p_T where the model knows it, an object with `draw`, or samples (N, *).
        hooks: functions (x, t, field, noise) -> x, called at the start and after every stage of the fixed-grid loop; if
            a hook has a method `finish(x) -> x`, it is called on the denoised result; what a
            hook or a solver holds for single samples follows them (see `scorefield.rows`).
        full: return a `Solution` with nfe, status and path.
        progress: True, False, or None for a bar on a terminal after two seconds.
        grad: keep the graph, to differentiate through the sampler.
        cond: passed to the network. What has n rows goes with the samples, unless the network takes it whole for one of
            them (see `scorefield.conditions`); label=3 is one class for all.

    Raises:
        ValueError: an argument out of range, a shape that does not fit, or a keyword that the network does not take.
    """
    x_init = None if x_init is None else as_tensor(x_init, "x_init")
    n = _check(n, solver, batch_size, pilots, x_init)
    span = _span(model.sde, t_start, t_min, grid, prior if x_init is None else x_init)
    start = _Start.of(model, n, x_init, shape, prior, span[0])
    interval = getattr(model.sde, "range", None)
    solver = bound(Fitted() if solver is None else solver, start.event, interval)
    hooks = [bound(hook, start.event, interval) for hook in hooks]
    _check_rows(n, start.event, model, solver, *hooks)
    size, grad = batch_size or n, grad and torch.is_grad_enabled()
    apart = size < n or pilots is not None or solver.chooses(steps, grid)
    whole = Field.of(model, cond, n, start.one() if apart else None)
    altered = bool(hooks) or grad or denoise is not None
    task = Task(
        whole,
        start.event,
        start.dtype,
        start.device,
        span,
        start.prior,
        steps,
        grid,
        start.shared(whole),
        altered,
        pilots,
    )
    with torch.no_grad(), Bar("following pilots of the sampler", progress) as bar:
        solver = solver.prepare(task, bar)
    solver.check_process(model.sde)
    final = solver.denoises and model.denoises if denoise is None else denoise
    warn_of_dropout(model)
    parts: list[Solution] = []
    with torch.set_grad_enabled(grad), Bar("sampling", progress) as bar:
        for rows, draws in chunks(seed, noise, n, size):
            ticks = bar.part(rows, n)
            parts.append(_solved(task, solver, hooks, start.states(rows, draws), (rows, draws), final, full, ticks))
    result = start.finished(Solution.joined(parts))
    result.warn(lambda: cause_of_loss(model, start.x_init, span))
    if span[1] <= model.sde.t_min:
        model.inspect(result.x, 0.0 if final else span[1])
    return result if full else result.x


@dataclass(frozen=True)
class _Start:
    """Where samples start: of which shape and dtype, and from what.

    Attributes:
        outer: dtype of the result; `dtype` is that of the states, which in half precision would lose what small steps add.
    """

    event: tuple[int, ...]
    x_init: Tensor | None
    prior: PriorLike
    outer: torch.dtype
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        n: int,
        x: Tensor | None,
        shape: Sequence[int] | None,
        prior: PriorLike | Tensor | str,
        begin: float,
    ) -> _Start:
        """Checked.

        Raises:
            ValueError: a shape or dtype that does not fit.
        """
        if x is not None:
            model.check(x, "x_init")
        event = _event_shape(model, shape, x, n)
        outer, inner = state_dtypes(model, x)
        first = SamplePrior(x) if x is not None else resolve_prior(model, prior, (n, *event), begin)
        return cls(event, x, first, outer, inner, model.device if x is None else x.device)

    def one(self) -> Tensor:
        """A state to try the network on."""
        return torch.zeros(1, *self.event, dtype=self.dtype, device=self.device)

    def shared(self, field: Field) -> bool:
        """Whether one start law and one condition hold for all samples."""
        return self.x_init is None and held(field.model) is None and not field.own

    def finished(self, result: Solution) -> Solution:
        """In the dtype that was asked for; jump processes count in integers of their own."""
        return result if self.dtype == self.outer else result.to(self.outer)

    def states(self, rows: slice, draws: Noise) -> Tensor:
        """The states of some of the samples."""
        if self.x_init is None:
            x = self.prior.draw(draws, self.dtype, self.device)
            if x.shape != (draws.size, *self.event):
                raise ValueError(
                    f"prior: draw returned shape {tuple(x.shape)}; expected {(draws.size, *self.event)}, a row for each sample"
                )
            return x
        return self.x_init[rows].to(self.dtype)


def _solved(
    task: Task,
    solver: Solver,
    hooks: Sequence[Hook],
    x: Tensor,
    part: tuple[slice, Noise],
    final: bool,
    full: bool,
    tick: Tick | None,
) -> Solution:
    """Some of the samples from start to end."""
    rows, draws = part
    index = torch.arange(rows.start, rows.stop, device="cpu")
    field, own = take(task.field, index, x.ndim), [take(hook, index, x.ndim) for hook in hooks]
    times = task.times(solver)
    solution = take(solver, index, x.ndim).solve(
        field, x, task.span, draws, grid=times, hooks=own, save=full, tick=tick
    )
    return _denoised(solution, field, task.span[1], own, full) if final else solution


def _denoised(solution: Solution, field: Field, t: float, hooks: Sequence[Hook], full: bool) -> Solution:
    """With the final denoising step, which the path has at time 0."""
    x = field.denoise(solution.x, torch.tensor(t, dtype=torch.float64, device="cpu"))
    for hook in hooks:
        finish = getattr(hook, "finish", None)
        x = x if finish is None else finish(x)
    lost = (solution.status == SUCCESS) & ~torch.isfinite(x.flatten(1)).all(1)
    solution = replace(solution, x=x, nfe=solution.nfe + 1, status=torch.where(lost, NOT_FINITE, solution.status))
    if not full:
        return solution
    at = torch.cat([solution.times, torch.zeros(1, dtype=torch.float64, device="cpu")])
    return replace(solution, path=torch.cat([solution.path, x.unsqueeze(0)]), times=at)


def _check(n: int, solver: Solver | None, batch_size: int | None, pilots: int | None, x_init: Tensor | None) -> int:
    if isinstance(solver, type) and issubclass(solver, Solver):
        raise ValueError(f"solver={solver.__name__} is a class: give an object, {solver.__name__}()")
    if solver is not None and not isinstance(solver, Solver):
        raise ValueError(f"solver={solver!r}: give a solver object, such as sf.Heun()")
    n = whole(n, "n", "the number of samples; the shape of one goes to shape=")
    for name, value in (("batch_size", batch_size), ("pilots", pilots)):
        if value is not None:
            whole(value, name, "a number of samples")
    if x_init is not None:
        refuse_vmap(x_init)
    return n


def refuse_vmap(x: Tensor) -> None:
    """Refuse states inside torch.func.vmap.

    Raises:
        ValueError: they are.
    """
    if torch._C._functorch.is_batchedtensor(x):
        raise ValueError("torch.func.vmap over a sampler: it takes batches itself; give all states at once, (n, *)")


def state_dtypes(model: ScoreModel, x: Tensor | None) -> tuple[torch.dtype, torch.dtype]:
    """(of the result, of the state): a state in half precision would lose what small steps add to it."""
    outer = model.dtype if x is None else x.dtype
    return outer, torch.promote_types(outer, torch.float32) if outer.is_floating_point else outer


def blind(model: ScoreModel, t: float) -> bool:
    """Whether alpha is 0 at t, where what the model predicts says nothing of x_0."""
    if not isinstance(model.sde, GaussianSDE) or getattr(model, "predict", "") not in ("noise", "score"):
        return False
    return float(model.sde.alpha(t)) == 0


def cause_of_loss(model: ScoreModel, x: Tensor | None, span: tuple[float, float]) -> str:
    """What may be why samples left the finite numbers."""
    if x is not None and not bool(torch.isfinite(x).all()):
        return "the states to start from are not finite"
    weights = {name: p for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())}
    if weights:
        return f"the weights {next(iter(weights))} are not finite"
    if blind(model, max(span)):
        return f"alpha is 0 at t={max(span)}, where {model.predict} prediction knows nothing of x_0; start later by t_start="
    return "the network, or steps that are too long for it"


def _check_rows(n: int, event: tuple[int, ...], *holders: Any) -> None:
    for holder in holders:
        count = held(holder, 1 + len(event))
        if count not in (None, n):
            raise ValueError(
                f"n={n}: {type(holder).__name__} holds conditions for {count} samples; give one row, or n rows"
            )


def _span(sde: GaussianSDE, t_start: float | None, t_min: float | None, grid: Grid, states: Any) -> tuple[float, float]:
    """Times of start and end; those of a grid that is given as a tensor. A prior that is only named stands at T."""
    from_prior = isinstance(states, str)
    start, end = sde.T if t_start is None else float(t_start), sde.t_min if t_min is None else float(t_min)
    if start < sde.T and from_prior:
        raise ValueError(
            f"t_start={start} is before T={sde.T}: give the states there as x_init=, or their law as prior="
        )
    if not 0 <= end < start <= sde.T:
        raise ValueError(f"times must obey 0 <= t_min < t_start <= {sde.T}, not t_min={end}, t_start={start}")
    if grid is None or isinstance(grid, str) or callable(grid):
        return start, end
    times = as_grid(grid, sde.T)
    first, last = float(times[0]), float(times[-1])
    if last > first:
        raise ValueError(f"grid rises from {first} to {last}: sampling goes down in time; sf.encode goes up")
    if t_start is not None and abs(first - start) > 1e-6 * sde.T:
        raise ValueError(f"grid starts at {first}, not at t_start={start}")
    if from_prior and abs(first - sde.T) > 1e-6 * sde.T:
        raise ValueError(
            f"grid starts at {first}, before T={sde.T}: give the states there as x_init=, or their law as prior="
        )
    return first, last


def _event_shape(model: ScoreModel, shape: Sequence[int] | None, x_init: Tensor | None, n: int) -> tuple[int, ...]:
    if x_init is not None:
        if x_init.shape[0] != n:
            raise ValueError(f"x_init has {x_init.shape[0]} rows for n={n} samples")
        shape = x_init.shape[1:]
    event = shape if shape is not None else model.shape
    if event is None:
        raise ValueError("the model does not know its event shape; give shape=, such as shape=(3, 32, 32)")
    if len(event) == 0:
        raise ValueError("the event shape is (): give at least one dimension, such as (1,) for numbers")
    return tuple(event)


def resolve_prior(
    model: ScoreModel, prior: PriorLike | Tensor | str, shape: tuple[int, ...], end: float | None = None
) -> PriorLike:
    """The prior that a user named, or the object itself; a mixture stands for its own law at `end` (T by default), a tensor
    for a sample of it.
    """
    if isinstance(prior, str) and prior == "nominal":
        return model.sde.prior(shape)
    if isinstance(prior, str) and prior == "exact":
        return model.exact_prior()
    if isinstance(prior, str):
        raise ValueError(f"prior={prior!r} is unknown; choose nominal, exact or an object with draw and log_prob")
    if isinstance(prior, Tensor):
        if prior.shape[1:] != shape[1:] or len(prior) == 0:
            raise ValueError(
                f"prior has shape {tuple(prior.shape)}; give samples of x_T, (N, *), of event shape {shape[1:]}"
            )
        return SamplePrior(prior)
    if not isinstance(prior, ScoreModel) and not hasattr(prior, "draw"):
        raise ValueError(
            f"prior={prior!r}: give an object with draw(noise, dtype, device) and log_prob(x), or samples (N, *)"
        )
    if not isinstance(prior, ScoreModel):
        return prior
    if end is None or end >= prior.sde.T:
        return prior.exact_prior()
    if not hasattr(prior, "marginal"):
        raise ValueError(
            f"prior is a {type(prior).__name__}, whose law at t={end} is not known; give a GaussianMixture"
        )
    law: PriorLike = prior.marginal(end)  # type: ignore[operator]
    return law
