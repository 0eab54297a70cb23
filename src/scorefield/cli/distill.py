"""scorefield distill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from scorefield.cli.options import (
    COUNT,
    Arrays,
    Batches,
    Name,
    OfRun,
    Reading,
    Result,
    open_run,
    pick_device,
    read_data,
)
from scorefield.errors import InputError

MEAN, STD = 0.2, 2.0
"""Of the log of the noise levels that are drawn: where the first of a few jumps is decided, and not where denoising is easy."""


@dataclass(frozen=True, kw_only=True)
class Options(Reading, Arrays, Batches, OfRun):
    """Teach a copy of a run to jump from noise to data in one to four evaluations (consistency distillation).

    The result is a run that samples with jumps; it has no score, and so no likelihood or code. The same command again goes
    on where the last one ended.

    Example: scorefield distill digits --data digits --out runs/fast --steps 2000
    """

    out: Annotated[str, Name("FOLDER")]
    """Folder of the distilled run."""
    data: Annotated[str, Name("DATA")] = "digits"
    """Data to be noised, that of the run: digits, a folder of images, a .npy or .npz file, .tar shards, or hf:NAME."""
    steps: Annotated[int, COUNT] = 2000
    """Optimiser steps."""
    lr: float = 5e-4
    """Learning rate, of Muon."""
    noise_levels: Annotated[int, COUNT] = 18
    """Levels of noise between which the map is made consistent; few are learned fast, and leave samples too wide."""
    ema: float = 0.99
    """Rate of the weight average, which is what samples."""
    checkpoint_every: Annotated[int, COUNT] = 500
    """Steps between checkpoints."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.consistency import Karras, Staged, consistency_loss
    from scorefield.flowmap import FlowMap, fixed_point_bias
    from scorefield.sde import GaussianSDE
    from scorefield.training import train
    from scorefield.training.config import OptimConfig

    if options.noise_levels < 2:
        raise InputError(f"--noise-levels={options.noise_levels} is impossible; expected 2 or more")
    info, teacher = open_run(options.run, options.device)
    if Path(options.out).resolve() == info.path.resolve():
        raise InputError(f"--out {options.out} is the run that is to be distilled; choose another folder")
    if not isinstance(teacher.sde, GaussianSDE) or isinstance(teacher, FlowMap):
        raise InputError(f"{options.run} has no probability flow to jump along; give a run with a score")
    if info.classes or info.scale is not None:
        what = "classes" if info.classes else "a table's units"
        raise InputError(f"{options.run} has {what}, which a distilled run would lose; use sf.consistency_loss")
    data = read_data(options, options.data, info.shape)
    student, pairs = FlowMap.from_model(teacher), Karras(options.noise_levels, mean=MEAN, std=STD)
    bias = fixed_point_bias(pairs.levels(teacher.sde, student.end), student.sigma_data, "heun")
    done = train(
        student,
        data,
        out=options.out,
        loss=Staged(consistency_loss, student, teacher=teacher.requires_grad_(False), pairs=pairs),
        device=pick_device(options.device),
        progress=False if options.json else None,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        optim=OptimConfig("muon", lr=options.lr, beta2=0.99, warmup=min(20, options.steps // 10)),
        ema=options.ema,
        dequantize=bool(info.config.get("arguments", {}).get("dequantize")),
        reduce="sum",
        checkpoint_every=options.checkpoint_every,
        keep_best=False,  # a distance to oneself does not say which weights are best
    )
    size = f"{100 * abs(bias):.2g} % too {'wide' if bias > 0 else 'narrow'}"
    told = f"with {options.noise_levels} levels a map at its fixed point is {size} on Gaussian data"
    rest = "sample with --steps 1 to 4" if done.finished else "stopped; the same command goes on from here"
    text = f"{options.out}: step {done.step} of {done.steps}, {rest}\n{told}"
    values = {"out": options.out, "step": done.step, "finished": done.finished, "bias": bias}
    return Result(text, values)
