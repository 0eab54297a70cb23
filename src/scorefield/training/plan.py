"""How many steps a run makes: as its configuration says, or as its minutes allow."""

from __future__ import annotations

import warnings
from collections import deque
from statistics import median

from scorefield.errors import ScorefieldWarning
from scorefield.training.config import TrainConfig
from scorefield.training.progress import Progress

RECENT = 32
"""Steps whose median time says how fast the machine is at present."""
OVERTIME = 1.75
"""Times its minutes after which a run stops where it is, because the machine has become slow since it was planned."""


class Plan:
    """The number of steps of a run and the learning rate of each.

    With `minutes` the number is fixed once, when the time that is left just suffices for the rest of the schedule. Until
    then no learning rate depends on it, so that the number, given as `steps`, repeats the run exactly.

    Main arguments:
        at: where the run stands; its `planned` holds the number once it is fixed.

    Warns where the warm-up is no shorter than the run, once, when its number of steps is known.
    """

    def __init__(self, config: TrainConfig, at: Progress) -> None:
        self._config, self._at = config, at
        self._budget = None if config.minutes is None else 60 * config.minutes
        self._recent: deque[float] = deque(maxlen=RECENT)
        if self.settled:
            self._warn_of_warmup()

    @property
    def steps(self) -> int:
        """The steps in all; before the clock has decided, the most there may be."""
        return self._at.planned or self._config.steps

    @property
    def settled(self) -> bool:
        """Whether the number of steps is known."""
        return self._budget is None or self._at.planned > 0

    @property
    def fraction(self) -> float:
        """The share of the run that is done, by steps where their number is known, else by the clock."""
        if self._budget is None or self._at.planned:
            return self._at.step / self.steps
        return min(1.0, self._at.seconds / self._budget)

    def seconds_left(self, speed: float) -> float:
        """Seconds to the end at so many steps a second."""
        if self.settled or self._budget is None:
            return (self.steps - self._at.step) / max(speed, 1e-9)
        return max(0.0, self._budget - self._at.seconds)

    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._config.optim.lr_at(self._at.step, self.steps)

    def due(self) -> bool:
        """Whether the present step is the last before the number of steps must be fixed."""
        at = self._at
        if at.step:
            self._recent.append(at.tick())
        if self._budget is None or at.planned:
            return False
        rest = self._end() - (at.step + 1)
        pace = max(at.seconds / max(at.step, 1), median(self._recent or [0.0]))
        return rest * pace >= self._budget - at.seconds

    def settle(self) -> None:
        """Fix the number of steps, the present one included."""
        self._at.planned = min(self._end(), self._config.steps)
        self._warn_of_warmup()

    def _warn_of_warmup(self) -> None:
        """Say that the learning rate never gets where it should."""
        optim, steps = self._config.optim, self.steps
        if optim.warmup >= steps:
            warnings.warn(
                f"warmup={optim.warmup} is no shorter than the run of {steps} steps: the learning rate rises to "
                f"{optim.lr * (steps - 1) / optim.warmup:.2g}, not to lr={optim.lr:g}; give warmup={steps // 10}, a tenth of "
                "the steps, or train longer",
                ScorefieldWarning,
                stacklevel=6,
            )

    @property
    def late(self) -> bool:
        """Whether the run has taken far more than its time."""
        return self._budget is not None and self._at.seconds > OVERTIME * self._budget

    def _end(self) -> int:
        """The steps in all if what follows the present step is the end of the schedule."""
        done = self._at.step + 1
        return -(-4 * done // 3) if self._config.optim.schedule == "cooldown" else done
