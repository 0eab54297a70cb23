"""Training with a Fokker-Planck penalty: the gap between flow and SDE closes, and what that does to the samples of each.

    OMP_NUM_THREADS=1 python benchmarks/fokker_planck.py        # weights 0, 0.1 and 1; a minute and a half

After Deveney et al. 2023 (arXiv 2311.15996) and Lai et al. 2023 (arXiv 2210.04296): a potential -|x|^2 / 2 + net / sigma on two
modes, 1,500 steps of `sf.train`, 16,000 samples of the flow (Heun, 80 steps) and of the SDE (Euler-Maruyama, 80). With fewer
steps or samples the gap drowns in noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import scorefield as sf
from scorefield.evaluation.distances import sliced_w2

SAMPLES, STEPS, TIMES = 16_000, 1500, (0.05, 0.1, 0.3, 1.0, 2.0)


class OU(sf.GaussianSDE):
    """dx = -x dt + 2^(1/2) dw from 0.01 to 3."""

    T, t_min = 3.0, 0.01

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-2 * t))


class Body(nn.Module):
    """-|x|^2 / 2 + net(x, features of t) / sigma."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        sizes = [5, 48, 48, 48]
        layers = [m for a, b in zip(sizes[:-1], sizes[1:], strict=True) for m in (nn.Linear(a, b), nn.Tanh())]
        self.net = nn.Sequential(*layers, nn.Linear(48, outputs))

    def correction(self, x: Tensor, t: Tensor) -> Tensor:
        """net / sigma."""
        sigma = torch.sqrt(-torch.expm1(-2 * t))[:, None]
        return self.net(torch.cat([x, torch.log(t)[:, None], sigma, torch.exp(-t)[:, None]], 1)) / sigma

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x.square().sum(1, keepdim=True) + self.correction(x, t)


class Field(Body):
    """-x + net / sigma: the same as a field of vectors, which need be no gradient."""

    def __init__(self) -> None:
        super().__init__(outputs=2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -x + self.correction(x, t)


@dataclass(frozen=True)
class LogTimes:
    """Times uniform in log t, a change of the objective; the benchmark's own proposal."""

    t_min: float = 0.01

    def __call__(self, u: Tensor, sde: sf.GaussianSDE) -> tuple[Tensor, Tensor]:
        return self.t_min * (sde.T / self.t_min) ** u, torch.ones_like(u)


def two_modes() -> sf.GaussianMixture:
    """0.3 N((-1.2, -0.3), 0.3^2 I) + 0.7 N((0.8, 0.5), 0.5^2 I)."""
    means = torch.tensor([[-1.2, -0.3], [0.8, 0.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, torch.tensor([0.09, 0.25], dtype=torch.float64), [0.3, 0.7], OU())


def run(weight: float, probes: int, form: str, seed: int) -> dict[str, object]:
    """Train one model and compare its two samplers with the data."""
    begin, gm = time.process_time(), two_modes()
    torch.manual_seed(seed)
    net = sf.nn.Potential(Body()) if form == "potential" else Field()
    model = sf.ScoreModel(net, OU(), "score", shape=(2,))
    data = gm.sample(50_000, seed=seed + 1).float()
    options = {"lr": 3e-3, "warmup": 0, "schedule": "cosine", "ema": 0.99, "times": LogTimes(), "report": False}
    with tempfile.TemporaryDirectory() as folder:
        trained = sf.train(
            model, sf.data.array(data), out=folder, steps=STEPS, batch_size=256, seed=seed, progress=False,
            fokker_planck=weight, probes=probes, trackers=(), keep_best=False, reduce="sum", **options,
        ).model  # fmt: skip
    seconds = time.process_time() - begin
    spread = sf.fokker_planck.fokker_planck_spread(trained, gm.sample(4000, seed=9).float(), TIMES)
    flow = sf.sample(trained, SAMPLES, sf.Heun(), steps=80, grid="log_snr", seed=11, denoise=False)
    sde = sf.sample(trained, SAMPLES, sf.EulerMaruyama(), steps=80, grid="log_snr", seed=12, denoise=False)
    one, two = (gm.sample(SAMPLES, t=0.01, seed=s).float() for s in (13, 14))
    return {
        "weight": weight,
        "form": form,
        "probes": probes or "exact",
        "gauge-free": float(spread.mean()),
        "score error": sum(score_error(trained, gm, t) for t in TIMES) / len(TIMES),
        "flow-SDE": sliced_w2(flow, sde),
        "flow-data": sliced_w2(flow, one),
        "SDE-data": sliced_w2(sde, one),
        "data-data": sliced_w2(one, two),
        "training seconds": round(seconds, 1),
    }


def score_error(model: sf.ScoreModel, gm: sf.GaussianMixture, t: float) -> float:
    """E sigma^2 |s_hat - s|^2 at a time."""
    x = gm.sample(4000, t=t, seed=21)
    with torch.no_grad():
        gap = model.score(x.float(), t).double() - gm.score(x, t)
    return float(gm.sde.sigma(torch.tensor(t, dtype=torch.float64))) ** 2 * float(gap.square().sum(1).mean())


def main() -> None:
    """Print one line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    parser.add_argument("--probes", type=int, default=0, help="random signs for each of two estimates; 0 is exact")
    parser.add_argument("--form", choices=("potential", "score"), default="potential")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for weight in args.weights:
        found = run(weight, args.probes, args.form, args.seed)
        print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}), flush=True)


if __name__ == "__main__":
    main()
