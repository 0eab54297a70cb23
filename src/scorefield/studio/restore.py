"""What could have made a measurement: a picture is measured, and samples explain what was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from types import SimpleNamespace

import torch
from torch import Tensor

from scorefield.cli.names import operators
from scorefield.cli.restore import Seen, by_method, check_linear, check_method, read_operator, simulated
from scorefield.data import open_data
from scorefield.errors import InputError
from scorefield.studio.complete import MOST, Several
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python
from scorefield.studio.work import Watch

NEEDS_FILE = ("mask",)
"""Operators whose word is a file; the tab of completions has them."""


def choices(channels: int) -> list[str]:
    """Words for the operators, with an example of their number, that fit pictures of so many channels."""
    known = {name: cls for name, cls in operators().items() if name not in NEEDS_FILE}
    if channels == 1:
        known.pop("grayscale", None)
    return [f"{name}:{cls.example}" if cls.example else name for name, cls in known.items()]


@dataclass(frozen=True)
class Restored(Several):
    """Samples, what was seen, as a picture (C', H', W') of intensities, and psnr of their mean in dB."""

    seen: Tensor
    psnr: float


@dataclass(frozen=True)
class Restore:
    """n samples of the pictures that explain a noisy measurement of a picture.

    Main arguments:
        image: a picture file. operator: a word as on the command line, such as downsample:4.
        noise: standard deviation, of intensities from 0 to 1. method: a name of `inverse.restore`.
    """

    image: str
    operator: str = "downsample:4"
    noise: float = 0.05
    method: str = "mmps"
    n: int = 4
    steps: int | None = 20
    seed: int = 0

    def run(self, opened: Opened, watch: Watch) -> Restored:
        """Measure and restore.

        Raises:
            InputError: an option out of range, or a method that does not fit.
        """
        if not 1 <= self.n <= MOST:
            raise InputError(f"n={self.n} is impossible; give 1 to {MOST} samples")
        check_method(self.method, self.noise)
        seen = Seen(read_operator(self.operator, opened.shape, self.seed), opened.shape, opened.interval)
        check_linear(self.method, seen.operator)
        clean = open_data(self.image, opened.shape).tensor((0.0, 1.0))
        y = simulated(seen, clean, self.noise, self.seed)
        given = SimpleNamespace(**{f.name: getattr(self, f.name) for f in fields(self)}, batch_size=16)
        draw = by_method(given, self.method, seen.in_model)
        samples, nfe = draw(opened.model, seen.to_model(y).to(opened.model.device), self.noise * seen.scale)
        if not bool(torch.isfinite(samples).all()):
            raise InputError("the samples left the finite numbers; take more steps, or another method")
        low, high = opened.interval
        unit = (samples.detach().float().cpu() - low) / (high - low)
        psnr = -10 * math.log10(max(float((unit.mean(0) - clean[0]).square().mean()), 1e-20))
        return Restored(samples.detach().cpu(), nfe, seen.shown(y)[0], psnr)

    def python(self, opened: Opened) -> str:
        """The same in Python: `samples`, `mean` and `deviation`."""
        cls = operators()[self.operator.partition(":")[0]]
        value = self.operator.partition(":")[2]
        low, high = opened.interval
        made = f"sf.inverse.{cls.__name__}.from_word({value!r}, {opened.shape}, {self.seed})"
        return python(
            "from scorefield.cli.restore import Seen, simulated",
            opened.load_line(),
            f"image = sf.data.open_data({self.image!r}, {opened.shape}).tensor((0.0, 1.0))",
            f"seen = Seen({made}, {opened.shape}, ({low!r}, {high!r}))  # intensities from 0 to 1, and the model's range",
            f"y = seen.to_model(simulated(seen, image, {self.noise!r}, {self.seed}))",
            f"found = sf.inverse.restore(model, seen.in_model, y, {self._noise} * seen.scale, {self.n}, {self.method!r},"
            f"{'' if self.steps is None else f' steps={self.steps},'} seed={self.seed})",
            "samples, mean, deviation = found.samples[0], found.mean()[0], found.std()[0]",
        )

    def command(self, opened: Opened) -> str:
        """The same on the command line."""
        rest = options(
            operator=self.operator, noise=self.noise, method=self.method, n=self.n, steps=self.steps, seed=self.seed
        )
        return command("restore", opened.run, "--image", self.image, "--simulate", *rest, "--out", "restored.png")

    @property
    def _noise(self) -> float:
        from scorefield.inverse.restore import NOISELESS

        return 0.0 if self.method in NOISELESS else self.noise
