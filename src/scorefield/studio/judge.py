"""How likely a picture is, and where in it the likelihood is lost."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scorefield.data import open_data
from scorefield.errors import InputError
from scorefield.evaluation.bits import item_places
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python
from scorefield.studio.work import Watch

MOST = 64
USUAL = {"digits": (1.233, 0.28)}
"""Bits/dim of held-out data of bundled models: mean, and spread over items (`python benchmarks/density.py bits`)."""


@dataclass(frozen=True)
class Judged:
    """A likelihood and its parts.

    Attributes:
        bits, stderr: bits per dimension and its standard error. nats: log-probability of the pixels as integers.
        where: bits that each entry costs, (C, H, W); their mean is `bits`. noise: the standard error of each.
        nfe: evaluations.
    """

    bits: float
    stderr: float
    nats: float
    where: Tensor
    noise: Tensor
    nfe: int


@dataclass(frozen=True)
class Judge:
    """The likelihood of a picture by the probability flow, exact but for probes and tolerance.

    Main arguments:
        image: a picture file. probes: random vectors, at least 2, whose spread gives the error. tolerance: of the solver.
    """

    image: str
    probes: int = 8
    tolerance: float = 1e-3
    seed: int = 0

    def run(self, opened: Opened, watch: Watch) -> Judged:
        """Follow the flow.

        Raises:
            InputError: an option out of range, or a trajectory that did not arrive.
        """
        if not 2 <= self.probes <= MOST:
            raise InputError(f"probes={self.probes} is impossible; give 2 to {MOST}, whose spread is the error bar")
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance={self.tolerance} is impossible; expected a number such as 0.001")
        data = open_data(self.image, opened.shape)
        found = item_places(
            opened.model,
            data,
            [0],
            opened.interval,
            seed=self.seed,
            probes=self.probes,
            tolerance=self.tolerance,
        )
        bits, lp = found.bits(), found.lp
        if int(lp.status[0]):
            raise InputError("the flow of this picture left the finite numbers; take a smaller tolerance")
        nats = -float(bits.sum()) * 0.6931471805599453
        stderr = float(lp.bits_stderr()[0])
        return Judged(float(bits.mean()), stderr, nats, bits[0].cpu(), found.bits_stderr()[0].cpu(), int(lp.nfe[0]))

    def python(self, opened: Opened) -> str:
        """The same in Python: `bits`, `stderr`, and `where` the bits of each entry."""
        options = f"seed={self.seed}, probes={self.probes}, tolerance={self.tolerance!r}"
        return python(
            "from scorefield.evaluation.bits import item_places",
            opened.load_line(),
            f"data = sf.data.open_data({self.image!r}, {opened.shape})",
            f"found = item_places(model, data, [0], {opened.interval}, {options})",
            "bits, stderr, where = found.lp.bits_per_dim(), found.lp.bits_stderr(), found.bits()",
        )

    def command(self, opened: Opened) -> str:
        """The same on the command line."""
        rest = options(probes=self.probes, tolerance=self.tolerance, seed=self.seed)
        return command("likelihood", opened.run, "--data", self.image, *rest, "--out", "bits.csv")
