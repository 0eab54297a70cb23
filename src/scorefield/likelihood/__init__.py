"""How probable: log-densities by the probability flow, bounds on them, and what turns integers into densities."""

from scorefield.likelihood.dequantize import dequantize, levels_width
from scorefield.likelihood.elbo import Bound, elbo
from scorefield.likelihood.log_prob import LogProb, log_prob
from scorefield.likelihood.moments import moments
from scorefield.likelihood.trace import Exact, Hutchinson, HutchPlusPlus, Linearizer, TraceMethod
from scorefield.likelihood.variational import (
    DiscreteLogProb,
    VariationalDequantizer,
    dequantization_loss,
    discrete_log_prob,
)
from scorefield.prior import GaussianPrior

__all__ = [
    "Bound",
    "DiscreteLogProb",
    "Exact",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "Linearizer",
    "LogProb",
    "TraceMethod",
    "VariationalDequantizer",
    "dequantization_loss",
    "dequantize",
    "discrete_log_prob",
    "elbo",
    "levels_width",
    "log_prob",
    "moments",
]
