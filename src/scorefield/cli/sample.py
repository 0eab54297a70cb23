"""scorefield sample."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.common import Common, Name, Result, Unset, check_count, check_writable, open_run, plural
from scorefield.cli.samplers import SamplerName, make_sampler
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Draw samples from a run, as a picture or as an array.

    Example: scorefield sample runs/digits -n 64 --sampler pc --steps 1000 --out x.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """Number of samples."""
    sampler: SamplerName = "dpm"
    """pc is the paper's predictor-corrector sampler; dpm is fast."""
    steps: Annotated[int | None, Unset("INT")] = None
    """Steps; the sampler's own number unless given, and as many as needed for the adaptive ones."""
    snr: Annotated[float | None, Unset("FLOAT")] = None
    """Signal-to-noise ratio of the corrector; 0.16 for VE and 0.01 for VP unless given."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of the samples, where the run has classes."""
    seed: int = 0
    """Sample i of a seed is the same whatever -n and --batch-size."""
    batch_size: int = 64
    """Samples at a time."""
    columns: Annotated[int | None, Unset("INT")] = None
    """Images in a row of the picture."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid), or .npy, .npz, .safetensors (floats in the model's range); RUN/samples.png or .npy unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield import parallel
    from scorefield.cli.output import check_format, write_samples
    from scorefield.noise import SeedRows
    from scorefield.sample import sample
    from scorefield.train import read_run

    for name in ("n", "steps", "batch_size", "columns"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    shape = read_run(options.run).shape
    image = len(shape) == 3 and shape[0] in (1, 3)
    out = options.out or f"{options.run}/samples{'.png' if image else '.npy'}"
    check_format(out, shape)
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond = {}
    if options.label is not None:
        classes = getattr(model.net, "num_classes", 0)
        if not 0 <= options.label < classes:
            right = f"one from 0 to {classes - 1}" if classes else "none, since this run has no classes"
            raise InputError(f"--label={options.label} does not exist; give {right}")
        cond["label"] = torch.full((), options.label, device=model.device)
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
