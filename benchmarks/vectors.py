"""Held-out nats of `sf.fit` or ScoreDensity beside a tuned KernelDensity, a BIC-chosen GaussianMixture and a full Gaussian.

    python benchmarks/vectors.py [--door] [--sets moons,wine] [--splits 5] [--minutes 2]

Means over random splits (a fifth held out) with standard errors, in nats a row and in the units of each table. The peers see
standardised columns; the density is taken back to the table's units. The counts of the digits get uniform noise of one unit,
since a density of discrete values has no bound.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np
from sklearn import datasets
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KernelDensity

import scorefield as sf
from scorefield.solve import Dopri5

Array = np.ndarray
N = 1250
PEERS = ("Gaussian", "KernelDensity", "GaussianMixture")


def eight(rng: np.random.Generator) -> Array:
    """Eight Gaussians on a circle."""
    angle = rng.integers(8, size=N) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * rng.normal(size=(N, 2))


def rings(rng: np.random.Generator) -> Array:
    """Three noisy circles."""
    radius, angle = rng.integers(1, 4, N), rng.uniform(0, 2 * np.pi, N)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + 0.08 * rng.normal(size=(N, 2))


def checkerboard(rng: np.random.Generator) -> Array:
    """Every other square of a board of four by four."""
    x = rng.uniform(-2, 2, N)
    return np.stack([x, rng.uniform(size=N) + 2 * rng.integers(-1, 1, N) + np.floor(x) % 2], 1)


def table(rng: np.random.Generator) -> Array:
    """Thirty columns driven by five hidden ones, straight and bent, a third of them skewed."""
    hidden, noise = rng.normal(size=(2000, 5)), rng.normal(size=(2000, 30))
    x = hidden @ rng.normal(size=(5, 30)) + 0.5 * np.sin(2 * hidden @ rng.normal(size=(5, 30))) + 0.3 * noise
    x[:, :10] = np.exp(0.4 * x[:, :10])
    return x


SETS: dict[str, Callable[[np.random.Generator], Array]] = {
    "moons": lambda rng: datasets.make_moons(N, noise=0.1, random_state=int(rng.integers(2**31)))[0],
    "eight": eight,
    "rings": rings,
    "checkerboard": checkerboard,
    "wine": lambda rng: datasets.load_wine().data,
    "cancer": lambda rng: datasets.load_breast_cancer().data,
    "diabetes": lambda rng: datasets.load_diabetes().data[:, [0, *range(2, 10)]],  # the second column is the sex
    "digits": lambda rng: datasets.load_digits().data + rng.uniform(size=(1797, 64)),
    "table": table,
}


def peers(train: Array, test: Array) -> list[float]:
    """Mean held-out nats of PEERS."""
    centre, scale = train.mean(0), train.std(0)
    a, b = (train - centre) / scale, (test - centre) / scale
    folds = KFold(5, shuffle=True, random_state=0)
    kernel = GridSearchCV(KernelDensity(), {"bandwidth": np.logspace(-1.7, 0.3, 13)}, cv=folds).fit(a)
    sizes = [(k, kind) for k in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 30) for kind in ("full", "diag", "tied")]
    made = (
        GaussianMixture(k, covariance_type=kind, reg_covar=1e-3, random_state=0) for k, kind in sizes if 4 * k < len(a)
    )
    best = min((m.fit(a) for m in made), key=lambda m: m.bic(a))
    gaussian = GaussianMixture(1, reg_covar=1e-6).fit(a)
    return [v - float(np.log(scale).sum()) for v in (gaussian.score(b), kernel.score(b) / len(b), best.score(b))]


def by_density(train: Array, test: Array, split: int, minutes: float, steps: int | None) -> tuple[float, float]:
    """Mean held-out nats of ScoreDensity, and what networks or kernels gained of it."""
    density = sf.ScoreDensity(minutes=minutes, steps=steps or 2000, random_state=split).fit(train)
    return density.score(test), density.gain_


def by_door(train: Array, test: Array, split: int, minutes: float, steps: int | None) -> tuple[float, float]:
    """Mean held-out nats of what `sf.fit` makes by itself, and its steps."""
    length: dict[str, float | int] = {"minutes": minutes} if steps is None else {"steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        done = sf.fit(train, out=f"{folder}/run", seed=split, device="cpu", judged=False, progress=False, **length)
        lp = done.log_prob(test, trace="exact", solver=Dopri5(1e-4, 1e-4), progress=False)
    return float(lp.nats.mean()), done.run.step


def main() -> None:
    """Print the table, a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of minutes, on a busy machine")
    parser.add_argument("--door", action="store_true", help="sf.fit, in place of ScoreDensity")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ours, shown = (
        (by_door, ("sf.fit", "steps")) if options.door else (by_density, ("ScoreDensity", "of it by networks"))
    )
    print("| data | rows x columns | " + " | ".join([*PEERS, *shown, "s a fit"]) + " |")
    print("|" + "---|" * 8)
    for name in options.sets.split(","):
        rows, seconds = [], []
        for split in range(options.splits):
            rng = np.random.default_rng(split)
            x = SETS[name](rng)
            order = rng.permutation(len(x))
            test, train = x[order[: len(x) // 5]], x[order[len(x) // 5 :]]
            begin = time.monotonic()
            made = ours(train, test, split, options.minutes, options.steps)
            seconds.append(time.monotonic() - begin)
            rows.append([*peers(train, test), *made])
        found = np.array(rows)
        errors = found.std(0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else np.full(found.shape[1], np.nan)
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(found.mean(0), errors, strict=True)]
        size = f"{len(train)} x {x.shape[1]}"
        print(f"| {name} | {size} | " + " | ".join(cells) + f" | {np.mean(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
