"""Euler-Maruyama for drifts that grow faster than the state."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from scorefield.diffusion import tame
from scorefield.solve.reverse import EulerMaruyama


@dataclass(frozen=True)
class TamedEuler(EulerMaruyama):
    r"""Tamed Euler-Maruyama on the reverse SDE, x + h f / (1 + h |f| / reach) + g dw (Hutzenthaler et al. 2012, sec. 1).

    Where a drift grows faster than the state, as that of a double well does, each step of `EulerMaruyama` can overshoot
    further than the last, and a few samples leave the finite numbers; here no drift moves a sample by more than `reach` in a
    step. The order is the same, 1/2 along each path and 1 in the law, with a larger constant: for drifts that are linear in x,
    those of every `GaussianSDE`, prefer `EulerMaruyama`.

    Main arguments:
        reach: the longest move of the drift in one step, root mean square over the entries, in units of the data. Under
            processes whose states are much wider than one, such as VE, give their width.

    Raises:
        ValueError: a reach that is not positive.
    """

    reach: float = 1.0

    def __post_init__(self) -> None:
        if not (self.reach > 0 and math.isfinite(self.reach)):
            raise ValueError(f"reach={self.reach}: give a positive length in units of the data")

    def _shortened(self, move: Tensor) -> Tensor:
        return tame(move, self.reach)
