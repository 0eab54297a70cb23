"""scorefield decode."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.data import code_solver, label_condition
from scorefield.cli.options import (
    Common,
    Name,
    Result,
    Unset,
    check_count,
    check_temperature,
    check_writable,
    open_run,
    plural,
)


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Data from latent codes, by the probability flow: what encode did, backwards.

    Example: scorefield decode runs/digits codes.npz --temperature 0.9 --out x.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    codes: Annotated[str, tyro.conf.Positional, Name("CODES")]
    """.npz or .npy file of codes, such as encode writes."""
    temperature: float = 1.0
    """Factor on the codes; below 1 samples become more typical and less diverse."""
    tolerance: float = 1e-6
    """Relative and absolute tolerance of the solver, for every entry."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of all items, where the run has classes."""
    batch_size: int = 50
    """Items at a time."""
    columns: Annotated[int | None, Unset("INT")] = None
    """Images in a row of the picture."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid), or .npy, .npz, .safetensors (floats in the model's range); decoded.png or .npy unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield.cli.files import check_format, is_image, write_samples
    from scorefield.cli.latents import read_codes
    from scorefield.progress import Bar
    from scorefield.sampling import decode
    from scorefield.training import read_run

    for name in ("batch_size", "columns"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    solver = code_solver(options.tolerance)
    check_temperature(options.temperature)
    shape = read_run(options.run).shape
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
            parts.append(decode(model, part.to(model.device, model.dtype), solver, full=True, **each))
            bar(sum(len(done.x) for done in parts) / len(codes))
    low, high = info.range or model.sde.range
    write_samples(out, torch.cat([part.x for part in parts]), low, high, options.columns)
    seconds, calls = time.monotonic() - begin, float(torch.cat([part.nfe for part in parts]).double().mean())
    text = f"{plural(len(codes), 'sample')}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    return Result(text, {"out": out, "n": len(codes), "nfe": calls, "seconds": seconds})
