"""What a solver is, what it is asked, what it answers, and the loop over a fixed grid."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.conditions import Where, complete, per_sample, split, with_rows
from scorefield.dtypes import exact
from scorefield.inputs import whole
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.randomness import Noise, generator, source
from scorefield.rows import take
from scorefield.sde import SDE, GaussianSDE
from scorefield.times import GridFn, GridName, sampling_grid

if TYPE_CHECKING:
    from scorefield.charts import Chart

PILOT_SEED = 0x5C0EF1E1D
"""Of the random numbers of pilots, which are never those of samples."""

SUCCESS, TOO_MANY_STEPS, STEP_TOO_SMALL, NOT_FINITE = 0, 1, 2, 3
STATUS: dict[int, str] = {
    SUCCESS: "finished",
    TOO_MANY_STEPS: "stopped after max_steps steps",
    STEP_TOO_SMALL: "stopped because the step size fell below min_step",
    NOT_FINITE: "left the finite numbers",
}

Hook: TypeAlias = "Callable[[Tensor, Tensor, Field, Noise], Tensor]"
Tick: TypeAlias = "Callable[[float], None]"
Span: TypeAlias = "tuple[float, float]"


@dataclass(frozen=True)
class Solution:
    """What a solver did.

    Attributes:
        x: final states, (B, *).
        nfe: network evaluations of each sample, (B,).
        status: 0 where the sample finished; see `STATUS` for the rest, (B,).
        path: states along the way, (K, B, *), the first being the start; at most 101 of them, evenly thinned.
        times: the times of `path`, (K,); the last is 0 where a final denoising step was taken.
    """

    x: Tensor
    nfe: Tensor
    status: Tensor
    path: Tensor
    times: Tensor

    def __repr__(self) -> str:
        mean = exact(self.nfe).mean().item()
        bad = int((self.status != SUCCESS).sum())
        return f"Solution(x={tuple(self.x.shape)}, nfe={mean:.1f} per sample, unfinished={bad})"

    def plot(self, path: bool = False) -> Chart:
        """A figure of the samples, or of the way that they took (needs matplotlib)."""
        from scorefield.charts import items, paths

        return paths(self.path, self.times) if path else items({"samples": self.x})

    @classmethod
    def joined(cls, parts: Sequence[Solution]) -> Solution:
        """That of a batch from those of its parts, which were followed one after the other."""
        if len(parts) == 1:
            return parts[0]
        x, nfe, status = (torch.cat([getattr(p, name) for p in parts]) for name in ("x", "nfe", "status"))
        return cls(x, nfe, status, torch.cat([p.path for p in parts], dim=1), parts[0].times)

    def to(self, dtype: torch.dtype) -> Solution:
        """The same with states of that dtype."""
        return self if self.x.dtype == dtype else replace(self, x=self.x.to(dtype), path=self.path.to(dtype))

    def warn(self, cause: Callable[[], str] | None = None) -> None:
        """Say how many samples did not finish, and why; `cause` knows more where they are not finite."""
        if self.status.is_meta:
            return
        for code, count in zip(*(v.tolist() for v in torch.unique(self.status, return_counts=True)), strict=True):
            if code != SUCCESS:
                text = f"{count} of {len(self.status)} samples {STATUS[code]}"
                text += f": {cause()}" if cause is not None and code == NOT_FINITE else ""
                warnings.warn(text, RuntimeWarning, stacklevel=3)


@dataclass
class Field:
    """A model with its condition filled in, which counts evaluations. This is all that a solver sees.

    What of `cond` belongs to single samples (see `scorefield.conditions`) follows them when some leave the batch.
    """

    model: ScoreModel
    cond: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    own: frozenset[Where] | None = None
    """Places of the conditions with a row for each sample; by default, of those with `size` rows."""
    calls: int = 0
    lost: Tensor | None = None
    """Samples (B,) of which the model said what is no number; for states that are integers, which cannot say it themselves."""

    integrals: ClassVar[int] = 0
    """Trailing columns of the state that are integrals of a divergence (see `likelihood.log_prob.AugmentedFlow`)."""

    def __post_init__(self) -> None:
        if self.own is None:
            self.own = with_rows(self.cond, self.size)

    @classmethod
    def of(cls, model: ScoreModel, cond: dict[str, Any], n: int, x: Tensor | None = None) -> Field:
        """A field for n samples, its conditions completed and checked.

        Main arguments:
            x: a state (1, *) to try the network with, where samples will be separated.

        Raises:
            ValueError: a condition that the network does not take.
        """
        cond = complete(model, cond, n)
        return cls(model, cond, n, None if x is None else per_sample(model, cond, x, n))

    @property
    def sde(self) -> GaussianSDE:
        """The forward process."""
        return self.model.sde

    def denoise(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t]."""
        self.calls += 1
        return self.model.denoise(x, t, **self.cond)

    def noise(self, x: Tensor, t: Time) -> Tensor:
        """E[eps | x_t]."""
        self.calls += 1
        return self.model.noise(x, t, **self.cond)

    def score(self, x: Tensor, t: Time) -> Tensor:
        """grad log p_t."""
        self.calls += 1
        return self.model.score(x, t, **self.cond)

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """dx/dt of the probability flow."""
        self.calls += 1
        return self.model.velocity(x, t, **self.cond)

    def lose(self, lost: Tensor) -> None:
        """Remember samples (B,) for which the model has no answer: their status will say so."""
        lost = lost.cpu()
        self.lost = lost if self.lost is None else self.lost | lost

    def project(self, x: Tensor) -> Tensor:
        """x where the process lives: folded back into its box, where it has walls."""
        return self.sde.project(x) if isinstance(self.sde, SDE) else x

    def take(self, index: Tensor, ndim: int = 0) -> Field:
        """The field for some of the samples."""
        own = self.own or frozenset()
        return Field(take(self.model, index, ndim), split(self.cond, index, own), len(index), own)


