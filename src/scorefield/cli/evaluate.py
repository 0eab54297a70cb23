"""scorefield evaluate."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import scorefield as sf
from scorefield.bundled import results_folder
from scorefield.cli.names import read_solver
from scorefield.cli.options import (
    COUNT,
    Drawing,
    Name,
    OfRun,
    Result,
    Unset,
    check_writable,
    pick_device,
)
from scorefield.cli.states import holds_states
from scorefield.errors import InputError
from scorefield.files import atomic_file, cache_folder, finite
from scorefield.parallel import launched
from scorefield.training.describe import from_json


@dataclass(frozen=True, kw_only=True)
class Options(Drawing, OfRun):
    """Judge a run: Frechet distance, KID, precision, recall, density, coverage, Inception score, each with its error.

    Samples stay, so that the same command goes on after a kill, and a larger -n adds to them. Features
    of the data stay in the cache folder. With torchrun or accelerate launch, all processes draw.

    Example: scorefield evaluate runs/digits --data digits -n 2000 --likelihood 100
    """

    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, a .npy, .npz or .csv file, .tar shards, torchvision:NAME or hf:NAME."""
    sampler: Annotated[str | None, Unset("NAME[:OPTION=VALUE,...]")] = None
    """As for sample; dpm-solver unless given."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2000
    """Samples; 0 draws none. Published distances are of 50000; figures of different n cannot be compared."""
    reference: Annotated[int | None, Unset("INT"), COUNT] = None
    """Compare with only the first so many items of the data."""
    features: Annotated[str | None, Unset("NAME")] = None
    """digits, inception, inception:WEIGHTS.pth, raw, or a TorchScript file that you trust; by the shape unless given."""
    likelihood: int = 0
    """Items of the data whose bits per dimension are averaged."""
    loss: int = 0
    """Items of the data whose loss is averaged."""
    neighbours: Annotated[int, COUNT] = 5
    """Neighbours that set the radii of precision, recall, density and coverage."""
    out: Annotated[str | None, Unset("FILE")] = None
    """The figures as JSON; RUN/evaluation.json unless given."""
    samples: Annotated[str | None, Unset("FOLDER")] = None
    """Where the samples stay; RUN/evaluation unless given, or the cache folder where RUN may only be read."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    for name in ("n", "likelihood", "loss"):
        if (value := getattr(options, name)) < 0 or (name == "n" and value == 1):
            raise InputError(f"--{name}={value} is impossible; expected 0, or {'2' if name == 'n' else '1'} or more")
    if not options.n and not options.likelihood and not options.loss:
        raise InputError("nothing to do; give -n, --likelihood or --loss a positive number")
    info = sf.training.read_run(options.run)
    if holds_states(info):
        raise InputError(
            f"{options.run} is a run of states, whose judge is its bound: scorefield likelihood {options.run} --data DATA"
        )
    out = options.out or str(results_folder(options.run) / "evaluation.json")
    sampler = read_solver(options.sampler, from_json(info.model["sde"]))
    sampler = sampler or (sf.Jump() if "map" in info.model else sf.DPMSolver())
    check_writable(out)
    found = sf.evaluate(
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
        samples=options.samples or _samples_folder(results_folder(options.run)),
        device=pick_device(options.device),
    )
    if not launched().main:
        return Result("")
    about = {"data": options.data, "sampler": repr(sampler), "steps": options.steps, "seed": options.seed}
    values = {**found.values(), **about}
    with atomic_file(out, "w") as file:
        json.dump(finite(values), file, indent=1)
    return Result(f"{found}\n{out}", values | {"out": out})


def _samples_folder(run: Path) -> Path:
    """RUN/evaluation; where a run may only be read, a folder of its name in the cache."""
    place = run / "evaluation"
    if os.access(place if place.exists() else run, os.W_OK):
        return place
    digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:8]
    return cache_folder() / "evaluation" / f"{run.resolve().name}-{digest}"
