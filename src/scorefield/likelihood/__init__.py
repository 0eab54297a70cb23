"""How probable: log-densities by the probability flow, bounds on them, and what turns integers into densities."""

from scorefield.likelihood.dequantize import dequantize, levels_width
from scorefield.likelihood.divergence import Exact, Hutchinson, HutchPlusPlus, Linearizer, TraceMethod
from scorefield.likelihood.logprob import LogProb, log_prob
from scorefield.likelihood.priors import GaussianPrior, moments

__all__ = [
    "Exact",
    "GaussianPrior",
    "HutchPlusPlus",
    "Hutchinson",
    "Linearizer",
    "LogProb",
    "TraceMethod",
    "dequantize",
    "levels_width",
    "log_prob",
    "moments",
]
