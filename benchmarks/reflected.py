"""Reflected diffusion, each run under a minute of processor time: python benchmarks/reflected.py plane digits.

plane   points with mass on two walls of the unit square, beside clamping and a process without walls
digits  grey digits in [0, 1], beside a process without walls of the same network and as many steps
"""

from __future__ import annotations

import argparse
import tempfile
import time

import torch
from torch import Tensor

import scorefield as sf
from scorefield.reflected import Clamped

OPTIONS = {"schedule": "cosine", "stratify": True, "trackers": (), "report": False, "progress": False}


def trained(model: sf.ScoreModel, data: object, steps: int, batch_size: int, **options: object) -> sf.ScoreModel:
    """The averaged model after so many steps; prints how long they took."""
    begin, worked = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as out:
        run = sf.train(model, data, out=out, steps=steps, batch_size=batch_size, **(OPTIONS | options))  # type: ignore[arg-type]
    size = sum(p.numel() for p in model.parameters())
    seconds = f"{time.process_time() - worked:.0f} s of processor, {time.monotonic() - begin:.0f} s by the clock"
    print(f"  {size:,} weights, {steps} steps of {batch_size}: {seconds}", flush=True)
    return run.model


def points(n: int, seed: int) -> Tensor:
    """n points of the unit square: the first coordinate heaps up at 0, the second, a bent function of it, at 1."""
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    return sf.ReflectedVE().fold(torch.stack([0.3 * a.abs(), 0.95 - 0.18 * a**2 + 0.12 * b], 1))


def sliced(x: Tensor, y: Tensor) -> float:
    """Mean distance W1 of as many points on 64 directions."""
    u = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    u = u / u.norm(dim=0)
    return float(((x @ u).sort(0).values - (y @ u).sort(0).values).abs().mean())


def plane(scale: float) -> None:
    """A perceptron for points with mass on two walls."""
    x, y = points(50_000, 1), points(20_000, 2)
    print(f"plane: sliced W1 of two samples of the data {sliced(points(20_000, 3), y):.4f}")
    for name, sde in (("reflected", sf.ReflectedVE(0.01, 2.0)), ("without walls", sf.VE(0.01, 2.0))):
        torch.manual_seed(0)
        print(f" {name}")
        model = sf.ScoreModel(sf.nn.MLP(2, 96, 2), sde, "noise", shape=(2,))
        model = trained(model, x, int(2200 * scale), 512, lr=3e-3, warmup=50, ema=0.99)
        told(name, model, y)
        if isinstance(sde, sf.ReflectedVE):
            clamped = sf.ScoreModel(model.net, Clamped(sde.sigma_min, sde.sigma_max), "noise", shape=(2,))
            told("clamped, the same network", clamped, y)


def told(name: str, model: sf.ScoreModel, y: Tensor) -> None:
    """Distance of 20,000 samples to the data, and how many lie where no data can."""
    x = sf.sample(model, 20_000, sf.EulerMaruyama(), steps=100, seed=0, t_min=1e-3, progress=False)
    beyond, far = (((x < -e) | (x > 1 + e)).any(1).double().mean() for e in (0.0, 0.01))
    wall = ((x == 0) | (x == 1)).any(1).double().mean()
    print(
        f"  {name}: sliced W1 {sliced(x, y):.4f}; outside {float(beyond):.2%}, by more than 0.01 {float(far):.2%}; "
        f"exactly on a wall {float(wall):.2%}"
    )


def digits(scale: float) -> None:
    """The same U-Net for grey digits between walls and without."""
    train, test = sf.digits(train=True), sf.digits(train=False)
    print("digits: 28 x 28, 256 levels")
    for name, sde in (("reflected", sf.ReflectedVE(0.001, 2.0)), ("without walls", sf.VP())):
        torch.manual_seed(0)
        print(f" {name}")
        net = sf.nn.UNet(1, 16, (1, 2, 2), 1, (), dropout=0.0, centered=isinstance(sde, sf.VP))
        model = sf.ScoreModel(net, sde, "noise", shape=(1, 28, 28))
        rate = {"name": "muon", "lr": 2e-3, "beta2": 0.99, "warmup": 20, "schedule": "linear", "ema": 0.98}
        model = trained(model, train, int(150 * scale), 32, dequantize=True, **rate)
        low, high = sde.range
        x = low + (high - low) * (test.read(range(16)).float() + torch.rand(16, 1, 28, 28)) / 256
        begin = time.process_time()
        lp = sf.log_prob(model, x, probes=1, seed=0, solver=sf.Dopri5(1e-3, 1e-3), t_min=1e-5, progress=False)
        bits = lp.bits_per_dim(levels=256, low=low, high=high)
        print(
            f"  {name}: {float(bits.mean()):.3f} ± {float(bits.std()) / len(x) ** 0.5:.3f} bits/dim of "
            f"{len(x)} held-out digits, {float(lp.nfe.float().mean()):.0f} calls each ({time.process_time() - begin:.0f} s)"
        )
        begin = time.process_time()
        s = sf.sample(model, 16, sf.EulerMaruyama(), steps=100, seed=0, progress=False)
        outside = ((s < low) | (s > high)).double()
        print(
            f"  {name}: values of samples from {float(s.min()):.3f} to {float(s.max()):.3f} in [{low:g}, {high:g}], "
            f"{float(outside.mean()):.2%} of them outside ({time.process_time() - begin:.0f} s)"
        )


def main() -> None:
    """Make the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=["plane", "digits"])
    parser.add_argument("--scale", type=float, default=1.0, help="times the steps of each training")
    asked = parser.parse_args()
    for run in asked.runs:
        {"plane": plane, "digits": digits}[run](asked.scale)


if __name__ == "__main__":
    main()
