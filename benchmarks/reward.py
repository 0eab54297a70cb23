"""Tuning by a reward: a mixture whose tilted chain is known.

    OMP_NUM_THREADS=1 python benchmarks/reward.py                   # adjoint matching; 70 seconds of one core
    OMP_NUM_THREADS=1 python benchmarks/reward.py --method dpok     # policy gradient with the KL of paths; ddpo: without

The mixture has three components, a linear reward and temperature 1.5. Its chain (DDIM(1) on a uniform angle grid, 40 steps
for adjoint matching and 20 for policy gradients) is judged by its own tilt: 100,000 samples of the base chain, weighted by
e^(r / temperature).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import scorefield as sf
from scorefield.reward import AdjointMatching, Chain, PolicyGradient, finetune, follow
from scorefield.reward.methods import Method
from scorefield.solve.integrate import Field

TEMPERATURE, SLOPE = 1.5, (1.2, -0.7)


def three() -> sf.GaussianMixture:
    """The base: rotated covariances, unequal weights."""
    c, s = math.cos(0.6), math.sin(0.6)
    q = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    first, second = (torch.diag(torch.tensor(v, dtype=torch.float64)) for v in ([0.3, 0.08], [0.15, 0.4]))
    covs = torch.stack([q @ first @ q.T, q.T @ second @ q, 0.2 * torch.eye(2, dtype=torch.float64)])
    means = torch.tensor([[-1.5, 0.5], [1.0, -0.8], [0.2, 1.7]], dtype=torch.float64)
    return sf.GaussianMixture(means, covs, [0.5, 0.3, 0.2], sf.VP())


class Controlled(nn.Module):
    """The exact noise and a network of two layers of 64, which starts at zero.

    It learns the change of the score over alpha, which is of order one at all noise levels: a change of the noise itself would
    move the first step of the chain, at sigma / alpha = 150, a hundred times more than later ones. It sees the denoised
    point beside the noisy one: what separates the components is almost a step in x, and smooth in that.
    """

    def __init__(self, base: sf.GaussianMixture) -> None:
        super().__init__()
        object.__setattr__(self, "base", base)  # not a part of what is learned or saved
        self.body = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        for p in self.body[-1].parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.to(x)[:, None] for v in (sf.VP().alpha(t), sf.VP().sigma(t)))
        noise, angle = self.base.noise(x, t), torch.atan2(sigma, alpha)
        waves = torch.cat([angle, torch.cos(2 * angle), torch.sin(2 * angle), torch.cos(4 * angle)], 1)
        seen = torch.cat([x, (x - sigma * noise) / alpha, waves], 1)
        return noise + alpha * sigma * self.body(seen)


def angle_grid(steps: int) -> Tensor:
    """Times from 1 to 1e-3, uniform in atan(sigma / alpha)."""
    sde = sf.VP()
    ends = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    high, low = torch.atan2(sde.sigma(ends), sde.alpha(ends)).tolist()
    angle = torch.linspace(high, low, steps + 1, dtype=torch.float64)
    times = sde.inverse_log_snr(-2 * torch.log(torch.tan(angle)))
    times[0], times[-1] = 1.0, 1e-3
    return times


def tilt(base: sf.GaussianMixture, chain: Chain, reward: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Mean, covariance, reward and KL of the base chain weighted by e^(r / temperature)."""
    parts = []
    for seed in range(4):
        x = sf.sample(base, 25_000, chain.solver, grid=chain.times, seed=seed, denoise=False)
        parts.append(x.double())
    x = torch.cat(parts)
    value = x @ reward
    log_w = torch.log_softmax(value / TEMPERATURE, 0)
    w = log_w.exp()
    mean = w @ x
    kl = float((w * (log_w + math.log(len(x)))).sum())
    return mean, (w[:, None] * (x - mean)).T @ (x - mean), float(w @ value), kl


@dataclass(frozen=True)
class Run:
    """A method, the steps of its chain, and how it is trained."""

    how: Method
    steps: int
    updates: int
    batch: int
    lr: float


RUNS = {
    "adjoint": Run(AdjointMatching(), 40, 240, 512, 1e-2),
    "dpok": Run(PolicyGradient(kl=True), 20, 450, 512, 1e-2),
    "ddpo": Run(PolicyGradient(kl=False), 20, 450, 512, 1e-2),
}


def mixture(name: str, seed: int) -> dict[str, object]:
    """A method on the mixture, against the tilt of its own chain."""
    begin, base, slope, run = time.process_time(), three(), torch.tensor(SLOPE), RUNS[name]
    torch.manual_seed(seed)
    model = sf.ScoreModel(Controlled(base), sf.VP(), "noise", shape=(2,))
    grid = angle_grid(run.steps)
    tuned = finetune(
        model, lambda x: x @ slope.to(x), run.how, temperature=TEMPERATURE, grid=grid, steps=run.updates,
        batch_size=run.batch, seed=seed, samples=64, lr=run.lr, schedule="cosine", ema=0.95, clip=0.0,
    )  # fmt: skip
    chain, trained = Chain(sf.DDIM(1.0), grid), time.process_time() - begin
    mean, cov, reward, kl = tilt(base, chain, slope.double())
    n, draws = 20_000, sf.randomness.source(99, 20_000)
    with torch.no_grad():
        start = torch.randn(n, 2, generator=torch.Generator().manual_seed(98))
        paths = follow(chain, Field.of(tuned.model, {}, n), Field.of(base, {}, n), start, draws)
    x = paths.states[-1].double()
    shift = mean - (x_base := sf.sample(base, n, chain.solver, grid=grid, seed=55, denoise=False).double()).mean(0)
    return {
        "method": name,
        "mean error of the shift": float((x.mean(0) - mean).norm() / shift.norm()),
        "covariance error": float((torch.cov(x.T) - cov).norm() / cov.norm()),
        "reward": float((x @ slope.double()).mean()),
        "reward of the tilt": reward,
        "reward of the base": float((x_base @ slope.double()).mean()),
        "KL by Girsanov": float(paths.step_kl.sum(0).mean()),
        "KL of the tilt": kl,
        "seconds of training": round(trained, 1),
    }


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=tuple(RUNS), default="adjoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(mixture(args.method, args.seed)), flush=True)


if __name__ == "__main__":
    main()
