"""Networks: plain torch modules called as net(x, t, **cond) -> like x, that know nothing of an SDE."""

from scorefield.nn.adm import ADM
from scorefield.nn.baseline import BesideGaussian, BesideMixture, BesideStationary
from scorefield.nn.classifier import VectorClassifier, WideResNet
from scorefield.nn.ddpm import ddpm, digits_unet
from scorefield.nn.embeddings import FourierFeatures, NoiseScales, positional_features
from scorefield.nn.frames import FrameMLP
from scorefield.nn.histogram import HistogramUNet, cell_edges
from scorefield.nn.mlp import MLP
from scorefield.nn.paired import Paired
from scorefield.nn.patches import DiT, dit
from scorefield.nn.potential import Potential
from scorefield.nn.precision import low_precision
from scorefield.nn.refinenet import NCSN, NCSNv2
from scorefield.nn.states import StateMLP, StateUNet
from scorefield.nn.transformer import HollowTransformer, Transformer
from scorefield.nn.unet import UNet, levels_at

__all__ = [
    "ADM",
    "MLP",
    "NCSN",
    "BesideGaussian",
    "BesideMixture",
    "BesideStationary",
    "DiT",
    "FourierFeatures",
    "FrameMLP",
    "HistogramUNet",
    "HollowTransformer",
    "NCSNv2",
    "NoiseScales",
    "Paired",
    "Potential",
    "StateMLP",
    "StateUNet",
    "Transformer",
    "UNet",
    "VectorClassifier",
    "WideResNet",
    "cell_edges",
    "ddpm",
    "digits_unet",
    "dit",
    "levels_at",
    "low_precision",
    "positional_features",
]
