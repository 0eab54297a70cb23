"""How probable: log-densities by the probability flow, bounds on them, and what turns integers into densities."""

from scorefield.likelihood.dequantize import dequantize, levels_width
from scorefield.likelihood.distribution import ModelDistribution, as_distribution
from scorefield.likelihood.elbo import elbo
from scorefield.likelihood.entries import Places, places
from scorefield.likelihood.log_prob import log_prob
from scorefield.likelihood.moments import moments
from scorefield.likelihood.result import LogProb
from scorefield.likelihood.trace import Exact, Hutchinson, HutchPlusPlus, Linearizer, TraceMethod
from scorefield.likelihood.variational import (
    VariationalDequantizer,
    dequantization_loss,
    discrete_log_prob,
)
from scorefield.prior import GaussianPrior

__all__ = [
    "Exact",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "Linearizer",
    "LogProb",
    "ModelDistribution",
    "Places",
    "TraceMethod",
    "VariationalDequantizer",
    "as_distribution",
    "dequantization_loss",
    "dequantize",
    "discrete_log_prob",
    "elbo",
    "levels_width",
    "log_prob",
    "moments",
    "places",
]
