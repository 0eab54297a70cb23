"""scorefield encode."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.data import code_solver, label_condition, open_items
from scorefield.cli.options import Common, Flag, Name, Result, Unset, check_count, check_writable, open_run, plural


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Latent codes of data under a run, by the probability flow (Song et al. 2021, sec. 4.3).

    Example: scorefield encode runs/digits --data digits -n 16 --out codes.npz
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    data: Annotated[str, Name("DATA")] = "digits"
    """digits (the held-out ones), a folder of images, an image, or a .npy or .npz file."""
    n: Annotated[int | None, Unset("INT", "-n")] = None
    """Only the first so many items."""
    tolerance: float = 1e-6
    """Relative and absolute tolerance of the solver, for every entry."""
    label: Annotated[int | None, Unset("INT")] = None
    """Class of all items, where the run has classes."""
    batch_size: int = 50
    """Items at a time."""
    grey: Flag = False
    """Turn colour images to grey where the run is grey."""
    skip_broken: Flag = False
    """Leave out files that are not images."""
    out: Annotated[str, Name("FILE")] = "codes.npz"
    """.npz with the codes and the names of their items, or .npy with the codes alone."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield.cli.latents import check_suffix, write_codes
    from scorefield.evaluation.bits import model_input
    from scorefield.progress import Bar
    from scorefield.sampling import encode
    from scorefield.training import read_run

    for name in ("n", "batch_size"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    solver = code_solver(options.tolerance)
    check_suffix(options.out)
    info = read_run(options.run)
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
            parts.append(encode(model, x, solver, full=True, **each))
            bar(index.stop / n)
    codes = torch.cat([part.x.cpu() for part in parts])
    calls = float(torch.cat([part.nfe for part in parts]).double().mean())
    write_codes(options.out, codes, [data.item_name(i) for i in range(n)])
    spread = float(codes.double().std() / model.sde.sigma(model.sde.T))
    seconds = time.monotonic() - begin
    text = (
        f"{plural(n, 'code')} of standard deviation {spread:.3f} (noise: 1), {calls:.0f} network calls each, "
        f"{seconds:.1f} s: {options.out}"
    )
    return Result(text, {"out": options.out, "n": n, "spread": spread, "nfe": calls, "seconds": seconds})