@dataclass(frozen=True)
class Task:
    """What is asked of a solver, before it starts.

    Attributes:
        field: the model with its condition. shape: of one sample. dtype, device: of the states.
        span: times of start and end. steps, grid: as given, None for the solver's own.
        prior: what draws the start. shared: whether one start law and one condition hold for all samples, so that pilots can
            stand for them. altered: whether something changes the way on which a fit rests: hooks, a graph to be kept, or a
            choice about the final denoising. pilots: trajectories that the solver may follow first; None for none.
    """

    field: Field
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    span: tuple[float, float]
    prior: PriorLike
    steps: int | None = None
    grid: GridName | GridFn | Tensor | None = None
    shared: bool = True
    altered: bool = False
    pilots: int | None = None

    def times(self, solver: Solver) -> Tensor | None:
        """The grid that the solver is to follow; None where it chooses its own steps."""
        return solver.plan(self.field.sde, self.span, self.steps, self.grid)

    def ensemble(self) -> tuple[Field, Tensor, Noise]:
        """A field, the states of the pilots at the start, and random numbers of their own."""
        assert self.pilots is not None
        noise = source(generator(PILOT_SEED), self.pilots)
        return Field(self.field.model, self.field.cond), self.prior.draw(noise, self.dtype, self.device), noise


