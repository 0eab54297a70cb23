"""Signals (1, 1000) and volumes 16^3 of known laws: what `sf.fit` makes of them by itself, beside fresh draws of the law.

    python benchmarks/signals.py --minutes 5 [--laws process,chirps,volumes]

Laws: a Gaussian process on a circle with covariance exp(-d^2 / 2 l^2), l = 20 of 1,000 entries; chirps that rise or fall by
chance, of random phase, in noise of 0.05; volumes of a Gaussian process with l = 2. 2,000 items are given. As many samples as
fresh draws are compared: their spread; the power in those of 20 bands of frequency that hold a thousandth of it or more, as
the largest difference in standard errors of the two means; the share of the power in the other bands; and the entries
themselves, one of each item, by the Kolmogorov-Smirnov distance (95 % bound 1.36 sqrt(2 / n)).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable

import numpy as np

import scorefield as sf

LENGTH, SIDE, ITEMS, BANDS, HELD = 1000, 16, 2000, 20, 1e-3


def circle(n: int, width: float) -> np.ndarray:
    """Eigenvalues (n,) of the covariance exp(-d^2 / 2 width^2) on a circle of n."""
    d = np.minimum(np.arange(n), n - np.arange(n))
    return np.fft.fft(np.exp(-0.5 * (d / width) ** 2)).real.clip(min=0)


def process(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the Gaussian process, (n, 1, LENGTH)."""
    spectrum = np.fft.fft(rng.normal(size=(n, LENGTH))) * np.sqrt(circle(LENGTH, 20.0))
    return np.fft.ifft(spectrum).real[:, None]


def chirps(n: int, rng: np.random.Generator) -> np.ndarray:
    """Chirps from 5 to 30 cycles or back, (n, 1, LENGTH)."""
    t, phase = np.linspace(0, 1, LENGTH), 2 * np.pi * rng.random((n, 1))
    slope = np.where(rng.random((n, 1)) < 0.5, 25.0, -25.0)
    start = np.where(slope > 0, 5.0, 30.0)
    wave = np.sin(2 * np.pi * (start * t + 0.5 * slope * t**2) + phase)
    return (wave + 0.05 * rng.normal(size=(n, LENGTH)))[:, None]


def volumes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of the Gaussian process in three dimensions, (n, 1, SIDE, SIDE, SIDE)."""
    one = circle(SIDE, 2.0)
    power = one[:, None, None] * one[None, :, None] * one[None, None, :]
    spectrum = np.fft.fftn(rng.normal(size=(n, SIDE, SIDE, SIDE)), axes=(1, 2, 3)) * np.sqrt(power)
    return np.fft.ifftn(spectrum, axes=(1, 2, 3)).real[:, None]


LAWS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "process": process,
    "chirps": chirps,
    "volumes": volumes,
}


def band_powers(x: np.ndarray) -> np.ndarray:
    """Power of each item in bands of the length of the frequency, (N, BANDS), those that hold any."""
    axes = tuple(range(2, x.ndim))
    power = np.abs(np.fft.fftn(x, axes=axes)) ** 2
    each = np.meshgrid(*(np.fft.fftfreq(s) * s for s in x.shape[2:]), indexing="ij")
    radius = np.sqrt(sum(f**2 for f in each)).ravel()
    edges = np.unique(
        np.quantile(radius[radius <= radius.max() * (0.1 if x.ndim == 3 else 0.5)], np.linspace(0, 1, 21))
    )
    place = np.digitize(radius, edges)
    flat = power.reshape(len(x), -1)
    return np.stack([flat[:, place == k].sum(1) for k in np.unique(place)[:BANDS]], 1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of numbers."""
    both = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), both, side="right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def compare(x: np.ndarray, fresh: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Relative spread, largest difference of band powers in standard errors, share beyond, distance of the marginals."""
    p, q = band_powers(x), band_powers(fresh)
    held = q.mean(0) >= HELD * q.mean(0).sum()
    beyond = float(p[:, ~held].mean(0).sum() / p.mean(0).sum())
    p, q = p[:, held], q[:, held]
    error = np.sqrt(p.var(0, ddof=1) / len(p) + q.var(0, ddof=1) / len(q))
    a, b = (y.reshape(len(y), -1) for y in (x, fresh))
    one = [y[np.arange(len(y)), rng.integers(y.shape[1], size=len(y))] for y in (a, b)]
    worst = float(np.abs((p.mean(0) - q.mean(0)) / error).max())
    return float(x.std() / fresh.std()), worst, beyond, distance(*one)


def main() -> None:
    """Print a row for each law; the first one compares two sets of fresh draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", default=",".join(LAWS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of minutes, on a busy machine")
    parser.add_argument("--samples", type=int, default=256)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    n = options.samples
    heads = (
        "law",
        "what",
        "spread",
        "largest difference of band powers",
        "power in other bands",
        "of marginals",
        "bound",
    )
    print("| " + " | ".join(heads) + " | steps |\n" + "|-" * 8 + "|")
    for name in options.laws.split(","):
        rng, law = np.random.default_rng(0), LAWS[name]
        length = {"minutes": options.minutes} if options.steps is None else {"steps": options.steps}
        data, fresh, again = law(ITEMS, rng), law(n, rng), law(n, rng)
        with tempfile.TemporaryDirectory() as folder:
            done = sf.fit(data.astype(np.float32), out=f"{folder}/run", device="cpu", progress=False, **length)
            x = done.sample(n, seed=0, batch_size=64, progress=False).double().numpy()
        cut = [slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(data.shape[2:], x.shape[2:], strict=True)]
        fresh, again = (y[(slice(None), slice(None), *cut)] for y in (fresh, again))
        for what, y in (("fresh draws", again), ("samples", x)):
            spread, power, beyond, marginal = compare(y, fresh, np.random.default_rng(1))
            figures = f"{spread:.3f} | {power:.1f} | {beyond:.1e} | {marginal:.3f} | {1.36 * np.sqrt(2 / n):.3f}"
            print(f"| {name} | {what} | {figures} | {done.run.step} |", flush=True)
        for warning in done.judgement.warnings if done.judgement else ():
            print(f"warning: {warning}", flush=True)


if __name__ == "__main__":
    main()
