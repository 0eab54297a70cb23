"""The bundled density model of digits: how it is packed, and every figure quoted of it.

    scorefield train density --out runs/density            # 80 minutes on one core
    python benchmarks/density.py pack runs/density         # writes it into the package
    python benchmarks/density.py bits                      # exact bits/dim of the thousand held-out digits
    python benchmarks/density.py intervals                 # do 95 % intervals of 8 probes cover a 512-probe reference?
    python benchmarks/density.py codes [--other RUN]       # encode and decode; agreement of codes with another model
    python benchmarks/density.py bound                     # the evidence lower bound, for comparison

All take another run than the bundled one, and --images for fewer images.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

import scorefield as sf
from scorefield.bundled import run_folder
from scorefield.data import digits
from scorefield.likelihood import discrete_log_prob, elbo
from scorefield.training.checkpoint import newest_checkpoint, save_checkpoint

TOLERANCE = 1e-4
T95 = 2.3646
"""Student's t, 7 degrees of freedom, two-sided 95 %."""


def held_out(images: int) -> torch.Tensor:
    """uint8 (images, 1, 28, 28), of the thousand that no training has seen."""
    return digits(train=False)[:images].read(range(images))


def pack(run: Path) -> None:
    """Half-precision averaged weights of a run as a run folder inside the package."""
    checkpoint = newest_checkpoint(run, ("ema",))
    assert checkpoint is not None
    folder = Path(sf.__file__).parent / "models" / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes((run / "run.json").read_bytes())
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in checkpoint.tensors["ema"].items()
    }
    save_checkpoint(folder, checkpoint.step, {"ema": halves}, {"step": checkpoint.step}, keep=1)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{folder}: step {checkpoint.step}, {size / 1e6:.2f} MB")


def bits(model: sf.ScoreModel, images: int, runs: int) -> dict[str, float]:
    """Exact held-out bits/dim, every image dequantised `runs` times."""
    x = held_out(images)
    result = discrete_log_prob(
        model, x, samples=runs, batch_size=100, solver=sf.Dopri5(TOLERANCE, TOLERANCE), seed=0, progress=True
    )
    each = result.bits_per_dim()
    return {
        "bits_per_dim": float(each.mean()),
        "stderr": float(each.std() / math.sqrt(len(each))),
        "images": images,
        "runs": runs,
    }


def bound(model: sf.ScoreModel, images: int) -> dict[str, float]:
    """The bound from the score-matching loss, 64 draws each."""
    x = sf.likelihood.dequantize(held_out(images), seed=0)
    each = elbo(model, x, samples=64, seed=1, batch_size=100).bits_per_dim()
    return {"bound_bits_per_dim": float(each.mean()), "stderr": float(each.std() / math.sqrt(len(each)))}


def intervals(model: sf.ScoreModel, images: int) -> dict[str, float]:
    """Coverage over 300 estimates of 8 probes each, on fixed grids so that both share their trajectory."""
    x = sf.likelihood.dequantize(held_out(images), seed=0)
    repeats = 300 // images
    options = {"steps": 24, "grid": "log_snr", "solver": sf.Heun(), "batch_size": 1}
    reference = sf.log_prob(model, x, probes=512, seed=1, **options).nats
    fresh = sf.log_prob(model, x, probes=8 * repeats, seed=2, **options).draws.reshape(images, repeats, 8)
    error = (fresh.mean(2) - reference.unsqueeze(1)).abs()
    inside = error <= T95 * fresh.std(2) / math.sqrt(8)
    return {"coverage": float(inside.double().mean()), "estimates": inside.numel()}


def codes(model: sf.ScoreModel, images: int, other: str | None) -> dict[str, float]:
    """RMS error of encode then decode, and agreement of codes with those of another model."""
    x = sf.likelihood.dequantize(held_out(images), seed=0)
    back = sf.decode(model, sf.encode(model, x))
    figures = {"round_trip_rms": float((back - x).square().mean().sqrt()), "images": float(images)}
    if other is not None:
        report = sf.latent.identifiability(model, sf.load(other), x)
        figures["times_the_baseline"] = report.ratio
        print(report)
    return figures


def main() -> None:
    """Run one of the commands and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pack", "bits", "intervals", "codes", "bound"])
    parser.add_argument("run", nargs="?", default="digits", help="a run; the bundled model unless given")
    parser.add_argument("--images", type=int)
    parser.add_argument("--runs", type=int, default=1, help="dequantisations of each image, for bits")
    parser.add_argument("--other", help="another run, for codes")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(run_folder(arguments.run))
        return
    model, begin = sf.load(arguments.run), time.monotonic()
    match arguments.command:
        case "bits":
            figures = bits(model, arguments.images or 1000, arguments.runs)
        case "bound":
            figures = bound(model, arguments.images or 1000)
        case "intervals":
            figures = intervals(model, arguments.images or 10)
        case _:
            figures = codes(model, arguments.images or 50, arguments.other)
    print(json.dumps(figures | {"seconds": round(time.monotonic() - begin)}))


if __name__ == "__main__":
    main()
