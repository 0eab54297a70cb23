"""Measurements and what is conditioned on them: operators, posterior scores, and hooks and solvers that project onto them."""

from scorefield.inverse.ddrm import DDRM
from scorefield.inverse.filters import Blur, Downsample, Grayscale, bicubic, color_matrix
from scorefield.inverse.measurement import linearize, matrix_of, pseudo_inverse
from scorefield.inverse.nonlinear import Clip, PhaseRetrieval
from scorefield.inverse.operators import Composed, Dense, Fourier, LinearOperator, Mask, Operator, random_projection
from scorefield.inverse.posterior import Posterior
from scorefield.inverse.replace import Replace, repaint
from scorefield.inverse.restore import Restored, restore
from scorefield.inverse.smc import Particles, twisted_smc

__all__ = [
    "DDRM",
    "Blur",
    "Clip",
    "Composed",
    "Dense",
    "Downsample",
    "Fourier",
    "Grayscale",
    "LinearOperator",
    "Mask",
    "Operator",
    "Particles",
    "PhaseRetrieval",
    "Posterior",
    "Replace",
    "Restored",
    "bicubic",
    "color_matrix",
    "linearize",
    "matrix_of",
    "pseudo_inverse",
    "random_projection",
    "repaint",
    "restore",
    "twisted_smc",
]
