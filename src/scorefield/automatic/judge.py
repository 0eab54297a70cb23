"""Whether a model is any good: held-out likelihood beside simple densities, the spread of its samples, and repetition."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scorefield.automatic.baselines import Density, gaussian, histograms, kernel, mixture
from scorefield.automatic.findings import SMALL, Findings
from scorefield.data.dataset import Dataset, Range, to_range
from scorefield.data.scale import Scale
from scorefield.discrete import JumpModel, bound
from scorefield.evaluation.bits import item_likelihoods, model_input
from scorefield.likelihood import levels_width
from scorefield.model import ScoreModel
from scorefield.randomness import SeedRows
from scorefield.sampling import sample
from scorefield.solve import DDIM, Dopri5, DPMSolver

ITEMS = 10_000
"""Training items that baselines are fitted to and samples are compared with, at most."""
CHUNK = 16
"""Items whose likelihood is computed at a time, until the time is over."""
CALLS = 300
"""Network calls of a likelihood, about."""
EXACT = 64
"""Entries up to which the trace is exact."""
SPREAD = (0.8, 1.25)
"""Spread of samples relative to that of data that is taken for right."""
FOREIGN = 1.5
"""The same distance above which samples are unlike the data."""
REPEATED = 0.5
"""Distance of samples from training data, relative to that of held-out data, below which they repeat it."""


@dataclass(frozen=True)
class Judgement:
    """Figures of a fitted model.

    Attributes:
        unit: of likelihoods: "nats" an item, in the units of the data (higher is better), or "bits/dim" (lower is).
        model: mean over held-out items, its standard error, and their number.
        baselines: mean by name, on the same items.
        spread: standard deviation of samples over that of the data. nearest: median distance of samples to the nearest
            training item over that of held-out items.
        warnings: what is wrong and what would help, in words.
        samples: those that were judged, in the units of the model.
    """

    unit: str
    model: tuple[float, float, int]
    baselines: Mapping[str, float]
    spread: float
    nearest: float
    warnings: tuple[str, ...]
    samples: Tensor | None = field(default=None, repr=False)

    @property
    def best_baseline(self) -> tuple[str, float]:
        """The best of the baselines."""
        choose = min if self.unit == "bits/dim" else max
        name = choose(self.baselines, key=lambda n: self.baselines[n])
        return name, self.baselines[name]

    def __str__(self) -> str:
        mean, error, count = self.model
        others = ", ".join(f"{name} {value:.3f}" for name, value in self.baselines.items())
        better = "lower" if self.unit == "bits/dim" else "higher"
        held = f"held out: {mean:.3f} ± {error:.3f} {self.unit} on {count} items ({better} is better); {others}"
        if not count:
            held = (
                "held out: no likelihood, which would take longer than there is time; scorefield likelihood computes it"
            )
        lines = [held]
        if math.isfinite(self.nearest):
            far = f"{self.nearest:.2f} times as far from training data as held-out data is"
            lines.append(f"samples: {self.spread:.2f} times the spread of the data, {far}")
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])

    def values(self) -> dict[str, Any]:
        """The figures as JSON."""
        mean, error, count = self.model
        return {
            "unit": self.unit,
            "held_out": {"value": mean, "stderr": error, "n": count} if count > 1 else None,
            "baselines": dict(self.baselines),
            "spread": self.spread,
            "nearest": self.nearest if math.isfinite(self.nearest) else None,
            "warnings": list(self.warnings),
        }


def judge(model: ScoreModel, found: Findings, seconds: float, seed: int = 0, progress: bool | None = None) -> Judgement:
    """Judge a model within about so many seconds.

    Main arguments:
        model: in eval mode. found: what it was trained on and what was held out.
    """
    interval = model.sde.range if found.data.scaled else None
    if isinstance(model, JumpModel):
        return _judge_states(model, found, seconds, seed)
    nats, index = _likelihoods(model, found.held_out, interval, seconds / 2, seed)
    few = [
        int(i)
        for i in torch.randperm(found.data.size, generator=torch.Generator().manual_seed(seed), device="cpu")[:ITEMS]
    ]
    baselines = _baselines(found, few, index, interval, seed) if index else {}
    bits = found.data.levels is not None
    unit = math.prod(found.data.shape) * math.log(2) if bits else -1.0
    values = -nats / unit
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    mean = float(values.mean()) if len(values) else math.nan
    known = {name: float((-v / unit).mean()) for name, v in baselines.items()}
    x = _samples(model, found, seconds / 2, seed, progress)
    data = to_range(found.data.read(few), found.data, model.sde.range)
    held = to_range(found.held_out.read(range(min(found.held_out.size, 500))), found.held_out, model.sde.range)
    spread = float(x.std() / data.std())
    nearest = _distance(x, data) / max(_distance(held, data), 1e-12)
    result = Judgement("bits/dim" if bits else "nats", (mean, error, len(values)), known, spread, nearest, (), x)
    return Judgement(**{**vars(result), "warnings": _warnings(model, found, result, x, data, seconds, seed)})


def _judge_states(model: JumpModel, found: Findings, seconds: float, seed: int) -> Judgement:
    """The bound on held-out rows beside columns that are independent, and the columns' own shares in samples."""
    begin, parts, done = time.monotonic(), [], 0
    while done < found.held_out.size and (not done or time.monotonic() - begin < seconds):
        rows = range(done, min(done + CHUNK, found.held_out.size))
        x = found.held_out.read(rows).to(model.device)
        parts.append(bound(model, x, 16, seed=SeedRows(seed, rows), progress=False).nats)
        done = rows.stop
    nats = torch.cat(parts)
    few = torch.randperm(found.data.size, generator=torch.Generator().manual_seed(seed), device="cpu")[:ITEMS].tolist()
    data, levels = found.data.read(few), found.data.levels or 2
    alone = float(histograms(data, levels)(found.held_out.read(range(done))).mean())
    x = sample(model, 500, seed=seed, progress=False).cpu()
    shares = [
        torch.stack([torch.bincount(column, minlength=levels) / len(rows) for column in rows.T]) for rows in (x, data)
    ]
    off = float((shares[0] - shares[1]).abs().sum(1).max()) / 2
    mean, error = float(nats.mean()), float(nats.std()) / math.sqrt(len(nats))
    warnings = []
    if mean < alone - 2 * error:
        warnings.append(
            "independent columns fit held-out rows better than the model does; train for more minutes, or on more rows"
        )
    if off > 0.15:
        warnings.append(
            f"the shares of a column's values in samples are off by {off:.2f}: the model is not good yet; train for more "
            "minutes"
        )
    spread = float(x.double().std() / data.double().std().clamp(min=1e-12))
    known = {"independent columns": alone}
    return Judgement("nats", (mean, error, len(nats)), known, spread, math.nan, tuple(warnings), x)


