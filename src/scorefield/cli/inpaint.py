"""scorefield inpaint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import scorefield as sf
from scorefield.cli.names import read_solver
from scorefield.cli.options import Drawing, Flag, Name, Number, Result
from scorefield.cli.restore import Restoring, Seen, images_of, restoration
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.model import ScoreModel

STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Options(Restoring, Drawing):
    """Fill in the unknown part of an image by the paper's replacement method (Song et al. 2021, App. I.2).

    Example: scorefield inpaint runs/digits --image a.png --mask m.png --out y.png
    """

    mask: Annotated[str, Name("FILE")]
    """An image of the same size: white is known, black is filled in."""
    invert: Flag = False
    """White is filled in, black is known."""
    n: Number = 1
    """Number of different completions."""
    out: Annotated[str, Name("FILE")] = "inpainted.png"
    """.png (a grid if there are several), or .npy, .npz, .safetensors."""


def run(options: Options) -> Result:
    """Do what the options ask. Solver and steps are pc in 500 steps unless given; a distilled run jumps, in 20."""
    from scorefield.inverse.restore import MAP_STEPS
    from scorefield.inverse.words import read_mask

    read_solver(options.sampler)
    shape, interval = images_of(options.run)
    try:
        known = read_mask(options.mask, shape[1:], resize=options.resize, invert=options.invert)
    except InputError as error:
        hint = " (--invert: the reverse)" if "is filled in" in str(error) else ""
        raise InputError(f"--mask {error}{hint}") from error
    seen = Seen(sf.Mask(known), shape, interval)

    def draw(model: ScoreModel, y: Tensor, noise: float) -> tuple[Tensor, float]:
        operator = sf.Mask(known.to(model.device))
        jumps = isinstance(model, sf.FlowMap)
        done = sf.sample(
            model,
            options.n,
            read_solver(options.sampler or (None if jumps else "pc"), model.sde),
            steps=options.steps or (None if options.sampler else MAP_STEPS if jumps else STEPS),
            shape=shape,
            seed=options.seed,
            batch_size=options.batch_size,
            hooks=[sf.Replace(operator, operator(y).expand(options.n, *shape))],
            full=True,
        )
        return done.x, float(done.nfe.float().mean())

    return restoration(options, seen, options.panel, 0.0, draw, "known", "completion")
