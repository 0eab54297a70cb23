"""Completions of a picture of which a part is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import scorefield as sf
from scorefield.cli.names import read_solver
from scorefield.data import open_data
from scorefield.errors import InputError
from scorefield.inverse.words import read_mask
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python, solver_argument
from scorefield.studio.work import Watch

MOST = 16


@dataclass(frozen=True)
class Several:
    """Samples (n, C, H, W) that explain the same, and evaluations."""

    samples: Tensor
    nfe: float

    @property
    def mean(self) -> Tensor:
        """Of the samples, (C, H, W)."""
        return self.samples.mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each entry over the samples, (C, H, W)."""
        return self.samples.std(0, correction=1 if len(self.samples) > 1 else 0)


@dataclass(frozen=True)
class Completed(Several):
    """Completions, and what was known, (1, 1, H, W) booleans."""

    known: Tensor


@dataclass(frozen=True)
class Complete:
    """n completions by the paper's replacement method (Song et al. 2021, App. I.2).

    Main arguments:
        image, mask: picture files; the mask is white where the image is known.
    """

    image: str
    mask: str
    n: int = 4
    sampler: str = "pc"
    steps: int | None = 50
    seed: int = 0

    def run(self, opened: Opened, watch: Watch) -> Completed:
        """Draw them.

        Raises:
            InputError: an option out of range, or a mask that leaves nothing to do.
        """
        if not 1 <= self.n <= MOST:
            raise InputError(f"n={self.n} is impossible; give 1 to {MOST} completions")
        try:
            known = read_mask(self.mask, opened.shape[1:])
        except InputError as error:
            what = "cover the part that is to be filled in" if "nothing to fill" in str(error) else "leave a part of it"
            raise InputError(
                f"the whole picture is {'known' if 'nothing to fill' in str(error) else 'covered'}; {what}"
            ) from error
        model, low, high = opened.model, *opened.interval
        image = open_data(self.image, opened.shape).tensor((low, high)).to(model.device)
        operator = sf.Mask(known.to(model.device))
        done = sf.sample(
            model,
            self.n,
            read_solver(self.sampler or None, model.sde, "sampler"),
            steps=self.steps,
            seed=self.seed,
            shape=opened.shape,
            hooks=[sf.Replace(operator, operator(image).expand(self.n, *opened.shape)), watch.hook],
            full=True,
            progress=False,
        )
        return Completed(done.x.cpu(), float(done.nfe.double().mean()), known.unsqueeze(0))

    def python(self, opened: Opened) -> str:
        """The same in Python: `samples`, `mean` and `deviation`."""
        solver = solver_argument(self.sampler, opened.model.sde)
        steps = "" if self.steps is None else f", steps={self.steps}"
        _, height, width = opened.shape
        return python(
            opened.load_line(),
            f"image = sf.data.open_data({self.image!r}, {opened.shape}).tensor({opened.interval})",
            f"known = sf.data.open_data({self.mask!r}, (1, {height}, {width})).tensor()[0] > 0",
            "A = sf.Mask(known)",
            f"samples = sf.sample(model, {self.n}{solver}{steps}, seed={self.seed}, hooks=[sf.Replace(A, A(image))])",
            "mean, deviation = samples.mean(0), samples.std(0)",
        )

    def command(self, opened: Opened) -> str:
        """The same on the command line."""
        rest = options(n=self.n, sampler=self.sampler, steps=self.steps, seed=self.seed)
        files = ("--image", self.image, "--mask", self.mask)
        return command("inpaint", opened.run, *files, *rest, "--out", "completed.png", "--panel", "panel.png")


def covered(known: Tensor, image: Tensor, low: float) -> Tensor:
    """An image (C, H, W) with nothing where it is not known."""
    return torch.where(known[0], image, torch.full_like(image, low))
