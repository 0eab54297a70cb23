"""scorefield convert."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scorefield.cli.options import Common, Flag, Name, Result, check_writable
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Make a run of a checkpoint file of the official code, or of guided diffusion, without running pickled code.

    Example: scorefield convert checkpoint_24.pth --preset ve/cifar10_ncsnpp_continuous --out runs/cifar10
    """

    checkpoint: Annotated[str, tyro.conf.Positional, Name("CHECKPOINT.pth")]
    """File with optimizer, model, ema and step."""
    preset: Annotated[str, Name("NAME")]
    """Official name of its configuration, or a .json file that holds one; adm/NAME, or its flags, for guided diffusion."""
    out: Annotated[str, Name("RUN")]
    """Folder of the new run."""
    raw: Flag = False
    """Take the weights themselves rather than their moving averages."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.presets import read
    from scorefield.presets.guided import is_guided
    from scorefield.pretrained import load_guided, official_model, read_checkpoint
    from scorefield.training.run import RUN_FILE, write_converted

    folder = Path(options.out)
    if (folder / RUN_FILE).exists():
        raise InputError(f"--out {options.out} is a run already; choose another folder")
    guided = is_guided(options.preset)
    preset = None if guided else read(options.preset)
    check_writable(folder / RUN_FILE)
    if preset is None:
        if options.raw:
            raise InputError("--raw: a file of guided diffusion holds one set of weights; leave it out")
        model, step, shown = load_guided(options.checkpoint, options.preset), 0, (-1.0, 1.0)
    else:
        checkpoint = read_checkpoint(options.checkpoint)
        model, step = official_model(preset, checkpoint.weights(not options.raw)), checkpoint.step
        shown = (-1.0, 1.0) if preset.data.centered else (0.0, 1.0)
    write_converted(folder, model, shown, step, options.checkpoint)
    size = sum(p.numel() for p in model.parameters())
    kind = "weights" if options.raw or guided else "averaged weights"
    text = f"{options.out}: {kind}{'' if guided else f' of step {step}'}, {size:,} parameters"
    return Result(text, {"out": options.out, "step": step, "parameters": size})
