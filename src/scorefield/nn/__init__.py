"""Networks: plain torch modules called as net(x, t, **cond) -> like x, that know nothing of an SDE."""

from .classifier import VectorClassifier, WideResNet
from .ddpm import ddpm, digits_unet
from .discrete import DDPMScore, SMLDLabels
from .embeddings import FourierFeatures, NoiseScales, positional_features
from .histogram import HistogramUNet, cell_edges
from .mlp import MLP
from .ncsn import NCSN, NCSNv2
from .precision import low_precision
from .unet import UNet, levels_at

__all__ = [
    "MLP",
    "NCSN",
    "DDPMScore",
    "FourierFeatures",
    "HistogramUNet",
    "NCSNv2",
    "NoiseScales",
    "SMLDLabels",
    "UNet",
    "VectorClassifier",
    "WideResNet",
    "cell_edges",
    "ddpm",
    "digits_unet",
    "levels_at",
    "low_precision",
    "positional_features",
]
