"""Nine stochastic systems learned from pairs of states, as in Liu et al. 2024 (arXiv 2410.03108), against their own laws.

    OMP_NUM_THREADS=1 python benchmarks/dynamics.py                # all nine; two minutes of a free core
    OMP_NUM_THREADS=1 python benchmarks/dynamics.py ou double-well # some, --seed for others

The authors use up to 1.5 million pairs, 2,048 neighbours and 10,000 Euler steps a label; here it is 40,000 pairs, 1,536
neighbours and 3,000 labels of an adaptive solver (2,000 in five dimensions). Drift and diffusion are held
against those of one step of dt = 0.01 (mean and deviation of 40,000 simulated steps), at nine states of the interior;
"s.e." is the error that this many pairs leave at one state.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import scorefield as sf

DT, PAIRS, NEIGHBOURS, LABELS, STEPS = 0.01, 40_000, 1536, 3000, 800
SUBSTEPS, DRAWS = 20, 40_000
Draw = torch.Generator


@dataclass(frozen=True)
class Problem:
    """A system: drift and diffusion (B, d) -> (B, d), states (low, high) of the data in each entry, and how noise is drawn.

    kick: the noise of one whole step of dt, for systems that are defined by steps; None for a Wiener process.
    """

    drift: Callable[[Tensor], Tensor]
    diffusion: Callable[[Tensor], Tensor]
    low: float
    high: float
    dimension: int = 1
    kick: Callable[[Tensor], Tensor] | None = None

    def step(self, x: Tensor, draws: Draw) -> tuple[Tensor, Tensor]:
        """States a time dt later, and the mean of the drift on the way, whose expectation is E[dX] / dt without noise."""
        if self.kick is not None:
            u = torch.rand(x.shape, generator=draws, dtype=x.dtype)
            return x + DT * self.drift(x) + math.sqrt(DT) * self.kick(u), self.drift(x) + self.kick_mean / math.sqrt(DT)
        h, total = DT / SUBSTEPS, torch.zeros_like(x)
        for _ in range(SUBSTEPS):
            b = self.drift(x)
            total = total + b / SUBSTEPS
            z = torch.randn(x.shape, generator=draws, dtype=x.dtype)
            x = x + h * b + math.sqrt(h) * self.diffusion(x) * z
        return x, total

    @property
    def kick_mean(self) -> float:
        """Of the noise of a step of dt = 1, by the midpoint rule."""
        assert self.kick is not None
        return float(self.kick((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).mean())


def linear(matrix: list[list[float]]) -> Callable[[Tensor], Tensor]:
    """x -> B x."""
    b = torch.tensor(matrix, dtype=torch.float64)
    return lambda x: x @ b.T


def scales(values: list[float]) -> Callable[[Tensor], Tensor]:
    """A constant diagonal diffusion."""
    return lambda x: torch.tensor(values, dtype=x.dtype).expand_as(x)


def chain() -> list[list[float]]:
    """Five coordinates in a row: noise enters the first, each relaxes and follows the one before."""
    return [[-1.0 if i == j else 0.5 if i == j + 1 else 0.0 for j in range(5)] for i in range(5)]


PROBLEMS = {
    "ou": Problem(lambda x: 1.2 - x, lambda x: 0.3 + 0 * x, 0.0, 2.5),
    "gbm": Problem(lambda x: 2 * x, lambda x: x, 0.5, 2.5),
    "bump": Problem(lambda x: -5 * x, lambda x: 0.5 * torch.exp(-(x**2)), -1.5, 1.5),
    "periodic": Problem(
        lambda x: torch.sin(2 * math.pi * x), lambda x: 0.5 * torch.cos(2 * math.pi * x).abs(), 0.35, 0.7
    ),
    "double-well": Problem(lambda x: x - x**3, lambda x: 0.5 + 0 * x, -2.5, 2.5),
    "exponential": Problem(lambda x: -2 * x, lambda x: 0.1 + 0 * x, 0.0, 1.0, kick=lambda u: -0.1 * torch.log1p(-u)),
    "lognormal": Problem(lambda x: x * (-0.5 - torch.log(x) + 0.045), lambda x: 0.3 * x, 0.3, 1.5),
    "ou-2d": Problem(linear([[-1.0, -0.5], [-1.0, -1.0]]), scales([1.0, 0.5]), -2.0, 2.0, 2),
    "ou-5d": Problem(linear(chain()), scales([1.0, 0.0, 0.0, 0.0, 0.0]), -1.5, 1.5, 5),
}


def interior(p: Problem) -> Tensor:
    """Nine states away from the edges: on a line, along the diagonal, or along the noisy entry."""
    share = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)[:, None]
    x = p.low + share * (p.high - p.low)
    if p.dimension == 1:
        return x
    rest = 0.25 * (p.low + p.high) + 0 * x
    return torch.cat([x, *[rest] * (p.dimension - 1)], 1)


def truth(p: Problem, x: Tensor, draws: Draw) -> tuple[Tensor, Tensor]:
    """E[dX] / dt and std[dX] / dt^(1/2) at states (n, d)."""
    drift, spread = [], []
    for state in x:
        start = state.expand(DRAWS, -1)
        after, mean = p.step(start, draws)
        drift.append(mean.mean(0))
        spread.append((after - start).std(0) / math.sqrt(DT))
    return torch.stack(drift), torch.stack(spread)


def solve(name: str, seed: int) -> dict[str, object]:
    """Learn one system and compare it."""
    p, draws, begin = PROBLEMS[name], torch.Generator().manual_seed(seed), time.process_time()
    x = p.low + (p.high - p.low) * torch.rand(PAIRS, p.dimension, generator=draws, dtype=torch.float64)
    after, _ = p.step(x, draws)
    fm = sf.dynamics.learn_flow_map(
        x,
        after,
        DT,
        neighbours=NEIGHBOURS,
        labels=LABELS if p.dimension < 3 else 2000,
        steps=STEPS,
        seed=seed,
        progress=False,
    )
    at = interior(p)
    found, (drift, spread) = fm.moments(at, draws=20_000), truth(p, at, draws)
    noisy = spread.amax(0) > 0.05 * spread.max()
    result: dict[str, object] = {
        "drift rms error": float((found.drift - drift).square().mean().sqrt()),
        "drift rms": float(drift.square().mean().sqrt()),
        "s.e. of the drift": float(found.stderr[:, noisy].median()),
        "diffusion error": float((found.diffusion / spread - 1)[:, noisy].abs().mean()),
        "largest diffusion error": float((found.diffusion / spread - 1)[:, noisy].abs().max()),
    }
    if not bool(noisy.all()):
        result["diffusion of quiet entries"] = float(found.diffusion[:, ~noisy].max())
        result["its truth"] = float(spread[:, ~noisy].max())
    result |= EXTRA[name](fm) if name in EXTRA else {}
    return result | {"seconds": round(time.process_time() - begin, 1)}


def long_ou(fm: sf.dynamics.StochasticMap) -> dict[str, float]:
    """Exact stationary law: N(1.2, 0.2121^2)."""
    end = fm.rollout(torch.full((4000, 1), 0.3), 600, seed=1)[-1]
    return {"mean after 600 steps": float(end.mean()), "std after 600 steps": float(end.std())}


def long_double_well(fm: sf.dynamics.StochasticMap) -> dict[str, float]:
    """Total variation to the density exp((x^2 - x^4 / 2) / 0.25), and the share on the right."""
    start = torch.linspace(-2, 2, 10_000, dtype=torch.float64)[:, None]
    end = fm.rollout(start, 1500, seed=1)[-1][:, 0]
    edges = torch.linspace(-2.2, 2.2, 45, dtype=torch.float64)
    fine = torch.linspace(-2.2, 2.2, 4401, dtype=torch.float64)
    p = torch.exp((fine**2 - fine**4 / 2) / 0.25)
    exact = (
        torch.stack([p[(fine >= a) & (fine < b)].sum() for a, b in zip(edges[:-1], edges[1:], strict=True)]) / p.sum()
    )
    share = torch.histogram(end, edges)[0] / len(end)
    return {
        "TV to the stationary density": float(0.5 * (share - exact).abs().sum()),
        "right": float((end > 0).double().mean()),
    }


EXTRA: dict[str, Callable[[sf.dynamics.StochasticMap], dict[str, float]]] = {
    "ou": long_ou,
    "double-well": long_double_well,
}


def main() -> None:
    """Run what is asked for, and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="*", help=f"some of {', '.join(PROBLEMS)}; all unless given")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    unknown = [name for name in args.problems if name not in PROBLEMS]
    if unknown:
        parser.error(f"unknown problem {unknown[0]}; choose from {', '.join(PROBLEMS)}")
    torch.set_num_threads(1)
    for name in args.problems or PROBLEMS:
        print(json.dumps({"problem": name} | solve(name, args.seed)), flush=True)


if __name__ == "__main__":
    main()
