"""Score-based generative modeling through stochastic differential equations (Song et al. 2021), on any tensor shape.

`import scorefield as sf` loads nothing; a name is loaded when it is first used. What is not listed here is one level down:
solvers in `sf.solve`, operators and posteriors in `sf.inverse`, networks in `sf.nn`, and so on.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers read; tests/test_imports.py holds it and the tables below equal
    from scorefield import data as data
    from scorefield import diagnose as diagnose
    from scorefield import discrete as discrete
    from scorefield import evaluation as evaluation
    from scorefield import flow as flow
    from scorefield import guide as guide
    from scorefield import implicit as implicit
    from scorefield import inverse as inverse
    from scorefield import ladder as ladder
    from scorefield import latent as latent
    from scorefield import likelihood as likelihood
    from scorefield import nn as nn
    from scorefield import official as official
    from scorefield import phase as phase
    from scorefield import presets as presets
    from scorefield import pretrained as pretrained
    from scorefield import prior as prior
    from scorefield import publish as publish
    from scorefield import reward as reward
    from scorefield import sde as sde
    from scorefield import solve as solve
    from scorefield import speech as speech
    from scorefield import times as times
    from scorefield import training as training
    from scorefield.analytic import GaussianMixture as GaussianMixture
    from scorefield.automatic import fit as fit
    from scorefield.consistency import consistency_loss as consistency_loss
    from scorefield.consistency import scm_loss as scm_loss
    from scorefield.data import digits as digits
    from scorefield.data import images as images
    from scorefield.density import ScoreDensity as ScoreDensity
    from scorefield.empirical import Empirical as Empirical
    from scorefield.evaluation.evaluate import evaluate as evaluate
    from scorefield.flowmap import FlowMap as FlowMap
    from scorefield.flowmap import Jump as Jump
    from scorefield.fokker_planck import fokker_planck_loss as fokker_planck_loss
    from scorefield.guide import ClassifierFree as ClassifierFree
    from scorefield.guide import ClassifierGuidance as ClassifierGuidance
    from scorefield.implicit import ssm_loss as ssm_loss
    from scorefield.inverse import Blur as Blur
    from scorefield.inverse import Downsample as Downsample
    from scorefield.inverse import Grayscale as Grayscale
    from scorefield.inverse import Mask as Mask
    from scorefield.inverse import Posterior as Posterior
    from scorefield.inverse import Replace as Replace
    from scorefield.latent import decode as decode
    from scorefield.latent import encode as encode
    from scorefield.latent import slerp as slerp
    from scorefield.likelihood import as_distribution as as_distribution
    from scorefield.likelihood import log_prob as log_prob
    from scorefield.model import ScoreModel as ScoreModel
    from scorefield.objective import dsm_loss as dsm_loss
    from scorefield.phase import CLD as CLD
    from scorefield.polynomial import Residual as Residual
    from scorefield.polynomial import polynomial_score as polynomial_score
    from scorefield.publish import from_pretrained as from_pretrained
    from scorefield.reflected import ReflectedVE as ReflectedVE
    from scorefield.sampling import sample as sample
    from scorefield.sde import SDE as SDE
    from scorefield.sde import GaussianSDE as GaussianSDE
    from scorefield.sdes import CVP as CVP
    from scorefield.sdes import OU as OU
    from scorefield.sdes import OUVE as OUVE
    from scorefield.sdes import VE as VE
    from scorefield.sdes import VP as VP
    from scorefield.sdes import VPIDM as VPIDM
    from scorefield.sdes import CSubVP as CSubVP
    from scorefield.sdes import RectifiedFlow as RectifiedFlow
    from scorefield.sdes import SubVP as SubVP
    from scorefield.solve import DDIM as DDIM
    from scorefield.solve import PC as PC
    from scorefield.solve import Ancestral as Ancestral
    from scorefield.solve import Dopri5 as Dopri5
    from scorefield.solve import DPMSolver as DPMSolver
    from scorefield.solve import Euler as Euler
    from scorefield.solve import EulerMaruyama as EulerMaruyama
    from scorefield.solve import Heun as Heun
    from scorefield.solve import Langevin as Langevin
    from scorefield.solve import ReverseDiffusion as ReverseDiffusion
    from scorefield.solve import Solver as Solver
    from scorefield.solve import UniPC as UniPC
    from scorefield.start import near as near
    from scorefield.training import load as load
    from scorefield.training import train as train

__version__ = "0.1.0"

_NAMES = {
    "analytic": "GaussianMixture",
    "consistency": "consistency_loss scm_loss",
    "automatic": "fit",
    "data": "digits images",
    "density": "ScoreDensity",
    "empirical": "Empirical",
    "evaluation": "evaluate",
    "flowmap": "FlowMap Jump",
    "fokker_planck": "fokker_planck_loss",
    "guide": "ClassifierFree ClassifierGuidance",
    "implicit": "ssm_loss",
    "inverse": "Blur Downsample Grayscale Mask Posterior Replace",
    "latent": "decode encode slerp",
    "likelihood": "as_distribution log_prob",
    "model": "ScoreModel",
    "objective": "dsm_loss",
    "phase": "CLD",
    "polynomial": "Residual polynomial_score",
    "publish": "from_pretrained",
    "reflected": "ReflectedVE",
    "sampling": "sample",
    "sde": "SDE GaussianSDE",
    "sdes": "CSubVP CVP OU OUVE RectifiedFlow SubVP VE VP VPIDM",
    "solve": "Ancestral DDIM DPMSolver Dopri5 Euler EulerMaruyama Heun Langevin PC ReverseDiffusion Solver UniPC",
    "start": "near",
    "training": "load train",
}
_PLACES = {name: module for module, names in _NAMES.items() for name in names.split()}
_ROOMS = (
    "automatic",
    "bridge",
    "bsde",
    "consistency",
    "data",
    "density",
    "diagnose",
    "discrete",
    "dynamics",
    "empirical",
    "evaluation",
    "flow",
    "guide",
    "implicit",
    "inverse",
    "ladder",
    "latent",
    "likelihood",
    "nn",
    "official",
    "phase",
    "presets",
    "pretrained",
    "prior",
    "publish",
    "reflected",
    "reward",
    "sde",
    "solve",
    "speech",
    "times",
    "training",
)
_ELSEWHERE = {
    "VPSDE": "VP",
    "VESDE": "VE",
    "subVPSDE": "SubVP",
    "inpaint": "Replace",
    "save": "publish.save_pretrained",
    "UNet2DModel": "pretrained.from_diffusers",
    "show": "charts.items",
    "save_image": "charts.items",
}
"""Where what has another name elsewhere is to be found."""

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        value = getattr(importlib.import_module(f"scorefield.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if name.startswith("_") or importlib.util.find_spec(f"scorefield.{name}") is None:
        raise AttributeError(f"module 'scorefield' has no attribute {name!r}{_near(name)}")
    return importlib.import_module(f"scorefield.{name}")


def _near(name: str) -> str:
    """The end of the message on a name that is not here: where it is, or what is spelt like it."""
    if name.startswith("_"):
        return ""
    from difflib import get_close_matches

    there = {word.lower(): word for word in (*_PLACES, *_ROOMS)}
    for room in _ROOMS:
        module = importlib.import_module(f"scorefield.{room}")
        public = getattr(module, "__all__", None) or [
            word
            for word, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not word.startswith("_")
        ]
        there = {word.lower(): f"{room}.{word}" for word in public} | there
    near = get_close_matches(name.lower(), there, n=1, cutoff=0.7)
    right = _ELSEWHERE.get(name) or (there[near[0]] if near else None)
    return f"; did you mean sf.{right}?" if right else ""


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
