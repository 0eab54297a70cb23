"""Train the embedded digit classifier on the first 9,000 digits, and report its accuracy on the last 1,000.

    OMP_NUM_THREADS=1 python benchmarks/digit_classifier.py                   # prints figures only; about two minutes
    OMP_NUM_THREADS=1 python benchmarks/digit_classifier.py --out src/scorefield/evaluation/digits.safetensors

Random affine maps of the training images stand in for more data. The held-out digits are looked at once, at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import scorefield as sf
from scorefield.evaluation import DigitClassifier

BATCH = 100
CONVOLUTIONS = ("first", "second", "third")


def distorted(x: Tensor) -> Tensor:
    """Every image of (B, 1, 28, 28) turned, sheared, scaled and moved by amounts of its own."""
    angle, shear = torch.randn(2, len(x)) * 0.12
    scale = torch.exp(torch.randn(2, len(x)) * 0.08)
    move = torch.randn(2, len(x)) * 0.06
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([scale[0] * cos, scale[0] * (shear - sin), move[0]], 1)
    bottom = torch.stack([scale[1] * sin, scale[1] * cos, move[1]], 1)
    grid = F.affine_grid(torch.stack([top, bottom], 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # zero padding is black only where black is zero


def normalised(model: DigitClassifier) -> DigitClassifier:
    """Batch normalisation behind every convolution, for training."""
    for name in CONVOLUTIONS:
        convolution = getattr(model, name)
        setattr(model, name, nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels)))
    return model


def folded(model: DigitClassifier) -> DigitClassifier:
    """The same function with the normalisation inside the convolutions."""
    for name in CONVOLUTIONS:
        setattr(model, name, fuse_conv_bn_eval(*getattr(model, name)))
    return model


def accuracy(model: DigitClassifier, images: Tensor, labels: Tensor) -> float:
    """Part of the images whose most likely class is their label."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def main() -> None:
    """Train, report, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the weights there")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    begin = time.process_time()
    data, held_out = sf.digits(), sf.digits(train=False)
    assert data.labels is not None
    assert held_out.labels is not None
    images, steps = data.tensor(), options.epochs * len(data) // BATCH
    model = normalised(DigitClassifier())
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for step in range(steps):
        if step * BATCH % len(data) == 0:
            order = torch.randperm(len(data))
        chosen = order[step * BATCH % len(data) :][:BATCH]
        loss = F.cross_entropy(model(distorted(images[chosen])), data.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model = folded(model.eval())
    score = accuracy(model, held_out.tensor(), held_out.labels)
    if options.out is not None:
        save_file(model.state_dict(), options.out)
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_accuracy": accuracy(model, images, data.labels),
        "held_out_accuracy": score,
        "held_out_stderr": math.sqrt(score * (1 - score) / len(held_out)),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
