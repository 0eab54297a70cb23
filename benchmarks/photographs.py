"""From a folder of colour photographs to samples, bits/dim and an inpainted picture: three commands, and what they cost.

    python benchmarks/photographs.py --out runs/photographs                # at most 12 minutes on two quiet cores
    python benchmarks/photographs.py --out runs/photographs --peer         # then diffusers' example for the same processor time

The pictures are crops of 32 x 32 pixels, none overlapping another, of the colour photographs that come inside scikit-image and
scikit-learn, at most 400 of each; nine in ten are in train/, the others in held_out/. Flat crops are left out. The peer is
diffusers' unconditional example with a UNet2DModel of a size that two cores can train (`quality.py`), trained for the processor
time that our whole command `train` took, and sampled by DDPM. Frechet distances are over random convolution features, between
samples and held_out/; the row of train/ is what a perfect model would reach.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as skimage_data
from sklearn.datasets import load_sample_images

import scorefield as sf
from scorefield.data import array
from scorefield.evaluation import compare, open_features

SIDE, MOST, FLAT = 32, 400, 32
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")


def photographs() -> dict[str, np.ndarray]:
    """Colour photographs by name, (H, W, 3)."""
    found = {name: getattr(skimage_data, name)() for name in NAMES}
    found["motorcycle"] = skimage_data.stereo_motorcycle()[0]
    bunch = load_sample_images()
    return found | {Path(name).stem: x for name, x in zip(bunch.filenames, bunch.images, strict=True)}


def write_crops(folder: Path) -> None:
    """Crops of every photograph, in train/ and held_out/."""
    for name, x in photographs().items():
        rows, columns = x.shape[0] // SIDE, x.shape[1] // SIDE
        cut = x[: rows * SIDE, : columns * SIDE, :3].reshape(rows, SIDE, columns, SIDE, 3)
        tiles = cut.swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
        lively = np.flatnonzero(np.ptp(tiles.astype(int), axis=(1, 2, 3)) >= FLAT)
        for k, i in enumerate(np.unique(lively[np.linspace(0, len(lively) - 1, min(MOST, len(lively))).astype(int)])):
            part = folder / ("held_out" if k % 10 == 9 else "train")
            part.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tiles[i]).save(part / f"{name}-{i:04d}.png")


def command(*words: object) -> float:
    """Run a command of ours, and return the processor seconds that it took."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, "-m", "scorefield", *map(str, words)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"    {time.monotonic() - begin:.0f} s, {used:.0f} of a processor: scorefield {words[0]}", flush=True)
    return used


def ours(options: argparse.Namespace) -> None:
    """The three commands, and samples enough for a distance."""
    out, run, held = options.out, options.out / "run", options.out / "crops" / "held_out"
    length = ("--minutes", options.minutes) if options.steps is None else ("--steps", options.steps)
    used = command("train", "--data", out / "crops" / "train", "--out", run, *length)
    command("sample", run, "-n", 36, "--out", out / "samples.png", "--data", held)
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[8:24, 8:24] = 0
    Image.fromarray(mask).save(out / "mask.png")
    picture = sorted(held.glob("chelsea*"))[0]
    panel = out / "inpainted-panel.png"
    masked = ("--image", picture, "--mask", out / "mask.png", "-n", 4, "--steps", 200)
    command("inpaint", run, *masked, "--out", out / "inpainted.png", "--panel", panel)
    command("sample", run, "-n", options.samples, "--out", out / "ours.npz")
    (out / "ours.json").write_text(json.dumps({"processor_seconds": used}))


def peer(options: argparse.Namespace) -> None:
    """diffusers' example, in the processor time of ours."""
    import quality

    budget = json.loads((options.out / "ours.json").read_text())["processor_seconds"]
    images = sf.images(str(options.out / "crops" / "train"), size=SIDE).tensor()
    options.diffusers_steps = options.peer_steps
    seconds = []
    for steps in (2, quality.SHORT, quality.LONG):
        torch.manual_seed(options.seed)
        begin = time.process_time()
        quality.diffusers(steps, options, images)
        seconds.append(time.process_time() - begin)
    steps = round(budget * (quality.LONG - quality.SHORT) / (seconds[2] - seconds[1]))
    torch.manual_seed(options.seed)
    trained = quality.diffusers(steps, options, images)
    print(f"diffusers: {trained.size:,} parameters, {steps} steps of 16", flush=True)
    np.savez(options.out / "diffusers.npz", images=trained.draw(options.samples).numpy())


def distances(options: argparse.Namespace) -> None:
    """Frechet distances to held_out/, over random features."""
    network = open_features("random")
    held = sf.images(str(options.out / "crops" / "held_out"), size=SIDE)
    train = sf.images(str(options.out / "crops" / "train"), size=SIDE)
    chosen = torch.randperm(train.size, generator=torch.Generator().manual_seed(0))[: options.samples].tolist()
    made = {"train/": train.subset(chosen)}
    for name in ("ours", "diffusers"):
        if (options.out / f"{name}.npz").exists():
            x = torch.from_numpy(np.load(options.out / f"{name}.npz")["images"]).float()
            if x.min() < 0 or x.max() <= 1:
                x = ((x.clamp(-1, 1) + 1) * 127.5).round()
            made[name] = array(x.to(torch.uint8), image=True)
    for name, items in made.items():
        figures = compare(network, items, held, progress=False)
        print(name, {key: f"{e.value:.3f} ± {1.96 * e.stderr:.3f}" for key, e in figures.items()}, flush=True)


def main() -> None:
    """Make the crops where they are missing, then do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--minutes", type=float, default=9.0, help="of training and judging")
    parser.add_argument("--steps", type=int, default=None, help="training steps in place of minutes, on a busy machine")
    parser.add_argument("--samples", type=int, default=300, help="for the distance")
    parser.add_argument("--peer", action="store_true", help="train the peer, in place of ours")
    parser.add_argument("--peer-steps", type=int, default=100, help="sampling steps of the peer, of 1,000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not (options.out / "crops").exists():
        write_crops(options.out / "crops")
    (peer if options.peer else ours)(options)
    distances(options)


if __name__ == "__main__":
    main()
