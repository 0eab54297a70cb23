"""What `sf.fit` makes of vectors by itself, beside the densities that it compares with: python benchmarks/door.py --minutes 1

Each data set is fitted once from nothing; the figures are held-out nats an item in the units of the data, with the standard
error over the held-out items.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings

import numpy as np

import scorefield as sf


def planar(name: str, n: int, seed: int = 0) -> np.ndarray:
    """Points of the plane of a known law."""
    draws = np.random.default_rng(seed)
    if name == "moons":
        angle, upper = np.pi * draws.random(n), draws.random(n) < 0.5
        x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
        y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
        return np.stack([x, y], 1) + 0.07 * draws.normal(size=(n, 2))
    if name == "eight":
        angle = 2 * np.pi * draws.integers(8, size=n) / 8
        return 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.15 * draws.normal(size=(n, 2))
    if name == "rings":
        angle, radius = 2 * np.pi * draws.random(n), draws.integers(1, 4, size=n) + 0.07 * draws.normal(size=n)
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    row, column = draws.integers(4, size=n), draws.integers(2, size=n)
    return np.stack([row, 2 * column + row % 2], 1) + draws.random((n, 2))


def data_sets() -> dict[str, np.ndarray]:
    """The data sets by name; those of scikit-learn where it is installed."""
    found = {name: planar(name, 2000) for name in ("moons", "eight", "rings", "checkerboard")}
    try:
        from sklearn import datasets
    except ImportError:
        return found
    names = {
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
        "diabetes": datasets.load_diabetes,
    }
    loaded = {name: load().data for name, load in names.items()}
    loaded["diabetes"] = np.delete(loaded["diabetes"], 1, 1)  # the second column is the sex, which has no density
    return found | loaded


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of minutes, on a busy machine")
    parser.add_argument("--sets", nargs="*", default=None)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    length = {"minutes": options.minutes} if options.steps is None else {"steps": options.steps}
    print("| data | rows x entries | this door | mixture | kernels | Gaussian | steps |\n|-|-|-|-|-|-|-|")
    for name, x in data_sets().items():
        if options.sets and name not in options.sets:
            continue
        with tempfile.TemporaryDirectory() as folder:
            done = sf.fit(x.astype(np.float32), out=f"{folder}/run", device="cpu", progress=False, **length)
        assert done.judgement is not None
        mean, error, _ = done.judgement.model
        known = done.judgement.baselines
        others = " | ".join(f"{known[k]:.3f}" if k in known else "-" for k in ("mixture", "kernels", "Gaussian"))
        print(
            f"| {name} | {x.shape[0]} x {x.shape[1]} | {mean:.3f} ± {error:.3f} | {others} | {done.run.step} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
