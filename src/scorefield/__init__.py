"""Score-based generative modeling through stochastic differential equations (Song et al. 2021), on any tensor shape."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scorefield.analytic import GaussianMixture
from scorefield.guide import Autoguidance, Classifier, ClassifierFree, ClassifierGuidance, classifier_loss
from scorefield.inverse import (
    DDRM,
    Blur,
    Clip,
    Downsample,
    Fourier,
    Grayscale,
    Mask,
    PhaseRetrieval,
    Posterior,
    Replace,
    twisted_smc,
)
from scorefield.likelihood import LogProb, dequantize, log_prob
from scorefield.model import ScoreModel
from scorefield.objective import dsm_loss
from scorefield.sample import decode, encode, sample, slerp
from scorefield.sde import GaussianSDE, Prior
from scorefield.sdes import VE, VP, SubVP
from scorefield.solve.adaptive_sde import AdaptiveSDE
from scorefield.solve.analytic_variance import AnalyticAncestral
from scorefield.solve.exponential import DDIM, DEIS, DPMSolver, DPMSolverSingle
from scorefield.solve.fitted import Tuned, tune
from scorefield.solve.integrate import Solution, Solver
from scorefield.solve.karras import Churn, KarrasHeun
from scorefield.solve.ode import RK4, Bosh3, Dopri5, Euler, Heun, Tsit5
from scorefield.solve.pc import PC, AnnealedLangevin, Identity, Langevin
from scorefield.solve.reverse import Ancestral, EulerMaruyama, ProbabilityFlow, ReverseDiffusion
from scorefield.solve.sde_exponential import ExponentialSDE
from scorefield.solve.unipc import UniPC

if TYPE_CHECKING:
    from scorefield.data import digits, images
    from scorefield.evaluation.evaluate import evaluate
    from scorefield.latent import identifiability, outlier_scores
    from scorefield.publish import from_pretrained, push_to_hub, save_pretrained
    from scorefield.training import load, train

__version__ = "0.1.0"

# What needs more than torch and numpy is loaded on first use.
_LATER = {
    "train": "scorefield.training",
    "load": "scorefield.training",
    "digits": "scorefield.data",
    "images": "scorefield.data",
    "evaluate": "scorefield.evaluation",
    "identifiability": "scorefield.latent",
    "outlier_scores": "scorefield.latent",
    "from_pretrained": "scorefield.publish",
    "push_to_hub": "scorefield.publish",
    "save_pretrained": "scorefield.publish",
}
_MODULES = (
    "data",
    "evaluation",
    "guide",
    "inverse",
    "latent",
    "likelihood",
    "nn",
    "official",
    "presets",
    "pretrained",
    "publish",
    "solve",
    "times",
    "training",
)

__all__ = [
    "DDIM",
    "DDRM",
    "DEIS",
    "PC",
    "RK4",
    "VE",
    "VP",
    "AdaptiveSDE",
    "AnalyticAncestral",
    "Ancestral",
    "AnnealedLangevin",
    "Autoguidance",
    "Blur",
    "Bosh3",
    "Churn",
    "Classifier",
    "ClassifierFree",
    "ClassifierGuidance",
    "Clip",
    "DPMSolver",
    "DPMSolverSingle",
    "Dopri5",
    "Downsample",
    "Euler",
    "EulerMaruyama",
    "ExponentialSDE",
    "Fourier",
    "GaussianMixture",
    "GaussianSDE",
    "Grayscale",
    "Heun",
    "Identity",
    "KarrasHeun",
    "Langevin",
    "LogProb",
    "Mask",
    "PhaseRetrieval",
    "Posterior",
    "Prior",
    "ProbabilityFlow",
    "Replace",
    "ReverseDiffusion",
    "ScoreModel",
    "Solution",
    "Solver",
    "SubVP",
    "Tsit5",
    "Tuned",
    "UniPC",
    "classifier_loss",
    "decode",
    "dequantize",
    "digits",
    "dsm_loss",
    "encode",
    "evaluate",
    "from_pretrained",
    "identifiability",
    "images",
    "load",
    "log_prob",
    "outlier_scores",
    "push_to_hub",
    "sample",
    "save_pretrained",
    "slerp",
    "train",
    "tune",
    "twisted_smc",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(_LATER[name]), name)
        globals()[name] = value  # importing the module scorefield.training has put the module under this name
        return value
    if name in _MODULES:
        return importlib.import_module(f"scorefield.{name}")
    raise AttributeError(f"module 'scorefield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
