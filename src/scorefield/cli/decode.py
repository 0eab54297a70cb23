"""scorefield decode."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

import scorefield as sf
from scorefield.cli.data import code_solver
from scorefield.cli.files import check_format, is_image, read_codes, write_samples
from scorefield.cli.options import (
    Batches,
    Codes,
    Grid,
    Name,
    OfRun,
    Result,
    Unset,
    check_temperature,
    check_writable,
    label_condition,
    open_run,
    plural,
)
from scorefield.progress import Bar


@dataclass(frozen=True, kw_only=True)
class Options(Codes, Batches, Grid, OfRun):
    """Data from latent codes, by the probability flow: what encode did, backwards.

    Example: scorefield decode runs/digits codes.npz --temperature 0.9 --out x.png
    """

    codes: Annotated[str, tyro.conf.Positional, Name("CODES")]
    """.npz or .npy file of codes, such as encode writes."""
    temperature: float = 1.0
    """Factor on the codes; below 1 samples become more typical and less diverse."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid), or .npy, .npz, .safetensors (floats in the model's range); decoded.png or .npy unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    solver = code_solver(options.tolerance)
    check_temperature(options.temperature)
    shape = sf.training.read_run(options.run).shape
    out = options.out or f"decoded{'.png' if is_image(shape) else '.npy'}"
    check_format(out, shape)
    codes = options.temperature * read_codes(options.codes, shape)
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond = label_condition(model, options.label, 1)
    begin, parts = time.monotonic(), []
    with Bar("decoding") as bar:
        for part in torch.split(codes, options.batch_size):
            each = {name: value.expand(len(part)) for name, value in cond.items()}
            parts.append(sf.decode(model, part.to(model.device, model.dtype), solver, full=True, **each))
            bar(sum(len(done.x) for done in parts) / len(codes))
    low, high = info.range or model.sde.range
    write_samples(out, torch.cat([part.x for part in parts]), low, high, options.columns)
    seconds, calls = time.monotonic() - begin, float(torch.cat([part.nfe for part in parts]).float().mean())
    text = f"{plural(len(codes), 'sample')}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    return Result(text, {"out": out, "n": len(codes), "nfe": calls, "seconds": seconds})
