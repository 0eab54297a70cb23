"""Every posterior sampler behind one call, with the solver, grid and number of steps that suit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.errors import closest
from scorefield.flowmap import FlowMap
from scorefield.inverse.ddrm import DDRM
from scorefield.inverse.measurement import Measurement, in_rows, read_measurement
from scorefield.inverse.posterior import Posterior, warn_of_misfit
from scorefield.inverse.replace import Replace, repaint
from scorefield.inverse.smc import twisted_smc
from scorefield.model import ScoreModel
from scorefield.rows import take
from scorefield.sampling import sample
from scorefield.solve.exponential import DDIM, ExponentialSDE
from scorefield.solve.integrate import Solution, Solver
from scorefield.solve.reverse import Ancestral

if TYPE_CHECKING:
    from scorefield.charts import Chart

MethodName: TypeAlias = Literal["mmps", "tmpd", "pigdm", "dps", "diffpir", "ddrm", "replace", "repaint", "smc"]
METHOD_STEPS: dict[str, int] = {
    "mmps": 50,
    "tmpd": 50,
    "pigdm": 50,
    "dps": 500,
    "diffpir": 100,
    "ddrm": 50,
    "replace": 100,
    "repaint": 50,
    "smc": 50,
}
"""The methods, and their steps unless others are asked for."""
NOISELESS = ("replace", "repaint")
"""Methods that take the measurement for exact."""
LINEAR = (*NOISELESS, "ddrm")
"""Methods that need a linear operator."""
MAP_STEPS = 20
"""Steps of replacement with a flow map, which jumps."""
JUMP, RESAMPLES = 5, 20
DPS_ZETA = 0.3
PARTICLES = 256


@dataclass(frozen=True, repr=False)
class Restored:
    """Samples of the posterior of each measurement.

    Attributes:
        samples: (M, n, *). nfe: evaluations of the model for each sample, on average.
    """

    samples: Tensor
    nfe: float

    def mean(self) -> Tensor:
        """Posterior mean of each measurement, (M, *)."""
        return self.samples.mean(1)

    def std(self) -> Tensor:
        """Posterior standard deviation of each entry, (M, *); 0 for a single sample."""
        return self.samples.std(1, correction=1 if self.samples.shape[1] > 1 else 0)

    def plot(self, interval: tuple[float, float] | None = None) -> Chart:
        """A figure of up to four posteriors: samples, mean and deviation; of signals bands (needs matplotlib)."""
        from scorefield.charts import bands, items, kind_of

        few = self.samples[:4]
        if kind_of(few.shape[2:]) == "signal":
            parts = {f"measurement {i}": x[:, 0] for i, x in enumerate(few)}
            return bands(parts, "entry of the first channel", "mean")
        groups = {f"measurement {i}": x[:9] for i, x in enumerate(few)}
        if kind_of(few.shape[2:]) == "vector":
            return items({f"measurement {i}": x for i, x in enumerate(few)})
        return items(groups | {"mean": self.mean()[:4], "deviation": self.std()[:4]}, interval)

    def __repr__(self) -> str:
        m, n, *shape = self.samples.shape
        spread = float(self.std().mean())
        return f"Restored({m} measurements, {n} samples each of {tuple(shape)}: deviation {spread:.3g}, nfe={self.nfe:.0f})"


def restore(
    model: ScoreModel,
    operator: Measurement,
    y: Tensor,
    noise: float = 0.01,
    n: int = 1,
    method: MethodName = "mmps",
    *,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **cond: Any,
) -> Restored:
    """n samples of x given y = A(x) + noise z for each of M measurements, by the method of that name.

    "mmps", "tmpd", "pigdm", "dps" (with zeta 0.3) and "diffpir" are `Posterior`, "ddrm" is `DDRM`, "replace" is `Replace`,
    "repaint" the same with 20 resamplings of stretches of 5 steps, and "smc" `twisted_smc` with at least 256 particles, from
    which n are drawn. For other settings use these themselves. Stochastic steps are taken throughout, since they forget
    the errors of earlier ones; docs/inverse.md says which method to trust when. A `FlowMap` has no score and takes "replace"
    alone, by jumps (zero-shot editing, Song et al. 2023, Alg. 4).

    Main arguments:
        operator: A, any object with a call (see `linearize`). y: (M, *), or one measurement without that axis; a tensor, an
            array or a data frame. noise: its standard deviation, in units of y.

    Other arguments:
        steps: of the sampler; `METHOD_STEPS` unless given. seed, batch_size, progress, cond: as in `sample`.

    Raises:
        ValueError: an unknown method, one that needs a linear operator or noise where there is none, a measurement of another
            shape or that is not finite.

    Warns where the samples do not explain the measurement.
    """
    _check(operator, n, method)
    jumps = isinstance(model, FlowMap)
    if jumps and method != "replace":
        raise ValueError(f"method={method!r} needs a score, and a flow map has none; use replace")
    count = (MAP_STEPS if jumps else METHOD_STEPS[method]) if steps is None else steps
    y = in_rows(operator, read_measurement(y), model.shape)
    m = y.shape[0]
    index = torch.arange(m).repeat_interleave(n)
    rows, of_rows = (
        (y[index.to(y.device)], take(operator, index, 1 + len(model.shape or ()))) if m > 1 else (y, operator)
    )
    if method == "smc":
        particles = max(PARTICLES, 4 * n)
        cloud = twisted_smc(model, operator, y, noise, particles=particles, steps=count, seed=seed, **cond)
        drawn = cloud.draw(n, seed) if m > 1 else cloud.draw(n, seed).unsqueeze(0)
        warn_of_misfit(of_rows, rows, noise, drawn.flatten(0, 1))
        return Restored(drawn, float(count + 1))
    target, solver, options = _by_sampling(model, of_rows, rows, noise, method)
    options |= {"steps": count, "seed": seed, "batch_size": batch_size, "progress": progress} | cond
    done: Solution = sample(target, m * n, solver, full=True, **options)
    if method == "ddrm" and noise > 0:
        warn_of_misfit(of_rows, rows, noise, done.x)
    return Restored(done.x.reshape(m, n, *done.x.shape[1:]), float(exact(done.nfe).mean()))


def _check(operator: Measurement, n: int, method: str) -> None:
    if method not in METHOD_STEPS:
        raise ValueError(f"method={method!r} is unknown{closest(str(method), METHOD_STEPS)}")
    if method in LINEAR and not getattr(operator, "linear", True):
        raise ValueError(f"method={method!r} needs a linear operator, not {type(operator).__name__}; use mmps or smc")
    if n < 1:
        raise ValueError(f"n={n}: at least one sample is needed")


def _by_sampling(
    model: ScoreModel, operator: Any, y: Tensor, noise: float, method: Any
) -> tuple[ScoreModel, Solver, dict[str, Any]]:
    """What a method is to `sample`: the model that it makes, the solver, and its grid and hooks."""
    options: dict[str, Any] = {"grid": "log_snr"}
    if method in NOISELESS:
        options["hooks"] = [Replace(operator, y)]
        if method == "repaint":
            options["grid"] = repaint(JUMP, RESAMPLES, "log_snr")
        return model, model.own_solver or Ancestral(), options
    if method == "ddrm":
        return model, DDRM(operator, y, noise), options
    solvers: dict[str, Solver] = {"dps": Ancestral(), "diffpir": DDIM(eta=1.0)}
    target = model | Posterior(operator, y, noise, method, zeta=DPS_ZETA if method == "dps" else None)
    return target, solvers.get(method, ExponentialSDE()), options
