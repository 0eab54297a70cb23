"""The way that samples take from noise to data, and how straight, how low-dimensional and how far from memory it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.dtypes import exact
from scorefield.model import Guided, ScoreModel
from scorefield.randomness import Noise
from scorefield.sampling import sample
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Solver
from scorefield.solve.ode import Heun
from scorefield.views import View, convert


@dataclass(frozen=True)
class Trajectory:
    """States of samples on their way, in the variable x / alpha, in which every Gaussian SDE only adds noise.

    Attributes:
        x: x_t / alpha(t), (K, B, *), from noise to the end. denoised: what the solver knew of E[x_0 | x_t] in the step that
            begins there, (K, B, *); at the end, one evaluation more.
        sigma: sigma(t) / alpha(t), (K,), float64. times: (K,), float64.
        sde: the process.
    """

    x: Tensor
    denoised: Tensor
    sigma: Tensor
    times: Tensor
    sde: GaussianSDE

    def chord(self) -> Tensor:
        """Distance of every state to the straight line through its trajectory's ends, (K, B); in units of x."""
        away, along = self._from_start()
        return _length(_without(away, along))

    def bend(self) -> Tensor:
        """The largest of these distances, in units of the line's length, (B,)."""
        length = _length((exact(self.x[-1]) - exact(self.x[0])).flatten(1)[None])[0]
        return self.chord().amax(0) / length.clamp_min(1e-300)

    def components(self, k: int = 3, orthogonal: bool = True) -> Tensor:
        """Part of the variance along each trajectory that its first 1, ..., k principal components explain, (B, k).

        Main arguments:
            orthogonal: without the component along the chord, which is nearly all of it and says nothing of curvature.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: give one component or more")
        away, along = self._from_start()
        rows = (_without(away, along) if orthogonal else away).transpose(0, 1)
        values = torch.square(torch.linalg.svdvals(rows - rows.mean(1, keepdim=True)))[:, :k]
        total = torch.square(rows - rows.mean(1, keepdim=True)).sum((1, 2)).clamp_min(1e-300)
        explained = torch.cumsum(values, 1) / total[:, None]
        return torch.nn.functional.pad(explained, (0, k - explained.shape[1]), value=1.0)

    def distance(self) -> tuple[Tensor, Tensor]:
        """Distances to the end of the trajectory, of x / alpha and of E[x_0 | x], both (K, B)."""
        end = exact(self.x[-1]).flatten(1)
        return _length(exact(self.x).flatten(2) - end), _length(exact(self.denoised).flatten(2) - end)

    @torch.no_grad()
    def deviation(self, optimal: ScoreModel) -> Tensor:
        """Root mean square over entries of E[x_0 | x] against another model's along the same states, (K, B).

        Main arguments:
            optimal: an `Empirical` of the training data, which remembers all of it and nothing else: a network that
                deviates from it does not memorise; or an oracle.
        """
        rows = []
        for t, x, own in zip(self.times, self.x, self.denoised, strict=True):
            other = optimal.denoise(float(self.sde.alpha(t)) * x, t)
            rows.append(torch.square(exact(other) - exact(own)).flatten(1).mean(1).sqrt())
        return torch.stack(rows)

    def _from_start(self) -> tuple[Tensor, Tensor]:
        """States from the first, (K, B, D), and the unit vectors (B, D) from the first to the last."""
        flat = exact(self.x).flatten(2)
        way = flat[-1] - flat[0]
        return flat - flat[0], way / torch.linalg.vector_norm(way, dim=1, keepdim=True).clamp_min(1e-300)


def trajectory(
    model: ScoreModel,
    n: int,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    **rest: Any,
) -> Trajectory:
    """n trajectories of a sampler, with the denoised images of its own evaluations: none is made but one at the end.

    Main arguments:
        solver: `Heun()` by default; any that steps through a grid. steps: its own default.
        seed, rest: as in `sample`, conditions included; all n at once.

    Returns:
        A `Trajectory`. A start with alpha = 0, where x / alpha is infinite, is left out.

    Raises:
        ValueError: as `sample`; a process that is no `GaussianSDE`; batch_size, hooks, denoise or full among `rest`.
    """
    taken = {"batch_size", "hooks", "denoise", "full"} & set(rest)
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))}: trajectory decides this itself; leave it out")
    if not isinstance(model.sde, GaussianSDE):
        raise ValueError(f"trajectory needs a GaussianSDE, with alpha and sigma, not {type(model.sde).__name__}")
    chosen = Heun() if solver is None else solver
    record = _Record(model)
    steps = chosen.default_steps if steps is None and "grid" not in rest else steps
    sample(record, n, chosen, steps=steps, seed=seed, hooks=[record.mark], denoise=True, **rest)
    times = torch.tensor(record.times, dtype=torch.float64, device="cpu")
    alpha = model.sde.alpha(times)
    kept = [i for i, a in enumerate(alpha.tolist()) if a > 0]
    states = torch.stack([record.states[i] / float(alpha[i]) for i in kept])
    denoised = torch.stack([record.denoised[i] for i in kept])
    return Trajectory(states, denoised, (model.sde.sigma(times) / alpha)[kept], times[kept], model.sde)


def _without(vectors: Tensor, unit: Tensor) -> Tensor:
    """Vectors (K, B, D) without their part along unit vectors (B, D)."""
    return vectors - (vectors * unit).sum(2, keepdim=True) * unit


def _length(vectors: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(vectors, dim=2)
    return found


class _Record(Guided):
    """Keeps the state at the start of every step, and E[x_0 | x] of the first evaluation that the step makes."""

    def __init__(self, base: ScoreModel, guidance: Any = None) -> None:
        super().__init__(base, guidance)
        self.states: list[Tensor] = []
        self.denoised: list[Tensor] = []
        self.times: list[float] = []

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        value = self.base.view(name, x, t, cond)
        if len(self.denoised) < len(self.states):
            self.denoised.append(value if name == "denoise" else convert("denoise", name, value, x, t, self.sde))
        return value

    def mark(self, x: Tensor, t: Tensor, field: Any, noise: Noise) -> Tensor:
        """A hook: a step ends and the next begins."""
        self.states.append(x)
        self.times.append(float(t))
        return x

    def take(self, index: Tensor, ndim: int = 0) -> ScoreModel:
        """Itself: all samples go at once."""
        return self
