"""The bundled digits tuned towards more ink, beside guidance at the same KL and the best that any method could do.

    OMP_NUM_THREADS=1 python benchmarks/reward_digits.py --out docs/pictures         # 130 seconds of one core
    OMP_NUM_THREADS=1 python benchmarks/reward_digits.py --updates 2 --samples 8     # a quick look

The reward is the mean ink of a picture in percent (paper 0, ink 100); the chain is DDIM(1) on a grid in log-SNR. Guidance
adds the gradient of the reward of the denoised picture over the temperature, at the scale that makes its KL to the base
that of the tuned model. The tilt re-weights samples of the base by e^(r / temperature): the most reward at its KL.
"Read" is the share of pictures of which the embedded classifier is at least 90 % sure.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

import scorefield as sf
from scorefield.charts import curves, save_figure
from scorefield.evaluation import digit_classifier
from scorefield.plot import image_grid, save_image
from scorefield.reward import AdjointMatching, Chain, Paths, finetune, follow
from scorefield.reward.finetune import FIGURES
from scorefield.solve.integrate import Field


def ink(x: Tensor) -> Tensor:
    """Mean ink of pictures (B, 1, 28, 28) in [-1, 1], in percent: (B,)."""
    return 50 * (x + 1).flatten(1).mean(1)


def paths_of(model: sf.ScoreModel, base: sf.ScoreModel, chain: Chain, n: int, seed: int) -> Paths:
    """n paths of the chain of a model, the same noise for every model."""
    start = torch.randn(n, *(base.shape or ()), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return follow(chain, Field.of(model, {}, n), Field.of(base, {}, n), start, sf.randomness.source(seed + 1, n))


def figures(paths: Paths, reader: torch.nn.Module) -> dict[str, float]:
    """Reward, KL and how many pictures can be read, with standard errors."""
    x = paths.states[-1]
    value, kl = ink(x), paths.step_kl.sum(0)
    with torch.no_grad():
        sure = torch.softmax(reader(x.clamp(-1, 1)), 1).amax(1) > 0.9
    root = math.sqrt(len(x))
    numbers = {"ink": value.mean(), "ink error": value.std() / root, "KL": kl.mean(), "KL error": kl.std() / root}
    return {name: round(float(v), 3) for name, v in numbers.items()} | {"read": round(float(sure.double().mean()), 3)}


def tilts(value: Tensor, temperatures: list[float]) -> list[dict[str, float]]:
    """Reward and KL of the samples with rewards `value` (B,), weighted by e^(r / temperature)."""
    rows = []
    for temperature in temperatures:
        log_w = torch.log_softmax(value.double() / temperature, 0)
        kl = float((log_w.exp() * log_w).sum()) + math.log(len(value))
        reward = float((log_w.exp() * value).sum())
        rows.append({"temperature": temperature, "ink": round(reward, 2), "KL": round(kl, 2)})
    return rows


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    """One entry of each row."""
    return [row[name] for row in rows]


def guided(base: sf.ScoreModel, temperature: float, scale: float) -> sf.ScoreModel:
    """The base, guided by the reward of its denoised picture."""

    def log_tilt(x: Tensor, t: Tensor) -> Tensor:
        return ink(base.denoise(x, t)) / temperature

    return sf.ClassifierGuidance(log_tilt, scale=scale)(base)


def main() -> None:
    """Tune, guide, compare; one line a result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12, help="of the chain")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--temperature", type=float, default=2.0, help="in percent of ink")
    parser.add_argument("--samples", type=int, default=48, help="that each figure is measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin, reader = time.process_time(), digit_classifier()
    base, model = sf.load("digits"), sf.load("digits")
    base.requires_grad_(False)
    chain = Chain(sf.DDIM(1.0), sf.DDIM(1.0).grid_for(base.sde, (base.sde.T, base.sde.t_min), args.steps, "log_snr"))
    plain = paths_of(base, base, chain, args.samples, 7)
    print(json.dumps({"base": figures(plain, reader)}), flush=True)
    print(json.dumps({"tilt": tilts(ink(plain.states[-1]), [8.0, 4.0, 3.0, 2.0])}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = finetune(
            model, ink, AdjointMatching(steps=4), temperature=args.temperature, grid=chain.times, out=Path(folder) / "run",
            steps=args.updates, batch_size=args.batch_size, seed=args.seed, samples=2, lr=args.lr, schedule="cosine",
            log_every=5, progress=False,
        )  # fmt: skip
        rows = [json.loads(line) for line in (Path(folder) / "run" / FIGURES).read_text().splitlines()]
    print(json.dumps({"curve": [[r["step"], round(r["reward"], 2), round(r["kl"], 2)] for r in rows]}), flush=True)
    tuned = paths_of(result.model, base, chain, args.samples, 7)
    print(json.dumps({"tuned": figures(tuned, reader), "seconds": round(time.process_time() - begin)}), flush=True)
    scale, few = 1.0, max(2, args.samples // 4)
    for _ in range(2):  # the KL is about quadratic in the scale
        trial = paths_of(guided(base, args.temperature, scale), base, chain, few, 7)
        scale *= math.sqrt(float(tuned.step_kl.sum(0).mean() / trial.step_kl.sum(0).mean()))
    by_scale = {
        s: paths_of(guided(base, args.temperature, s), base, chain, args.samples, 7) for s in (scale / 2, scale)
    }
    beside = by_scale[scale]
    for at, found in by_scale.items():
        print(json.dumps({"guided": figures(found, reader), "scale": round(at, 3)}), flush=True)
    print(json.dumps({"seconds": round(time.process_time() - begin)}), flush=True)
    if args.out:
        rows = tilts(ink(plain.states[-1]), [float(t) for t in torch.logspace(3, 0, 40)])
        lines = {"most reward at its KL (base, re-weighted)": (column(rows, "KL"), column(rows, "ink"))}
        for name, drawn in (("guided", [plain, *by_scale.values()]), ("tuned", [plain, tuned])):
            found = [figures(p, reader) for p in drawn]
            lines[name] = (column(found, "KL"), column(found, "ink"))
        save_figure(curves(lines, "KL to the base, nats", "ink, %"), args.out / "reward-kl.png")
        shown = torch.cat([p.states[-1][:16] for p in (plain, tuned, beside)])
        save_image(image_grid(shown, 16, zoom=2), args.out / "reward.png")


if __name__ == "__main__":
    main()
