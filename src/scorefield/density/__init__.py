"""Densities of tables and vectors: a mixture, chosen by cross-validation, corrected by a small score network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefield.density.estimator import ScoreDensity

__all__ = ["ScoreDensity"]


def __getattr__(name: str) -> Any:
    """The estimator, which needs scikit-learn, when it is asked for; mixtures do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scorefield.density.estimator import ScoreDensity

    return ScoreDensity
