"""Networks: plain torch modules called as net(x, t, **cond) -> like x, that know nothing of an SDE."""

from .classifier import VectorClassifier, WideResNet
from .ddpm import ddpm, digits_unet
from .discrete import DDPMScore, SMLDLabels
from .embeddings import FourierFeatures, NoiseScales, positional_features
from .mlp import MLP
from .ncsn import NCSN, NCSNv2
from .patch import PatchUNet
from .precision import low_precision
from .unet import UNet, levels_at

__all__ = [
    "MLP",
    "NCSN",
    "DDPMScore",
    "FourierFeatures",
    "NCSNv2",
    "NoiseScales",
    "PatchUNet",
    "SMLDLabels",
    "UNet",
    "VectorClassifier",
    "WideResNet",
    "ddpm",
    "digits_unet",
    "levels_at",
    "low_precision",
    "positional_features",
]
