"""scorefield interpolate."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Annotated

import tyro

import scorefield as sf
from scorefield.cli.data import code_solver, open_items
from scorefield.cli.files import check_format, is_image, write_samples
from scorefield.cli.options import (
    Codes,
    Items,
    Number,
    OfRun,
    Result,
    Unset,
    check_temperature,
    check_writable,
    label_condition,
    open_run,
    plural,
)
from scorefield.errors import InputError
from scorefield.evaluation.bits import model_input
from scorefield.latent import interpolate


@dataclass(frozen=True, kw_only=True)
class Options(Codes, Items, OfRun):
    """Paths between items of data, along great circles between their latent codes (Song et al. 2021, sec. 4.3).

    Example: scorefield interpolate runs/digits --data digits --pairs 0,1 2,3 --out path.png
    """

    pairs: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FROM,TO")] = ("0,1",)
    """Numbers of the items at both ends of a path, the first being 0; one row of the picture for each pair."""
    tolerance: float = 1e-4
    """Relative and absolute tolerance of the solver, for every entry."""
    n: Number = 9
    """Points on a path, both ends included."""
    temperature: float = 1.0
    """Factor on the codes; below 1 samples become more typical and less diverse."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a row for each path), or .npy, .npz, .safetensors; path.png or .npy unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    if options.n < 2:
        raise InputError(f"--n={options.n} is impossible; both ends belong to a path, so expected 2 or more")
    solver = code_solver(options.tolerance)
    check_temperature(options.temperature)
    info = sf.training.read_run(options.run)
    out = options.out or f"path{'.png' if is_image(info.shape) else '.npy'}"
    check_format(out, info.shape)
    data = open_items(options.data, info, grey=options.grey, skip_broken=options.skip_broken)
    pairs = [_pair(word, len(data)) for word in options.pairs]
    if not pairs:
        raise InputError("--pairs needs a value, such as 0,1")
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond = label_condition(model, options.label, 1)
    begin, paths = time.monotonic(), []
    for pair in pairs:
        first, last = model_input(data, pair, info.range).to(model.device)
        paths.append(interpolate(model, first, last, options.n, temperature=options.temperature, solver=solver, **cond))
    low, high = info.range or model.sde.range
    write_samples(out, torch.cat(paths), low, high, options.n)
    seconds = time.monotonic() - begin
    text = f"{plural(len(pairs), 'path')} of {options.n} points, {seconds:.1f} s: {out}"
    return Result(text, {"out": out, "pairs": [list(p) for p in pairs], "n": options.n, "seconds": seconds})


def _pair(word: str, size: int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,18}),(\d{1,18})", word)
    if not match:
        raise InputError(f"--pairs={word!r} cannot be read; expected two numbers of items, such as 0,1")
    first, last = int(match[1]), int(match[2])
    if max(first, last) >= size:
        raise InputError(f"--pairs={word!r}: there are {size} items, numbered from 0 to {size - 1}")
    return first, last
