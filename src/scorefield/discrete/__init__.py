"""Discrete data: jump processes, networks read through them, their solvers, losses and bounds."""

from scorefield.discrete import defaults as _defaults  # noqa: F401 - gives the model its solver, loss and guidance
from scorefield.discrete.bound import bound
from scorefield.discrete.correct import Gibbs, RateCorrector
from scorefield.discrete.flow import FlowMatching
from scorefield.discrete.guide import Infill
from scorefield.discrete.matrix import Ordinal, RateMatrix
from scorefield.discrete.model import JumpModel
from scorefield.discrete.objective import JumpTimes, continuous_elbo, masked_loss, ratio_matching, score_entropy
from scorefield.discrete.process import Absorbing, JumpProcess, Uniform
from scorefield.discrete.schedule import Constant, Cosine, Geometric, LogLinear, Schedule
from scorefield.discrete.solve import Ancestral, Euler, FirstHitting, TauLeaping, Tweedie
from scorefield.discrete.table import Table

__all__ = [
    "Absorbing",
    "Ancestral",
    "Constant",
    "Cosine",
    "Euler",
    "FirstHitting",
    "FlowMatching",
    "Geometric",
    "Gibbs",
    "Infill",
    "JumpModel",
    "JumpProcess",
    "JumpTimes",
    "LogLinear",
    "Ordinal",
    "RateCorrector",
    "RateMatrix",
    "Schedule",
    "Table",
    "TauLeaping",
    "Tweedie",
    "Uniform",
    "bound",
    "continuous_elbo",
    "masked_loss",
    "ratio_matching",
    "score_entropy",
]
