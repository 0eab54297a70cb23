"""scorefield encode."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import scorefield as sf
from scorefield.cli.data import code_solver, open_items
from scorefield.cli.files import check_suffix, write_codes
from scorefield.cli.options import (
    COUNT,
    Batches,
    Codes,
    Items,
    Name,
    OfRun,
    Result,
    Unset,
    check_writable,
    label_condition,
    open_run,
    plural,
)
from scorefield.evaluation.bits import model_input
from scorefield.progress import Bar


@dataclass(frozen=True, kw_only=True)
class Options(Codes, Batches, Items, OfRun):
    """Latent codes of data under a run, by the probability flow (Song et al. 2021, sec. 4.3).

    Example: scorefield encode runs/digits --data digits -n 16 --out codes.npz
    """

    n: Annotated[int | None, Unset("INT", "-n"), COUNT] = None
    """Only the first so many items."""
    out: Annotated[str, Name("FILE")] = "codes.npz"
    """.npz with the codes and the names of their items, or .npy with the codes alone."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    solver = code_solver(options.tolerance)
    check_suffix(options.out, (".npz", ".npy"))
    info = sf.training.read_run(options.run)
    data = open_items(options.data, info, grey=options.grey, skip_broken=options.skip_broken)
    check_writable(options.out)
    info, model = open_run(options.run, options.device)
    n = min(len(data), options.n or len(data))
    cond = label_condition(model, options.label, 1)
    begin, parts = time.monotonic(), []
    with Bar("encoding") as bar:
        for start in range(0, n, options.batch_size):
            index = range(start, min(start + options.batch_size, n))
            x = model_input(data, index, info.range).to(model.device)
            each = {name: value.expand(len(index)) for name, value in cond.items()}
            parts.append(sf.encode(model, x, solver, full=True, **each))
            bar(index.stop / n)
    codes = torch.cat([part.x.cpu() for part in parts])
    calls = float(torch.cat([part.nfe for part in parts]).float().mean())
    write_codes(options.out, codes, [data.item_name(i) for i in range(n)])
    noise = float(model.sde.sigma(model.sde.T)) if model.sde.tweedie else model.sde.prior(codes.shape).sample(0).std()
    spread = float(codes.cpu().double().std() / noise)
    seconds = time.monotonic() - begin
    text = (
        f"{plural(n, 'code')} of standard deviation {spread:.3f} (noise: 1), {calls:.0f} network calls each, "
        f"{seconds:.1f} s: {options.out}"
    )
    return Result(text, {"out": options.out, "n": n, "spread": spread, "nfe": calls, "seconds": seconds})
