"""Densities of tables and vectors, by the habits of scikit-learn: a mixture corrected by a small score network."""

from scorefield.density.estimator import ScoreDensity

__all__ = ["ScoreDensity"]
