"""Train a density model on handwritten digits, and report its exact held-out bits per dimension.

    python benchmarks/density.py --out runs/density --steps 60000        # stop and run again to go on

Sub-VP, weighting g^2 with importance-sampled times, uniform dequantisation. Digits are 28x28, 256 levels on [-1, 1]; the
first 9,000 train, the last 1,000 are held out.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import scorefield as sf
from scorefield.likelihood import discrete_log_prob
from scorefield.nn import UNet
from scorefield.times import ImportanceTimes

T_MIN = 1e-5


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(training, held-out) images, uint8 (N, 1, 28, 28)."""
    file = Path(sf.__file__).parent / "data" / "mnist10k.npz"
    images = torch.from_numpy(np.load(file)["images"]).unsqueeze(1)
    return images[:9000], images[9000:]


def network(width: int) -> UNet:
    """A U-Net of three levels, 28, 14 and 7 pixels wide."""
    return UNet(1, width, (1, 2, 2), 2, (2,), dropout=0.1)


def save(path: Path, **parts: object) -> None:
    """Replace the file in one step, so that a kill leaves the old one whole."""
    fresh = path.with_suffix(".part")
    torch.save(parts, fresh)
    fresh.replace(path)


def main() -> None:
    """Train, average the weights, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/density"))
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=24, help="24: about 1M parameters")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--images", type=int, default=1000, help="held-out images to evaluate")
    parser.add_argument("--runs", type=int, default=5, help="dequantisations of every held-out image")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = arguments.out / "state.pt"
    train, held_out = digits()
    sde = sf.SubVP()
    net, average = network(arguments.width), network(arguments.width)
    average.load_state_dict(net.state_dict())
    average.eval().requires_grad_(False)
    model = sf.ScoreModel(net, sde, shape=(1, 28, 28))
    optimiser = torch.optim.Adam(net.parameters(), lr=arguments.lr)
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        net.load_state_dict(saved["net"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    offset = sum(p.numel() for p in net.parameters())
    print(f"{offset:,} parameters; steps {first} to {arguments.steps}")
    recent = 0.0
    for step in range(first, arguments.steps):
        draws = torch.Generator().manual_seed(step)
        rows = torch.randint(len(train), (arguments.batch,), generator=draws)
        x = sf.dequantize(train[rows], seed=step)
        rate = arguments.lr * min(1.0, (step + 1) / 1000) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        loss = sf.dsm_loss(model, x, "likelihood", times=ImportanceTimes(T_MIN), seed=draws).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1000.0)
        optimiser.step()
        decay = min(0.9995, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        recent = 0.99 * recent + 0.01 * float(loss)
        if (step + 1) % 500 == 0:
            save(
                state,
                net=net.state_dict(),
                average=average.state_dict(),
                optimiser=optimiser.state_dict(),
                step=step + 1,
            )
            print(f"step {step + 1}: loss {recent:.1f}", flush=True)
    final = sf.ScoreModel(average, sde, shape=(1, 28, 28))
    result = discrete_log_prob(
        final, held_out[: arguments.images], samples=arguments.runs, batch_size=100, progress=True
    )
    bits = result.bits_per_dim()
    report = {
        "bits_per_dim": float(bits.mean()),
        "stderr": float(bits.std() / math.sqrt(len(bits))),
        "images": len(bits),
        "dequantisations": arguments.runs,
        "steps": arguments.steps,
    }
    (arguments.out / "density.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
