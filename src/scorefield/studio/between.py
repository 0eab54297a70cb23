"""What lies between two pictures, by their codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from scorefield.cli.data import code_solver
from scorefield.cli.options import check_temperature
from scorefield.data import open_data
from scorefield.errors import InputError
from scorefield.latent import interpolate
from scorefield.studio.opened import Opened
from scorefield.studio.words import command, options, python
from scorefield.studio.work import Watch

MOST = 33


@dataclass(frozen=True)
class Between:
    """Points on the great circle between two codes, decoded (Song et al. 2021, sec. 4.3).

    Main arguments:
        folder: a folder of two pictures, the first by name being the start. tolerance: of the solver, for every entry.
        temperature: factor on the codes.
    """

    folder: str
    n: int = 9
    tolerance: float = 1e-3
    temperature: float = 1.0

    def run(self, opened: Opened, watch: Watch) -> Tensor:
        """The points, (n, C, H, W), both ends included.

        Raises:
            InputError: an option out of range.
        """
        if not 2 <= self.n <= MOST:
            raise InputError(f"n={self.n} is impossible; give 2 to {MOST} points, both ends included")
        check_temperature(self.temperature)
        solver = code_solver(self.tolerance)
        ends = open_data(self.folder, opened.shape).tensor(opened.interval).to(opened.model.device)
        if len(ends) != 2:
            raise InputError(f"{Path(self.folder).name} holds {len(ends)} pictures; two are needed")
        done = interpolate(
            opened.model, ends[0], ends[1], self.n, temperature=self.temperature, solver=solver, progress=False
        )
        return done.cpu()

    def python(self, opened: Opened) -> str:
        """The same in Python: `x`, both ends included."""
        warm = "" if self.temperature == 1 else f", temperature={self.temperature!r}"
        return python(
            opened.load_line(),
            f"first, last = sf.data.open_data({self.folder!r}, {opened.shape}).tensor({opened.interval})",
            f'solver = sf.Dopri5({self.tolerance!r}, {self.tolerance!r}, norm="max")',
            f"x = sf.latent.interpolate(model, first, last, {self.n}{warm}, solver=solver)",
        )

    def command(self, opened: Opened) -> str:
        """The same on the command line."""
        warm = None if self.temperature == 1 else self.temperature
        rest = options(n=self.n, tolerance=self.tolerance, temperature=warm)
        return command("interpolate", opened.run, "--data", self.folder, "--pairs", "0,1", *rest, "--out", "path.png")
