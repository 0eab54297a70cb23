"""scorefield sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.data import label_condition
from scorefield.cli.names import FLOW_SAMPLERS, SamplerName, make_sampler
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
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Draw samples from a run, as a picture or as an array.

    Example: scorefield sample runs/digits -n 64 --sampler pc --steps 1000 --out x.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")] = "digits"
    """Folder that train wrote; the bundled model of digits unless given."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of samples."""
    sampler: SamplerName = "dpm"
    """pc is the paper's predictor-corrector sampler; dpm is fast."""
    steps: Annotated[int | None, Unset("INT")] = None
    """Steps; the sampler's own number unless given, and as many as needed for the adaptive ones."""
    snr: Annotated[float | None, Unset("FLOAT")] = None
    """Signal-to-noise ratio of the corrector; 0.16 for VE and 0.01 for VP unless given."""
    temperature: float = 1.0
    """Factor on the noise at the start, for samplers without noise of their own; below 1 samples become more typical."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of the samples, where the run has classes."""
    seed: int = 0
    """Sample i of a seed is the same whatever -n and --batch-size."""
    batch_size: int = 64
    """Samples at a time."""
    columns: Annotated[int | None, Unset("INT")] = None
    """Images in a row of the picture."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid), or .npy, .npz, .safetensors (floats in the model's range); samples.png or .npy in RUN unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield import parallel
    from scorefield.bundled import results_folder
    from scorefield.cli.files import check_format, is_image, write_samples
    from scorefield.prior import Prior
    from scorefield.randomness import SeedRows
    from scorefield.sampling import sample
    from scorefield.training import read_run

    for name in ("n", "steps", "batch_size", "columns"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    check_temperature(options.temperature)
    if options.temperature != 1 and options.sampler not in FLOW_SAMPLERS:
        raise InputError(
            f"--temperature needs a sampler without noise of its own, not {options.sampler}; "
            f"choose one of {', '.join(FLOW_SAMPLERS)}"
        )
    shape = read_run(options.run).shape
    out = options.out or str(results_folder(options.run) / f"samples{'.png' if is_image(shape) else '.npy'}")
    check_format(out, shape)
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond = label_condition(model, options.label, 1)
    prior = Prior((options.n, *info.shape), options.temperature * float(model.sde.sigma(model.sde.T)))
    begin, processes = time.monotonic(), parallel.join(model.device.type)
    rows, parts = processes.share(options.n), []
    if rows:
        result = sample(
            model,
            len(rows),
            make_sampler(options.sampler, model.sde, options.snr),
            steps=options.steps,
            shape=info.shape,
            seed=SeedRows(options.seed, rows),
            batch_size=options.batch_size,
            prior=prior,
            full=True,
            progress=None if processes.main else False,
            **{name: value.expand(len(rows)) for name, value in cond.items()},
        )
        parts.append((result.x.cpu(), result.nfe.cpu()))
    gathered = processes.gather(parts)
    if not processes.main:
        return Result("")
    x, nfe = (torch.cat(values) for values in zip(*gathered, strict=True))
    low, high = info.range or model.sde.range
    write_samples(out, x, low, high, options.columns)
    seconds, calls = time.monotonic() - begin, float(nfe.double().mean())
    text = f"{plural(options.n, 'sample')}, {calls:.0f} network calls each, {seconds:.1f} s: {out}"
    return Result(text, {"out": out, "n": options.n, "nfe": calls, "seconds": seconds, "seed": options.seed})
