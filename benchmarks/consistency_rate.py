"""How far samples of consistency models are from the truth when n points are known: the oracle's slope, the floor of training.

    OMP_NUM_THREADS=1 python benchmarks/consistency_rate.py                    # 50 and 200 points; two minutes of one core
    OMP_NUM_THREADS=1 python benchmarks/consistency_rate.py --sizes 100 400 [--seed 0]

One dimension, .3 N(-.6, .15^2) + .7 N(.4, .25^2). The exact map of the empirical law of n points gives these points back,
blurred by the end of the flow, so that its W1 to the truth is W1(P_n, P), whose mean is J / n^{1/2} with
J = (2 / pi)^{1/2} int (F (1 - F))^{1/2}. A trained map adds a floor of its own: here a small one is distilled from the exact
score of the n points (TrigFlow), another is trained on the n points alone. `bar` is W1(P_n, P) + 0.05.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from consistency import EDM, student
from torch import Tensor

import scorefield as sf
from scorefield.consistency import Curriculum, consistency_loss, scm_loss
from scorefield.evaluation.distances import wasserstein_1d
from scorefield.minimize import minimize

MEANS, STDS, WEIGHTS = (-0.6, 0.4), (0.15, 0.25), (0.3, 0.7)
BATCH, FLOOR = 256, 0.05
GRID = torch.linspace(-2.5, 2.5, 20_001, dtype=torch.float64)


def distribution() -> Tensor:
    """F on the grid."""
    return sum(w * torch.special.ndtr((GRID - m) / s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))  # type: ignore[return-value]


def draw(n: int, seed: int) -> Tensor:
    """n points, (n, 1)."""
    law = sf.GaussianMixture(torch.tensor(MEANS)[:, None], torch.tensor(STDS).square(), WEIGHTS, EDM())
    return law.sample(n, seed=seed)


def to_truth(x: Tensor) -> float:
    """W1 between a sample and the law: the area between their distribution functions."""
    below = torch.searchsorted(x.flatten().double().sort().values, GRID, right=True) / x.numel()
    return float((below - distribution()).abs().sum()) * float(GRID[1] - GRID[0])


def oracle(seed: int, repeats: int = 20) -> dict[str, object]:
    """Mean W1(P_n, P) and its slope in n, and how far the exact map of 100 points is from these points."""
    f = distribution()
    j = math.sqrt(2 / math.pi) * float(torch.sqrt((f * (1 - f)).clamp_min(0)).sum()) * float(GRID[1] - GRID[0])
    sizes = (100, 316, 1000, 3162, 10_000)
    means = [sum(to_truth(draw(n, 1000 * seed + i)) for i in range(repeats)) / repeats for n in sizes]
    logs = torch.tensor([[math.log(n), math.log(m)] for n, m in zip(sizes, means, strict=True)])
    centred = logs - logs.mean(0)
    points = draw(100, seed)
    model = sf.Empirical(points, EDM())
    jumped = sf.sample(model, 2000, sf.Dopri5(1e-6, 1e-6), seed=seed, denoise=False, progress=False)
    return {
        "J": j,
        "w1": dict(zip(sizes, (round(m, 4) for m in means), strict=True)),
        "expected": {n: round(j / math.sqrt(n), 4) for n in sizes},
        "slope": float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum()),
        "exact_map_to_its_points": wasserstein_1d(jumped, points, 1.0),
    }


def distilled(points: Tensor, steps: int, seed: int) -> sf.FlowMap:
    """By the exact score of the points."""
    teacher, draws, fm = (
        sf.Empirical(points, EDM()),
        torch.Generator().manual_seed(seed),
        student("trig", seed, size=1, depth=2),
    )

    def loss(step: int) -> Tensor:
        x0 = points[torch.randint(len(points), (BATCH,), generator=draws)]
        return scm_loss(fm, x0, teacher=teacher, warmup=min(1.0, 3 * step / steps), c=1.0, seed=draws).mean()

    minimize(loss, fm.parameters(), steps, lr=2e-3, average=0.998, progress=False)
    return fm.eval()


def alone(points: Tensor, steps: int, seed: int) -> sf.FlowMap:
    """By the points, without a teacher."""
    draws, fm, pairs = (
        torch.Generator().manual_seed(seed),
        student("consistency", seed, size=1, depth=2),
        Curriculum(10, 160, total=steps),
    )

    def loss(step: int) -> Tensor:
        x0 = points[torch.randint(len(points), (BATCH,), generator=draws)]
        return consistency_loss(fm, x0, pairs=pairs, huber=0.03, step=step, seed=draws).mean()

    minimize(loss, fm.parameters(), steps, lr=2e-3, average=0.998, progress=False)
    return fm.eval()


def main() -> None:
    """Print the oracle, then a line of JSON for each number of points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--steps", type=int, default=800, help="of distillation")
    parser.add_argument("--steps-alone", type=int, default=3000, help="of training without a teacher")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(oracle(options.seed)), flush=True)
    for n in options.sizes:
        begin, points = time.process_time(), draw(n, options.seed + n)
        known = to_truth(points)
        figures = {"n": n, "w1_of_the_points": known, "bar": known + FLOOR}
        for name, recipe, steps in (("distilled", distilled, options.steps), ("alone", alone, options.steps_alone)):
            fm = recipe(points, steps, options.seed)
            figures[name] = to_truth(sf.sample(fm, 20_000, sf.Jump(), steps=1, seed=options.seed + 1))
        figures["cpu_seconds"] = time.process_time() - begin
        print(json.dumps({k: round(v, 4) for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
