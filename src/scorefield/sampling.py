"""The user's door: sample, encode, decode, slerp."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from scorefield.analytic import GaussianMixture
from scorefield.dtypes import check_real, warn_of_units
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.progress import Bar
from scorefield.randomness import Noise, NoiseFn, NoNoise, Seed, chunks, generator, source
from scorefield.rows import bound, held, take
from scorefield.solve.adaptive_sde import AdaptiveSDE
from scorefield.solve.angle import integrate_flow
from scorefield.solve.exponential import DPMSolver
from scorefield.solve.fitted import cached
from scorefield.solve.integrate import (
    STATUS,
    SUCCESS,
    Field,
    Hook,
    Path,
    Solution,
    Solver,
    Tick,
    integrate,
    integrate_adaptive,
)
from scorefield.solve.ode import Dopri5, EmbeddedRungeKutta
from scorefield.times import GridFn, GridName, sampling_grid

PILOT_SEED = 0x5C0EF1E1D
LIKELIHOOD_T_MIN = 1e-5
"""Where likelihoods and codes start (Song et al. 2021, App. C)."""


EVERY_ENTRY = Dopri5(1e-6, 1e-6, norm="max")


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
    grid: GridName | GridFn | Tensor | None = None,
    shape: Sequence[int] | None = None,
    seed: Seed = None,
    noise: NoiseFn | None = None,
    x_init: Tensor | None = None,
    t_start: float | None = None,
    t_min: float | None = None,
    denoise: bool | None = None,
    prior: PriorLike | Literal["nominal", "exact"] = "nominal",
    hooks: Sequence[Hook] = (),
    full: bool = False,
    progress: bool | None = None,
    batch_size: int | None = None,
    grad: bool = False,
    **cond: Any,
) -> Tensor | Solution:
    """n samples of a model, (n, *shape), in the dtype and on the device of `x_init`, else of the model.

    Main arguments:
        solver: by default one fitted to the model (see below); adaptive ones choose their own steps unless `steps` or
            `grid` is given.
        steps: number of steps; the solver's own default.
        seed: an int, one int for each sample, or a torch.Generator. Sample i of an int seed depends on (seed, i) alone,
            so neither batch size nor batch-mates matter; a sample with a seed of its own is sample 0 of that seed.
        batch_size: samples at a time; all at once by default.

    Without `solver`, the first call follows a few pilot trajectories with random numbers of their own, fits a grid and the
    weights of a multistep method to them (see `solve.tune`), and keeps them in `model.tuned` until a weight of the
    model changes. That costs about as much as sampling eight times the pilots, which are 8 for images and up to 512 for
    vectors; it is not part of `nfe`, and `steps` steps are `steps` evaluations. Where a fit would not be for what is asked
    (guidance, hooks, cond, t_start, t_min, grid, denoise, grad; steps outside 2 to 64) it is DPMSolver(order=2).

    Other arguments:
        grid: name, function or tensor of times (see `scorefield.times.sampling_grid`).
        shape: event shape, where the model does not know it.
        noise: callable that returns the next standard-normal tensor of the whole batch, the prior's first; not with seed.
        x_init: states at t_start, (n, *), in place of a draw from the prior.
        t_start: where to start, T by default. t_min: where to stop, `sde.t_min` by default.
        denoise: end with E[x_0 | x] (Tweedie); by default what the solver's method does (ODE solvers: no).
        prior: "nominal" N(0, sigma(T)^2 I), "exact" p_T where the model knows it, or an object with `draw`.
        hooks: functions (x, t, field, noise) -> x, called at the start and after every stage of the fixed-grid loop; if
            a hook has a method `finish(x) -> x`, it is called on the denoised result; what a
            hook or a solver holds for single samples follows them (see `scorefield.rows`).
        full: return a `Solution` with nfe, status and path.
        progress: True, False, or None for a bar on a terminal after two seconds.
        grad: keep the graph, to differentiate through the sampler.
        cond: passed to the network; tensors with n rows go with the samples.

    Raises:
        ValueError: an argument out of range, or a shape that does not fit.
    """
    if solver is not None and not isinstance(solver, Solver):
        raise ValueError(f"solver={solver!r}: give a solver object, such as sf.Heun()")
    if n < 1:
        raise ValueError(f"n={n}: at least one sample is needed")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one sample at a time is needed")
    if x_init is not None:
        model.check(x_init, "x_init")
    event = _event_shape(model, shape, x_init, n)
    sde = model.sde
    start = sde.T if t_start is None else float(t_start)
    end = sde.t_min if t_min is None else float(t_min)
    if start < sde.T and x_init is None:
        raise ValueError(f"t_start={start} is before T={sde.T}: give the states there as x_init=")
    solver, hooks = bound(solver, event), [bound(hook, event) for hook in hooks]
    for holder in (model, solver, *hooks):
        count = held(holder, 1 + len(event))
        if count not in (None, n):
            raise ValueError(
                f"n={n}: {type(holder).__name__} holds conditions for {count} samples; give one row, or n rows"
            )
    dtype = model.dtype if x_init is None else x_init.dtype
    device = model.device if x_init is None else x_init.device
    if solver is None:
        solver = DPMSolver()
        count = solver.default_steps if steps is None else steps
        plain = not (hooks or cond or grad) and grid is None and t_start is None and t_min is None and denoise is None
        # A guided model, which reads another one, is too stiff to be fitted to.
        single = held(model) is None and not isinstance(model.net, ScoreModel)
        if plain and single and 2 <= count <= 64 and device.type != "meta":
            with Bar("fitting the sampler to the model, once", progress) as bar:
                solver = cached(model, count, event, dtype, device, bar) or solver
    first = _resolve_prior(model, prior, (n, *event))
    adaptive = isinstance(solver, EmbeddedRungeKutta | AdaptiveSDE) and steps is None and grid is None
    count, where = solver.default_steps if steps is None else steps, solver.grid if grid is None else grid
    times = sampling_grid(sde, count, start, end, where)  # type: ignore[arg-type]
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if adaptive and hooks:
        raise ValueError("hooks run on the fixed grid: give steps= or grid= with an adaptive solver")
    final = solver.denoises if denoise is None else denoise
    whole = Field(model, cond, n)
    parts: list[Solution] = []
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()), Bar("sampling", progress) as bar:
        shared = x_init is None and held(model) is None and not any(whole.per_sample(v) for v in cond.values())
        if shared and not adaptive:
            field = Field(model, cond, 0)

            def ensemble(size: int) -> tuple[Tensor, Noise]:
                own = source(generator(PILOT_SEED), size)
                return first.draw(own, dtype, device), own

            solver = solver.prepare(field, ensemble, times)
        for rows, draws in chunks(seed, noise, n, batch_size or n):
            index = torch.arange(n)[rows]
            field = whole.rows(index)
            x = x_init[rows] if x_init is not None else first.draw(draws, dtype, device)
            tick = _portion(bar, rows, n)
            own = [take(hook, index, x.ndim) for hook in hooks]
            part = take(solver, index, x.ndim)
            parts.append(_run(part, field, x, times, adaptive, final, draws, own, tick, full))
    result = _join(parts)
    _warn(result.status)
    return result if full else result.x


@overload
def encode(
    model: ScoreModel, x: Tensor, solver: Solver | None = ..., *, full: Literal[True], **rest: Any
) -> Solution: ...
@overload
def encode(
    model: ScoreModel, x: Tensor, solver: Solver | None = ..., *, full: Literal[False] = ..., **rest: Any
) -> Tensor: ...
def encode(
    model: ScoreModel,
    x: Tensor,
    solver: Solver | None = None,
    *,
    t_min: float = LIKELIHOOD_T_MIN,
    full: bool = False,
    grad: bool = False,
    **cond: Any,
) -> Tensor | Solution:
    """Latent code of each sample: the probability flow from x at t_min to T (Song et al. 2021, sec. 4.3).

    Main arguments:
        x: data in the model's range, (B, *). solver: Dopri5(1e-6, 1e-6, norm="max") by default, which holds every entry to
            the tolerance: one pixel of many would be free to err, and a code is there to be decoded.

    Returns:
        Codes at T, like x; a `Solution` with full=True.
    """
    return _flow(model, x, solver or EVERY_ENTRY, t_min, model.sde.T, full, grad, cond)


@overload
def decode(
    model: ScoreModel, z: Tensor, solver: Solver | None = ..., *, full: Literal[True], **rest: Any
) -> Solution: ...
@overload
def decode(
    model: ScoreModel, z: Tensor, solver: Solver | None = ..., *, full: Literal[False] = ..., **rest: Any
) -> Tensor: ...
def decode(
    model: ScoreModel,
    z: Tensor,
    solver: Solver | None = None,
    *,
    t_min: float = LIKELIHOOD_T_MIN,
    full: bool = False,
    grad: bool = False,
    **cond: Any,
) -> Tensor | Solution:
    """The inverse of `encode`: the probability flow from z at T to t_min, without denoising."""
    return _flow(model, z, solver or EVERY_ENTRY, model.sde.T, t_min, full, grad, cond)


def slerp(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n points on the great circle from a to b, both of shape (*), ends included: (n, *). Norms are interpolated linearly."""
    u = torch.linspace(0, 1, n, dtype=torch.float64, device=a.device).reshape(-1, *[1] * a.ndim)
    x, y = a.double(), b.double()
    length_x, length_y = torch.linalg.vector_norm(x), torch.linalg.vector_norm(y)
    angle = torch.acos(((x * y).sum() / (length_x * length_y)).clamp(-1, 1))
    if not float(angle) >= 1e-6:  # also where one end is zero and the angle NaN
        return ((1 - u) * x + u * y).to(a.dtype)
    direction: Tensor = (torch.sin((1 - u) * angle) * x / length_x + torch.sin(u * angle) * y / length_y) / torch.sin(
        angle
    )
    points: Tensor = ((1 - u) * length_x + u * length_y) * direction
    return points.to(a.dtype)


