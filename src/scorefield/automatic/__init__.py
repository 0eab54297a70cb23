"""One door for data of one's own: looks at data and machine, chooses, trains, and judges the result against baselines."""

from scorefield.automatic.door import Fitted, fit

__all__ = ["Fitted", "fit"]
