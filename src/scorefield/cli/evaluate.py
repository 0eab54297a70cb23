"""scorefield evaluate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.names import SamplerName, make_sampler
from scorefield.cli.options import Common, Name, Result, Unset, check_count, check_writable, pick_device
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Judge a run: Frechet distance, KID, precision, recall, density, coverage, Inception score, each with its error.

    Samples stay in RUN/evaluation, so that the same command goes on after a kill, and a larger -n adds to them. Features
    of the data stay in the cache folder. With torchrun or accelerate launch, all processes draw.

    Example: scorefield evaluate runs/digits --data digits -n 2000 --likelihood 100
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, a .npy or .npz file, .tar shards, torchvision:NAME or hf:NAME."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000
    """Samples; 0 draws none. Published distances are of 50000; figures of different n cannot be compared."""
    reference: Annotated[int | None, Unset("INT")] = None
    """Compare with only the first so many items of the data."""
    features: Annotated[str | None, Unset("NAME")] = None
    """digits, inception, inception:WEIGHTS.pth, raw, or a TorchScript file that you trust; by the shape unless given."""
    likelihood: int = 0
    """Items of the data whose bits per dimension are averaged."""
    loss: int = 0
    """Items of the data whose loss is averaged."""
    neighbours: int = 5
    """Neighbours that set the radii of precision, recall, density and coverage."""
    sampler: SamplerName = "dpm"
    """As for sample."""
    steps: Annotated[int | None, Unset("INT")] = None
    """Steps; the sampler's own number unless given."""
    snr: Annotated[float | None, Unset("FLOAT")] = None
    """Signal-to-noise ratio of the corrector."""
    seed: int = 0
    """Decides the samples, the probes and the times of the loss."""
    batch_size: int = 64
    """Samples at a time."""
    out: Annotated[str | None, Unset("FILE")] = None
    """The figures as JSON; RUN/evaluation.json unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.bundled import results_folder
    from scorefield.evaluation import evaluate
    from scorefield.files import atomic_file
    from scorefield.parallel import launched
    from scorefield.training import read_run
    from scorefield.training.describe import from_json

    for name in ("reference", "steps", "batch_size", "neighbours"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    for name in ("n", "likelihood", "loss"):
        if (value := getattr(options, name)) < 0 or (name == "n" and value == 1):
            raise InputError(f"--{name}={value} is impossible; expected 0, or {'2' if name == 'n' else '1'} or more")
    if not options.n and not options.likelihood and not options.loss:
        raise InputError("nothing to do; give -n, --likelihood or --loss a positive number")
    info = read_run(options.run)
    out = options.out or str(results_folder(options.run) / "evaluation.json")
    check_writable(out)
    sampler = make_sampler(options.sampler, from_json(info.model["sde"]), options.snr)
    found = evaluate(
        options.run,
        options.data,
        options.n,
        features=options.features,
        reference=options.reference,
        likelihood=options.likelihood,
        loss=options.loss,
        solver=sampler,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
        neighbours=options.neighbours,
        device=pick_device(options.device),
    )
    if not launched().main:
        return Result("")
    about = {"data": options.data, "sampler": repr(sampler), "steps": options.steps, "seed": options.seed}
    values = {**found.values(), **about}
    with atomic_file(out, "w") as file:
        json.dump(values, file, indent=1)
    return Result(f"{found}\n{out}", values | {"out": out})
