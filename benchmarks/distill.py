"""The bundled digits model distilled: Frechet distance in 1, 2, 4 jumps beside the teacher's default sampler in 5, 10, 20.

    python benchmarks/distill.py --out runs/digits-fast                  # trains (or goes on), then judges
    python benchmarks/distill.py --out runs/digits-fast --steps 0        # judges what is there
    python benchmarks/distill.py --out runs/digits-fast --pack           # and writes it into the package, in half precision

Features are those of the embedded digit classifier, against the held-out thousand. Wanted: two jumps within 1.5 times the
teacher's distance in 20 calls.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import scorefield as sf
from scorefield.cli import main as command
from scorefield.data import array
from scorefield.evaluation import compare, open_features
from scorefield.evaluation.stored_samples import quantised
from scorefield.training.checkpoint import newest_checkpoint, save_checkpoint

JUMPS, CALLS = (1, 2, 4), (5, 10, 20)
LARGEST = 3e6
"""Bytes that the package gives to the model."""


def pack(run: Path) -> None:
    """Half-precision averaged weights of a run as a run folder inside the package, where it fits."""
    checkpoint = newest_checkpoint(run, ("ema",))
    assert checkpoint is not None, f"{run} has no checkpoint"
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in checkpoint.tensors["ema"].items()
    }
    size = sum(value.numel() * value.element_size() for value in halves.values())
    assert size < LARGEST, f"{size / 1e6:.2f} MB are too many"
    folder = Path(sf.__file__).parent / "models" / "digits-fast"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes((run / "run.json").read_bytes())
    save_checkpoint(folder, checkpoint.step, {"ema": halves}, {"step": checkpoint.step}, keep=1)
    print(f"{folder}: step {checkpoint.step}, {size / 1e6:.2f} MB")


def distance(model: sf.ScoreModel, steps: int, options: argparse.Namespace) -> dict[str, float]:
    """Frechet distance of samples by the model's default sampler in so many steps, with its standard error."""
    begin = time.process_time()
    x = sf.sample(model, options.samples, steps=steps, seed=options.seed, batch_size=100, full=True, progress=False)
    seconds = time.process_time() - begin
    items = array(quantised(x.x, 256, (-1.0, 1.0), dequantised=True))
    cache = Path(options.out) / "features"
    found = compare(open_features("digits"), items, sf.digits(train=False), cache=cache, progress=False)["frechet"]
    calls = float(x.nfe.double().mean())
    return {"calls": calls, "frechet": found.value, "stderr": found.stderr, "cpu_seconds": round(seconds, 1)}


def main() -> None:
    """Distil, judge both, print one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/digits-fast")
    parser.add_argument("--steps", type=int, default=2000, help="of training; 0 judges the run as it is")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.steps:
        words = (
            "--out",
            options.out,
            "--steps",
            options.steps,
            "--batch-size",
            options.batch_size,
            "--seed",
            options.seed,
        )
        status = command(["distill", "digits", "--data", "digits", *map(str, words)])
        if status:
            raise SystemExit(status)
    fast, teacher = sf.load(options.out), sf.load("digits")
    figures = {f"{n} jumps": distance(fast, n, options) for n in JUMPS}
    for name, row in figures.items():
        print(json.dumps({"sampler": name} | row), flush=True)
    for n in CALLS:
        figures[f"teacher, {n}"] = distance(teacher, n, options)
        print(json.dumps({"sampler": f"teacher, {n}"} | figures[f"teacher, {n}"]), flush=True)
    ratio = figures["2 jumps"]["frechet"] / figures["teacher, 20"]["frechet"]
    print(f"2 jumps / teacher in 20 calls: {ratio:.2f} (wanted: at most 1.5)")
    if options.pack:
        pack(Path(options.out))


if __name__ == "__main__":
    main()
