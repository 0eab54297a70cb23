"""A network on top of a score from moments (Shen et al. 2024, arXiv 2406.09084): where it helps, and where it does not.

    OMP_NUM_THREADS=1 python benchmarks/polynomial.py           # two modes, then eight on a ring; 40 seconds

Figures are the excess E sigma^2 |s_hat - s|^2 of the loss over that of the exact score, on 20,000 pairs (x_t, t) that no
training sees. The networks are the same; "plain" has no model below it.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from torch import Tensor, nn

import scorefield as sf

BATCH, RATE, HELD_OUT = 256, 2e-3, 20_000


class Net(nn.Module):
    """(x, nine features of the log-SNR) -> width -> width -> x; the last layer starts at zero."""

    def __init__(self, sde: sf.GaussianSDE, width: int) -> None:
        super().__init__()
        self.sde = sde
        self.body = nn.Sequential(
            nn.Linear(11, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        for p in self.body[-1].parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        clock = (self.sde.log_snr(t) / 8).to(x.dtype)[:, None]
        waves = clock * torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=x.dtype)
        return self.body(torch.cat([x, clock, waves.sin(), waves.cos()], 1))


def two_modes() -> sf.GaussianMixture:
    """0.3 N((-1.2, -0.3), 0.3^2 I) + 0.7 N((0.8, 0.5), 0.5^2 I)."""
    means = torch.tensor([[-1.2, -0.3], [0.8, 0.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, torch.tensor([0.09, 0.25], dtype=torch.float64), [0.3, 0.7], sf.VP())


def ring() -> sf.GaussianMixture:
    """Eight Gaussians of deviation 0.15 on a circle of radius 1.5."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return sf.GaussianMixture(1.5 * torch.stack([angle.cos(), angle.sin()], 1), 0.15**2, None, sf.VP())


def excess(model: sf.ScoreModel, gm: sf.GaussianMixture) -> float:
    """E sigma^2 |s_hat - s|^2 with t uniform on [1e-3, 1], x_t from p_t."""
    draws = torch.Generator().manual_seed(77)
    t = 1e-3 + (1 - 1e-3) * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    t = t.repeat_interleave(HELD_OUT // 200)
    x0 = gm.sample(HELD_OUT, seed=5)
    x = gm.sde.perturb(x0, t, torch.randn(x0.shape, generator=draws, dtype=x0.dtype))
    with torch.no_grad():
        gap = gm.sde.sigma(t)[:, None] * (model.score(x.float(), t).double() - gm.score(x, t))
    return float(gap.square().sum(1).mean())


def run(gm: sf.GaussianMixture, order: int, width: int, marks: list[int], seed: int) -> dict[str, float]:
    """Excess after each number of iterations in `marks`."""
    begin, data = time.process_time(), gm.sample(20_000, seed=1)
    torch.manual_seed(seed)
    net = Net(gm.sde, width)
    plain = sf.ScoreModel(net, gm.sde, "noise", shape=(2,))
    model = sf.polynomial_score(data, gm.sde, order) | sf.Residual(net) if order else plain
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    draws, found = torch.Generator().manual_seed(seed), {}
    for step in range(marks[-1] + 1):
        if step in marks:
            found[str(step)] = round(excess(model, gm), 4)
        x0 = data[torch.randint(len(data), (BATCH,), generator=draws)].float()
        t = 1e-3 + (1 - 1e-3) * (torch.arange(BATCH, dtype=torch.float64) + torch.rand(1, generator=draws)) / BATCH
        loss = sf.dsm_loss(model, x0, t=t, seed=draws).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found | {"seconds": round(time.process_time() - begin, 1)}


def main() -> None:
    """Print one line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    marks = [0, 50, 100, 200, 300, 400, 600, 1000]
    for name, gm, orders, width, at in (
        ("two modes", two_modes(), (0, 2, 4), 64, marks),
        ("ring of eight", ring(), (0, 4, 8), 128, [0, 500, 1000, 2000]),
    ):
        for order in orders:
            until = at[:1] if order == 8 else at
            told = {"data": name, "below": f"order {order}" if order else "plain"}
            print(json.dumps(told | run(gm, order, width, until, seed)), flush=True)


if __name__ == "__main__":
    main()
