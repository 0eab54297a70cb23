"""The recipe that docs/consistency.md begins with, with the target that follows the weights and without.

    OMP_NUM_THREADS=1 python benchmarks/consistency_page.py [--seed 0]      # half a minute of one core

Two Gaussians in the plane are the teacher; 1,000 steps of 128. Printed: standard deviations of 4,000 samples in one, two and
four jumps, and those of the teacher's own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import torch

import scorefield as sf
from scorefield.consistency import Karras, Staged


def distilled(teacher: sf.GaussianMixture, follow: float | None, steps: int, seed: int) -> sf.ScoreModel:
    """The trained map, with the averaged weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = sf.nn.MLP(2, width=64, time_scale=10.0)
    fm = sf.FlowMap(net, sf.VP(), shape=(2,), sigma_data=0.6)
    loss = Staged(sf.consistency_loss, fm, teacher=teacher, pairs=Karras(18), follow=follow)
    with tempfile.TemporaryDirectory() as folder:
        rate = {"lr": 2e-3, "warmup": min(20, steps // 5), "schedule": "cosine", "ema": 0.99}
        shared = {"batch_size": 128, "seed": seed, "progress": False, "report": False}
        points = teacher.sample(4000, seed=seed)
        return sf.train(fm, points, out=folder, steps=steps, loss=loss, **rate, **shared).model  # type: ignore[arg-type]


def main() -> None:
    """Train both, print one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    teacher = sf.GaussianMixture(torch.tensor([[-0.6, 0.0], [0.6, 0.2]]), 0.04, None, sf.VP())
    print(json.dumps({"truth": [round(v, 3) for v in teacher.sample(4000, seed=77).std(0).tolist()]}))
    for follow in (0.95, None):
        begin = time.process_time()
        fm = distilled(teacher, follow, options.steps, options.seed)
        about = {"follow": follow, "cpu_seconds": round(time.process_time() - begin, 1)}
        for jumps in (1, 2, 4):
            x = sf.sample(fm, 4000, sf.Jump(), steps=jumps, seed=5)
            about[f"jumps {jumps}"] = [round(v, 3) for v in x.std(0).tolist()]
        print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main()