class Solver(ABC):
    """One step from time t to time s. It holds no model, no device, no random state and no step index.

    Attributes:
        order: order of convergence (weak order for stochastic solvers).
        grid: name of the grid it works best on.
        default_steps: number of steps on it.
        denoises: whether a final denoising step belongs to the method.
        adapts: whether it chooses its own steps where neither steps nor a grid are given.
        gaussian: whether it needs alpha and sigma, which only a `GaussianSDE` has.
    """

    order: ClassVar[float]
    grid: ClassVar[str] = "uniform"
    default_steps: ClassVar[int] = 500
    denoises: ClassVar[bool] = True
    adapts: ClassVar[bool] = False
    gaussian: ClassVar[bool] = True

    @property
    def flow(self) -> bool:
        """Whether it follows the probability flow, upwards as well as downwards and without noise, as codes need it."""
        return False

    def stages(self, t: Tensor, s: Tensor) -> Sequence[tuple[Solver, Tensor, Tensor]]:
        """The sub-steps of a step from t to s; hooks run after each."""
        return ((self, t, s),)

    def risen(self, state: Any) -> Any:
        """What is still true of a state after fresh noise was added to x; nothing by default, and the method starts anew."""
        return None

    def check_process(self, sde: SDE) -> None:
        """Refuse a process that lacks what the step needs.

        Raises:
            ValueError: the step needs alpha and sigma, and the process has none.
        """
        if self.gaussian and isinstance(sde, SDE) and not isinstance(sde, GaussianSDE):
            raise ValueError(
                f"{type(self).__name__} needs a GaussianSDE, with alpha and sigma; for {type(sde).__name__} give one that "
                "uses drift and diffusion alone, such as sf.EulerMaruyama(), sf.Heun() or sf.Dopri5()"
            )

    def prepare(self, task: Task, tick: Tick | None = None) -> Solver:
        """The solver with whatever it fits or measures before sampling, on `task.pilots` trajectories.

        Raises:
            ValueError: pilots are given to a solver that has no use for them.
        """
        if task.pilots is not None:
            raise ValueError(
                f"pilots={task.pilots}: {type(self).__name__} measures nothing before sampling; leave it out"
            )
        return self

    def chooses(self, steps: int | None, grid: Any) -> bool:
        """Whether it chooses its own steps where these are given."""
        return self.adapts and steps is None and grid is None

    def plan(
        self,
        sde: GaussianSDE,
        span: Span,
        steps: int | None = None,
        grid: GridName | GridFn | Tensor | None = None,
    ) -> Tensor | None:
        """The grid from span[0] to span[1], in either direction; None where the solver chooses its own steps.

        Raises:
            ValueError: as `times.sampling_grid`.
        """
        if self.chooses(steps, grid):
            return None
        return self.grid_for(sde, span, steps, grid)

    def grid_for(
        self,
        sde: GaussianSDE,
        span: Span,
        steps: int | None = None,
        grid: GridName | GridFn | Tensor | None = None,
    ) -> Tensor:
        """The grid from span[0] to span[1] on which the solver works where nothing else is said."""
        count = self.default_steps if steps is None else steps
        where: Any = grid
        if where is None:
            own: Any = getattr(sde, "grid", None) if self.grid in ("log_snr", "karras") else None
            where = own or self.grid
        count = whole(count, "steps", "the number of steps")
        times = sampling_grid(sde, count, max(span), min(span), where)
        return times if bool(times[0] > times[-1]) == (span[0] > span[1]) else times.flip(0)

    def saved_times(self, sde: GaussianSDE, span: tuple[float, float]) -> Tensor:
        """Where the path of adaptive steps is recorded: 33 of the times of its grid."""
        times = self.grid_for(sde, span)
        return times[torch.linspace(0, len(times) - 1, 33, device="cpu").round().long()]

    def solve(
        self,
        field: Field,
        x: Tensor,
        span: Span,
        noise: Noise,
        *,
        grid: Tensor | None = None,
        hooks: Sequence[Hook] = (),
        save: bool = False,
        tick: Tick | None = None,
    ) -> Solution:
        """From x at span[0] to span[1].

        Main arguments:
            grid: times to step through; by default the steps that the solver chooses, or its own grid.
            save: keep the path.
        """
        if grid is None and self.adapts:
            if hooks:
                raise ValueError("hooks run on the fixed grid: give steps= or grid= with an adaptive solver")
            return self.adapted(field, x, span, noise, save, tick)
        times = self.grid_for(field.sde, span) if grid is None else grid
        path = Path(len(times) - 1)
        x, _ = integrate(self, field, x, times, noise, hooks, path if save else None, tick)
        x = self.ended(field, x, float(times[-1]), hooks)
        path.states[-1:] = [x] if save else []
        status = torch.where(torch.isfinite(x.flatten(1)).all(1), SUCCESS, NOT_FINITE)
        lost = getattr(field, "lost", None)
        if lost is not None:
            status = torch.where(lost.to(status.device), NOT_FINITE, status)
        states = torch.stack(path.states) if save else x.new_empty(0, *x.shape)
        at = torch.tensor(path.times, dtype=torch.float64, device="cpu")
        return Solution(x, torch.full_like(status, field.calls), status, states, at)

    def adapted(self, field: Field, x: Tensor, span: Span, noise: Noise, save: bool, tick: Tick | None) -> Solution:
        """`solve` in steps that it chooses, of a solver that `adapts`."""
        raise NotImplementedError

    def ended(self, field: Field, x: Tensor, t: float, hooks: Sequence[Hook]) -> Tensor:
        """The state at the end t of a grid, like x."""
        return x

    def kernel(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, like x, and standard deviation, broadcast to x, of the step: it is mean + std z, z standard normal.

        Raises:
            ValueError: the step is not of that form, or remembers earlier ones.
        """
        raise ValueError(
            f"solver={self!r} makes no Gaussian steps of one evaluation; give one that does, such as sf.DDIM(eta=1.0)"
        )

    @abstractmethod
    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        """x at time s from x at time t, and what the next step wants to remember.

        Main arguments:
            x: (B, *). t, s: float64, shape (). state: what the previous step returned, None at the start.
        """


@dataclass
class Path:
    """Keeps at most `limit` + 1 states of a trajectory of known length."""

    steps: int
    limit: int = 100
    states: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, i: int, x: Tensor, t: float) -> None:
        """Record the state after step i."""
        kept = min(self.steps, self.limit)
        if i in (0, self.steps) or (i * kept) // self.steps > ((i - 1) * kept) // self.steps:
            self.states.append(x)
            self.times.append(t)


def integrate(
    solver: Solver,
    field: Field,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    hooks: Iterable[Hook] = (),
    path: Path | None = None,
    tick: Tick | None = None,
) -> tuple[Tensor, dict[int, Any]]:
    """Fixed-grid loop: x at grid[0] to x at grid[-1], and what each stage of the solver remembers at the end.

    Where a falling grid rises in between, the sample is noised by the forward transition, which makes resampling
    (RePaint) and Restart a matter of the grid. A grid that ends above its start is followed by the solver itself.
    """
    hooks = tuple(hooks)
    falling = bool(grid[-1] < grid[0])
    states: dict[int, Any] = {}
    risen = False
    for hook in hooks:
        x = hook(x, grid[0], field, noise)
    if path is not None:
        path.add(0, x, float(grid[0]))
    for i in range(len(grid) - 1):
        t, s = grid[i], grid[i + 1]
        rise = falling and bool(s > t)
        if rise:
            x = field.sde.noised(x, t, s, noise)
        for k, (stage, a, b) in enumerate(() if rise else solver.stages(t, s)):
            state = stage.risen(states.get(k)) if risen else states.get(k)
            x, states[k] = stage.step(field, x, a, b, state, noise)
            x = field.project(x)
            for hook in hooks:
                x = hook(x, b, field, noise)
        risen = rise
        if path is not None:
            path.add(i + 1, x, float(s))
        if tick is not None:
            tick((i + 1) / (len(grid) - 1))
    return x, states