def _likelihoods(
    model: ScoreModel, data: Dataset, interval: Range | None, seconds: float, seed: int
) -> tuple[Tensor, list[int]]:
    """log p of held-out items in the units of the data, one chunk after the other until the time is over.

    Nothing where a single item of more than `EXACT` entries would take longer than all of the time.
    """
    begin, found, done = time.monotonic(), [], 0
    exact = math.prod(data.shape) <= EXACT
    rows = min(200 if exact else CHUNK, data.size)
    x = model_input(data, range(rows), interval, seed).to(model.device)
    if not exact:  # short vectors take seconds at most
        rows = min(rows, int(rows * seconds / (2 * CALLS * _seconds_a_call(model, x))))
    while rows and done < data.size and (not done or time.monotonic() - begin < seconds):
        index = range(done, min(done + rows, data.size))
        trace: Any = "exact" if exact else "hutchinson"
        _, nats = item_likelihoods(model, data, index, interval, seed=seed, trace=trace, solver=Dopri5(1e-4, 1e-4))
        found.append(nats.cpu().double())
        done = index.stop
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device="cpu"), list(range(done))


def _seconds_a_call(model: ScoreModel, x: Tensor) -> float:
    with torch.no_grad():
        model.denoise(x, 0.5 * model.sde.T)
        begin = time.monotonic()
        model.denoise(x, 0.5 * model.sde.T).cpu()
    return time.monotonic() - begin


