"""Deep solvers of backward SDEs: a linear one, and a score's flow and reverse drivers, where one works and one does not.

    OMP_NUM_THREADS=1 python benchmarks/bsde.py          # twenty seconds

Each is held against the fixed point of its own explicit scheme with as many steps, which differs from the continuum by
order h; a target that is not random has Z = 0, and there the fixed point is the recursion y <- y - h F backward in
time.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from torch import Tensor

import scorefield as sf
from scorefield.errors import ScorefieldWarning


def two_modes() -> sf.GaussianMixture:
    """Under VE(0.01, 3)."""
    means = torch.tensor([[-1.0, -0.5], [1.0, 0.7]], dtype=torch.float64)
    return sf.GaussianMixture(means, torch.tensor([0.2, 0.3], dtype=torch.float64), [0.4, 0.6], sf.VE(0.01, 3.0))


def scores(kind: str, steps: int, train_steps: int, seed: int) -> dict[str, object]:
    """The driver of a score with the fixed target (1.2, 0.3)."""
    model, begin = two_modes(), time.process_time()
    driver = sf.bsde.score_driver(model, kind)

    def target(w: Tensor) -> Tensor:
        return torch.tensor([1.2, 0.3], dtype=torch.float64).expand(len(w), -1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScorefieldWarning)  # it says that this is sf.encode
        exact = sf.bsde.solve(driver, target, steps=steps, paths=2, degree=0)
        deep = sf.bsde.solve(
            driver, target, noise_dim=2, steps=steps, paths=64, method="deep", train_steps=train_steps, lr=0.05,
            seed=seed, progress=False,
        )  # fmt: skip
    return {
        "driver": kind,
        "y0": [round(v, 4) for v in deep.y0.tolist()],
        "scheme": [round(v, 4) for v in exact.y0.tolist()],
        "miss": round(deep.miss, 5),
        "encode": [round(v, 4) for v in sf.encode(model, target(torch.zeros(1, 1)))[0].tolist()],
        "seconds": round(time.process_time() - begin, 1),
    }


def linear(train_steps: int, seed: int) -> dict[str, object]:
    """F = Y / 2 - 0.4 Z, target 0.8 + 0.6 W; the scheme of 20 steps has Y_0 = 0.92917114."""
    begin = time.process_time()
    found = sf.bsde.solve(
        lambda t, y, z: 0.5 * y - 0.4 * z[:, :, 0], lambda w: 0.8 + 0.6 * w, steps=20, paths=256, method="deep",
        train_steps=train_steps, seed=seed, progress=False,
    )  # fmt: skip
    h = 1 / 20
    exact = 0.6 / (1 - 0.5 * h) ** torch.arange(19, -1, -1, dtype=torch.float64)
    return {
        "driver": "linear",
        "y0": round(float(found.y0), 5),
        "scheme": 0.92917,
        "largest error of Z": round(float((found.z.mean(1)[:, 0, 0] / exact - 1).abs().max()), 4),
        "miss": round(found.miss, 5),
        "seconds": round(time.process_time() - begin, 1),
    }


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    print(json.dumps(linear(600, seed)), flush=True)
    for kind in ("flow", "reverse"):
        print(json.dumps(scores(kind, 40, 300, seed)), flush=True)


if __name__ == "__main__":
    main()
