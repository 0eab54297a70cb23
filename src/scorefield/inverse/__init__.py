"""Measurements and what is conditioned on them: operators, and hooks that project a sample onto a measurement."""

from scorefield.inverse.operators import Mask
from scorefield.inverse.replace import Replace

__all__ = ["Mask", "Replace"]
