"""Samples of each class from the unconditional bundled model, guided by a classifier of noised digits.

    scorefield classifier digits --data digits --out runs/digits-classifier --steps 3000 --batch-size 64
    python benchmarks/classes.py --classifier runs/digits-classifier --out docs/pictures

The judge is the embedded digit classifier, another network that was trained apart and never sees noise. Diversity is the mean
distance between the samples of a class, relative to that between real held-out digits of the class. The accuracy of the
guide at each noise level is compared with that of Bayes on a mixture in tests/guide.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor

import scorefield as sf
from scorefield.data import digits
from scorefield.evaluation import digit_classifier
from scorefield.guide import ClassifierGuidance
from scorefield.plot import image_grid, save_image
from scorefield.training.classifier import load_classifier


def spread(x: Tensor) -> float:
    """Mean distance between different rows."""
    distance = torch.cdist(x.flatten(1), x.flatten(1))
    return float(distance.sum() / (len(x) * (len(x) - 1)))


def main() -> None:
    """Sample, judge, print one JSON line for each scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="digits")
    parser.add_argument("--classifier", required=True)
    parser.add_argument("--each", type=int, default=40, help="samples of a class")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 4.0, 6.0, 8.0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/classes"))
    arguments = parser.parse_args()
    model = sf.load(arguments.run)
    guide = load_classifier(arguments.classifier, model.sde)
    held_out = digits(train=False)
    assert held_out.labels is not None
    real = held_out.tensor((-1.0, 1.0))
    judge = digit_classifier()
    label = torch.arange(10).repeat_interleave(arguments.each)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for scale in arguments.scales:
        begin = time.monotonic()
        guided = model | ClassifierGuidance(guide, label, scale)
        x = sf.sample(guided, len(label), sf.Ancestral(), steps=arguments.steps, grid="log_snr", seed=0, batch_size=100)
        right = (judge(x).argmax(1) == label).double()
        share = [spread(x[label == k]) / spread(real[held_out.labels == k][: arguments.each]) for k in range(10)]
        figures = {
            "scale": scale,
            "right": float(right.mean()),
            "stderr": float(right.std() / math.sqrt(len(right))),
            "diversity": sum(share) / 10,
            "least_diversity": min(share),
            "seconds": round(time.monotonic() - begin),
        }
        print(json.dumps(figures), flush=True)
        rows = x.reshape(10, arguments.each, *x.shape[1:])[:, :12].flatten(0, 1)
        save_image(image_grid(rows, columns=12, zoom=2), arguments.out / f"classes-{scale:g}.png")


if __name__ == "__main__":
    main()