def _flow(
    model: ScoreModel, x: Tensor, solver: Solver, begin: float, end: float, full: bool, grad: bool, cond: dict[str, Any]
) -> Tensor | Solution:
    check_real(x)
    if begin < end:
        warn_of_units(x, *model.sde.range)
    field = Field(model, cond, x.shape[0])
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        if isinstance(solver, EmbeddedRungeKutta):
            result = integrate_flow(solver, field, field.sde, x, begin, end)
        else:
            times = sampling_grid(model.sde, solver.default_steps, max(begin, end), min(begin, end), solver.grid)  # type: ignore[arg-type]
            path = Path(len(times) - 1)
            z, _ = integrate(solver, field, x, times if begin > end else times.flip(0), NoNoise(x.shape[0]), path=path)
            result = _solution(field, z, path)
    _warn(result.status)
    return result if full else result.x


def _run(
    solver: Solver,
    field: Field,
    x: Tensor,
    times: Tensor,
    adaptive: bool,
    final: bool,
    draws: Noise,
    hooks: Sequence[Hook],
    tick: Tick,
    full: bool,
) -> Solution:
    if adaptive:
        save = times[torch.linspace(0, len(times) - 1, 33).round().long()] if full else times[:0]
        ends = (float(times[0]), float(times[-1]))
        if isinstance(solver, AdaptiveSDE):
            result = integrate_adaptive(solver, solver.flow(field, draws), x, *ends, save, tick)
        else:
            assert isinstance(solver, EmbeddedRungeKutta)
            result = integrate_flow(solver, field, field.sde, x, *ends, save, tick)
        if not final:
            return result
        x = field.denoise(result.x, times[-1])
        path, at = (
            torch.cat([result.path, x.unsqueeze(0)]),
            torch.cat([result.times, torch.zeros(1, dtype=torch.float64)]),
        )
        return Solution(x, result.nfe + 1, result.status, path, at)
    path_log = Path(len(times) - 1)
    x, _ = integrate(solver, field, x, times, draws, hooks, path_log if full else None, tick)
    if final:
        x = field.denoise(x, times[-1])
        for hook in hooks:
            finish = getattr(hook, "finish", None)
            x = x if finish is None else finish(x)
        path_log.states.append(x)
        path_log.times.append(0.0)
    if not full:
        path_log = Path(1, states=[x], times=[0.0])
    return _solution(field, x, path_log)


