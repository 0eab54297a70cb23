"""Small trained flow maps beside the exact one: consistency distillation, TrigFlow distillation and training from data alone.

    OMP_NUM_THREADS=1 python benchmarks/consistency.py --runs cd [--seed 0]      # scm, ct: 90 seconds of one core each

A mixture of three Gaussians in the plane, a perceptron of three layers of 128, batches of 256. The exact map is the mixture's
own probability flow (Dopri5). Printed: sliced W2 of one jump and of two, in units of the data's standard deviation, beside that
of two sets of true samples; and the root mean square distance to the exact map, in the same units.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

import scorefield as sf
from scorefield.consistency import Curriculum, Karras, consistency_loss, scm_loss
from scorefield.evaluation.distances import sliced_w2
from scorefield.minimize import minimize

BATCH, WIDTH = 256, 128
BARS = {"cd": 0.06, "scm": 0.04, "ct": 0.16}
"""Of the sliced W2 of one jump."""
TAUS = (0.3, 0.82)
"""Noise levels between two jumps; the better one is printed."""


class EDM(sf.GaussianSDE):
    """The process of Karras et al. 2022: alpha = 1, sigma = t on [0, 80]."""

    T = 80.0
    t_min = 0.002

    def alpha(self, t):
        return 1 + 0 * t

    def sigma(self, t):
        return t


def target_law() -> sf.GaussianMixture:
    """Three Gaussians that are neither round nor alike; standard deviation about 0.5 in each direction."""
    means = torch.tensor([[-0.6, -0.3], [0.5, 0.45], [0.3, -0.6]])
    covs = torch.tensor([[[0.03, 0.015], [0.015, 0.02]], [[0.01, 0.0], [0.0, 0.04]], [[0.02, -0.01], [-0.01, 0.02]]])
    return sf.GaussianMixture(means, covs, [0.4, 0.35, 0.25], EDM())


def student(kind: str, seed: int, size: int = 2, depth: int = 3) -> sf.FlowMap:
    """A fresh map of vectors; its clock is 1/4 log(sigma), or an angle."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = sf.nn.MLP(size, width=WIDTH, depth=depth, time_scale=10.0)
    return sf.FlowMap(net, EDM(), kind, shape=(size,), sigma_data=0.5)  # type: ignore[arg-type]


def trained(name: str, law: sf.GaussianMixture, seed: int, share: float) -> sf.FlowMap:
    """One of the recipes, on its number of steps times `share`."""
    draws = torch.Generator().manual_seed(seed)
    fm = student("trig" if name == "scm" else "consistency", seed)
    follower = copy.deepcopy(fm)

    def data(step: int) -> Tensor:
        return law.sample(BATCH, seed=1_000_000 * (seed + 1) + step)

    def distilled(step: int) -> Tensor:
        with torch.no_grad():  # the target is a running average (Song et al. 2023, sec. 5.1)
            torch._foreach_lerp_(list(follower.parameters()), list(fm.parameters()), 0.05)
        options = {"pairs": Karras(40), "distance": "l2", "target": follower}
        return consistency_loss(fm, data(step), teacher=law, seed=draws, **options).mean()

    def continuous(step: int) -> Tensor:
        return scm_loss(fm, data(step), teacher=law, warmup=min(1.0, step / 1000), c=1.0, seed=draws).mean()

    def alone(step: int) -> Tensor:
        pairs = Curriculum(10, 160, total=steps)
        return consistency_loss(fm, data(step), pairs=pairs, huber=0.03, step=step, seed=draws).mean()

    recipes: dict[str, tuple[Callable[[int], Tensor], int]] = {
        "cd": (distilled, 4000),
        "scm": (continuous, 3000),
        "ct": (alone, 4000),
    }
    loss, most = recipes[name]
    steps = max(10, round(share * most))
    minimize(loss, fm.parameters(), steps, lr=1e-3, average=0.999, progress=False, name=name)
    return fm.eval()


def judged(fm: sf.FlowMap, law: sf.GaussianMixture, n: int, seed: int) -> dict[str, float]:
    """Figures of a map against the law and its exact flow."""
    truth, other = law.sample(n, seed=seed + 7), law.sample(n, seed=seed + 8)
    spread = float(truth.std(0).square().mean().sqrt())
    start = 80 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 9))
    one = sf.sample(fm, n, sf.Jump(), steps=1, x_init=start)
    few = min(n, 1000)
    exact = sf.sample(law, few, sf.Dopri5(1e-6, 1e-6), x_init=start[:few], denoise=False, progress=False)
    two = [
        sliced_w2(sf.sample(fm, n, sf.Jump(), grid=torch.tensor([80.0, tau, fm.end]), x_init=start, seed=seed), truth)
        for tau in TAUS
    ]
    return {
        "one": sliced_w2(one, truth) / spread,
        "two": min(two) / spread,
        "floor": sliced_w2(other, truth) / spread,
        "to_exact": float((one[:few] - exact).square().mean().sqrt()) / spread,
    }


def main() -> None:
    """Train, judge, print one line of JSON for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=BARS, default=list(BARS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each recipe, to try it out")
    options = parser.parse_args()
    law = target_law()
    for name in options.runs:
        begin = time.process_time()
        fm = trained(name, law, options.seed, options.share)
        figures = judged(fm, law, options.samples, options.seed)
        about = {"run": name, "cpu_seconds": round(time.process_time() - begin, 1), "bar": BARS[name]}
        print(json.dumps(about | {k: round(v, 4) for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
