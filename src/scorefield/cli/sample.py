"""scorefield sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

import scorefield as sf
from scorefield.bundled import results_folder
from scorefield.cli.figures import is_figure, write_items
from scorefield.cli.files import check_format, is_image, write_samples
from scorefield.cli.names import check_solver, draws_noise, read_solver
from scorefield.cli.options import (
    COUNT,
    Common,
    Drawing,
    Grid,
    Name,
    Number,
    Result,
    Unset,
    check_temperature,
    check_writable,
    drawn,
    label_condition,
    open_run,
    plural,
)
from scorefield.cli.states import draw_states, holds_states
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Drawing, Grid, Common):
    """Draw samples from a run, as a picture or as an array. Sample i of a seed is the same whatever -n and --batch-size.

    Example: scorefield sample runs/digits -n 64 --sampler pc --steps 1000 --out x.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")] = "digits"
    """Folder that train wrote; the bundled model of digits unless given."""
    n: Number = 64
    """Number of samples."""
    temperature: float = 1.0
    """Factor on the noise at the start, for samplers without noise of their own; below 1 samples become more typical."""
    pilots: Annotated[int | None, Unset("INT"), COUNT] = None
    """Trajectories that are followed first, to fit the default sampler to the model."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of the samples, where the run has classes."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid; a figure of what is no image), or .npy, .npz, .safetensors (floats in the model's range; of a run on data
    of your own, in the units of the data); samples.png or .npy in RUN unless given. For text .txt, for tables .csv."""
    data: Annotated[str | None, Unset("DATA")] = None
    """Data that a figure shows beside the samples."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield import parallel
    from scorefield.randomness import SeedRows

    _check(options)
    if holds_states(sf.training.read_run(options.run)):
        return _states(options)
    shape = sf.training.read_run(options.run).shape
    out = options.out or str(results_folder(options.run) / f"samples{'.png' if is_image(shape) else '.npy'}")
    figure = is_figure(out, shape, options.data)
    if not figure:
        check_format(out, shape)
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond, sde = label_condition(model, options.label, 1), model.sde
    start: dict[str, Any] = {}
    if options.temperature != 1:
        std = options.temperature * float(sde.sigma(sde.T))
        start["prior"] = sf.prior.Prior((options.n, *info.shape), std)
    begin, processes = time.monotonic(), parallel.join(model.device.type)
    rows, parts = processes.share(options.n), []
    if rows:
        result = drawn(
            options,
            model,
            len(rows),
            info.shape,
            seed=SeedRows(options.seed, rows),
            pilots=options.pilots,
            progress=None if processes.main else False,
            **start,
            **{name: value.expand(len(rows)) for name, value in cond.items()},
        )
        parts.append((result.x.cpu(), result.nfe.cpu()))
    gathered = processes.gather(parts)
    if not processes.main:
        return Result("")
    x, nfe = (torch.cat(values) for values in zip(*gathered, strict=True))
    low, high = info.range or sde.range
    if info.scale is not None:
        x = info.in_units(x)
        low, high = float(x.min()), float(x.max())
    if figure:
        write_items(out, x, info, options.data, options.seed)
    else:
        write_samples(out, x, low, high, options.columns, names=info.data.get("columns", ()))
    seconds, calls = time.monotonic() - begin, float(nfe.float().mean())
    text = f"{plural(options.n, 'sample')}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    return Result(text, {"out": out, "n": options.n, "nfe": calls, "seconds": seconds, "seed": options.seed})


def _check(options: Options) -> None:
    """Refuse a sampler or temperature that cannot be, or not together."""
    check_temperature(options.temperature)
    check_solver(options.sampler)
    if holds_states(sf.training.read_run(options.run)):
        return
    if draws_noise(read_solver(options.sampler)) and options.temperature != 1:
        raise InputError(
            f"--temperature needs a sampler without noise of its own, not {options.sampler}; "
            "choose uni-pc, dpm-solver, heun or dopri5"
        )


def _states(options: Options) -> Result:
    """Samples of a run of states."""
    if options.temperature != 1:
        raise InputError("--temperature is for runs of continuous data; leave it out")
    return draw_states(options, "samples")
