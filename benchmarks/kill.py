"""Kill a training run with SIGKILL at random moments, go on each time, and compare with a run left alone.

    python benchmarks/kill.py --kills 10

Every kill ends the real command (`python -m scorefield train`) without warning; the moments are spread over start-up,
training steps and the writing of checkpoints, of which there is one every few steps. Prints one line a kill, the number
of kills, how many fell into the writing of a checkpoint, and whether the final weights, averages and optimiser state
are the same bit for bit; the exit status is 1 if they are not.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def command(data: Path, out: Path, steps: int, preset: str) -> list[str]:
    """The training command that is killed."""
    source = ["--data", str(data)] if preset == "vectors" else ["--batch-size", "8"]
    every = ["--checkpoint-every", "5", "--log-every", "5", "--steps", str(steps)]
    return [sys.executable, "-m", "scorefield", "train", preset, *source, *every, "--device", "cpu", "--out", str(out)]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a training process, its progress thrown away."""
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def newest(run: Path) -> int:
    """The step of the newest checkpoint; -1 before the first."""
    return max((int(p.name[5:]) for p in run.glob("step-*")), default=-1)


def kill_once(words: list[str], run: Path, rng: random.Random, until: int) -> tuple[int, bool]:
    """Start the command and kill it a random time after its first new checkpoint, or during start-up.

    Returns the newest checkpoint left behind, and whether one was being written.
    """
    process, before = start(words), newest(run)
    if rng.random() < 0.1:
        time.sleep(rng.uniform(0.0, 3.0))
    else:
        while process.poll() is None and newest(run) <= before:
            time.sleep(0.001)
        goal = rng.uniform(0.0, 1.0)
        while process.poll() is None and goal > 0 and newest(run) < until:
            pause = rng.uniform(0.0, 0.05)
            time.sleep(pause)
            goal -= pause
    process.send_signal(signal.SIGKILL)
    process.wait()
    return newest(run), any(run.glob(".tmp-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--preset", choices=("vectors", "digits"), default="vectors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="scorefield-kill-"))
    data = place / "points.npy"
    np.save(data, np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32))
    try:
        whole, hurt = place / "whole", place / "hurt"
        begin = time.monotonic()
        if start(command(data, whole, options.steps, options.preset)).wait():
            print("the run that was left alone failed")
            return 1
        print(f"left alone: {options.steps} steps in {time.monotonic() - begin:.1f} s")
        words, writing, done = command(data, hurt, options.steps, options.preset), 0, 0
        # A kill may cost up to a checkpoint interval; the last stretch is kept free so that no kill comes too late.
        for number in range(options.kills):
            until = options.steps * (number + 1) // (options.kills + 1)
            at, amid = kill_once(words, hurt, rng, until)
            done, writing = done + 1, writing + amid
            print(
                f"kill {number + 1}: left step {at}" + (", while a checkpoint was written" if amid else ""), flush=True
            )
        if start(words).wait():
            print("the run that was killed could not be finished")
            return 1
        last = f"step-{options.steps:06d}"
        same = all((whole / last / name).read_bytes() == (hurt / last / name).read_bytes() for name in FILES)
        print(f"{done} kills, {writing} while a checkpoint was written; final state bitwise equal: {same}")
        return 0 if same else 1
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