def _solution(field: Field, x: Tensor, path: Path) -> Solution:
    finite = torch.isfinite(x.flatten(1)).all(1)
    status = torch.where(finite, SUCCESS, 3)
    nfe = torch.full_like(status, field.calls)
    return Solution(x, nfe, status, torch.stack(path.states), torch.tensor(path.times, dtype=torch.float64))


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


def _resolve_prior(model: ScoreModel, prior: PriorLike | str, shape: tuple[int, ...]) -> PriorLike:
    """The prior that a user named, or the object itself; a mixture stands for its own p_T."""
    if prior == "nominal":
        return model.sde.prior(shape)
    if prior == "exact":
        if not isinstance(model, GaussianMixture):
            raise ValueError("prior='exact' needs a model that knows its own p_T, such as GaussianMixture")
        return model.marginal(model.sde.T)
    if isinstance(prior, str):
        raise ValueError(f"prior={prior!r} is unknown; choose nominal, exact or an object with draw and log_prob")
    return prior.marginal(prior.sde.T) if isinstance(prior, GaussianMixture) else prior


def _portion(bar: Bar, rows: slice, n: int) -> Tick:
    return lambda fraction: bar((rows.start + fraction * (rows.stop - rows.start)) / n)


def _join(parts: list[Solution]) -> Solution:
    if len(parts) == 1:
        return parts[0]
    return Solution(
        torch.cat([p.x for p in parts]),
        torch.cat([p.nfe for p in parts]),
        torch.cat([p.status for p in parts]),
        torch.cat([p.path for p in parts], dim=1),
        parts[0].times,
    )


def _warn(status: Tensor) -> None:
    if status.is_meta:
        return
    for code, count in zip(*(v.tolist() for v in torch.unique(status, return_counts=True)), strict=True):
        if code != SUCCESS:
            warnings.warn(f"{count} of {len(status)} samples {STATUS[code]}", RuntimeWarning, stacklevel=3)