def _baselines(
    found: Findings, train: list[int], held: list[int], interval: Range | None, seed: int
) -> dict[str, Tensor]:
    """log p of the held-out items under each simple density, in the units of the data."""
    data, x, y, shift = found.data, *_comparable(found, train, held, interval, seed)
    d = x.shape[1]
    shape = found.data.shape if found.kind in ("signal", "volume") else None
    densities: dict[str, Density] = {"Gaussian": gaussian(x, shape, seed)}
    if d <= SMALL:
        densities |= {"mixture": mixture(x, seed), "kernels": kernel(x)}
    result = {name: density(y) + shift for name, density in densities.items()}
    if data.levels is not None:
        counts = histograms(data.read(train).flatten(1), data.levels)
        result["pixel histogram"] = counts(found.held_out.read(held).flatten(1))
    return result


def _comparable(
    found: Findings, train: list[int], held: list[int], interval: Range | None, seed: int
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Rows (N, D) of either part in units of about 1, and what a log-density of them falls short of one of the data."""
    data, other = found.data, found.held_out
    if data.scale is not None:
        # Simple densities of vectors are those of the columns as they are, standardised, as everybody fits them.
        x, y = data.read(train), other.read(held)
        vectors = found.kind in ("vector", "table")
        scale = Scale.of_columns(x, whiten=False, straighten=False) if vectors else data.scale
        return scale.forward(x).flatten(1), scale.forward(y).flatten(1), -scale.log_volume(y)
    x, y = (model_input(d, i, interval, seed).flatten(1) for d, i in ((data, train), (other, held)))
    d = x.shape[1]
    if data.levels is not None and interval is not None:
        return x, y, -d * math.log(levels_width(data.levels, *interval))
    if data.range is not None and interval is not None:
        return x, y, d * math.log((interval[1] - interval[0]) / (data.range[1] - data.range[0]))
    return x, y, 0.0


def _samples(
    model: ScoreModel, found: Findings, seconds: float, seed: int, progress: bool | None, solver: Any = None
) -> Tensor:
    """Samples in about so many seconds, by a solver that needs no fitting."""
    n = 1000 if found.kind in ("vector", "table") else 32
    x = torch.zeros((n, *found.data.shape), device=model.device, dtype=model.dtype)
    steps = 30
    n = max(8, min(n, int(n * seconds / (steps * _seconds_a_call(model, x)))))
    cond: dict[str, Any] = {}
    if found.data.labels is not None:
        seen = found.data.labels.unique()
        cond["label"] = seen[torch.arange(n, device="cpu") % len(seen)].to(model.device)
    solver = DPMSolver(2) if solver is None else solver
    drawn: Tensor = sample(model, n, solver, steps=steps, seed=seed, progress=progress, batch_size=256, **cond)
    return drawn.cpu()


def _distance(x: Tensor, data: Tensor) -> float:
    """Median distance to the nearest item of data."""
    near = [torch.cdist(rows.flatten(1), data.to(x.dtype).flatten(1)).amin(1) for rows in x[:500].split(50)]
    return float(torch.cat(near).median())


def _warnings(
    model: ScoreModel, found: Findings, result: Judgement, x: Tensor, data: Tensor, seconds: float, seed: int
) -> tuple[str, ...]:
    told = []
    low, high = SPREAD
    if not low <= result.spread <= high:
        other = _samples(model, found, seconds / 4, seed, False, DDIM(eta=1.0))
        again = float(other.std() / data.std())
        cure = "train for more minutes"
        if low <= again <= high:
            cure = f"sample with DDIM(eta=1) (--sampler ddim:eta=1), whose spread is {again:.2f}, or {cure}"
        told.append(f"samples spread {result.spread:.2f} times as far as the data: the model is not good yet; {cure}")
    reach = float((data - data.mean()).abs().max())
    if float((x - data.mean()).abs().max()) > 3 * reach and not told:
        told.append("some samples lie far beyond the data: the model is not good yet; train for more minutes")
    if result.nearest < REPEATED:
        told.append("samples repeat training items; train for fewer minutes, or on more data")
    if result.nearest > FOREIGN and not told:
        told.append(
            f"samples are {result.nearest:.1f} times as far from the data as held-out data is: the model is not good yet; "
            "train for more minutes"
        )
    if not result.baselines:
        return tuple(told)
    name, best = result.best_baseline
    mean, error, _ = result.model
    behind = mean - best if result.unit == "bits/dim" else best - mean
    if behind > 2 * error:
        told.append(f"a {name} fits held-out data better than the model does; train for more minutes, or on more data")
    return tuple(told)
