"""Networks: plain torch modules called as net(x, t, **cond) -> like x, that know nothing of an SDE."""

from .ddpm import ddpm, digits_unet
from .embeddings import FourierFeatures, NoiseScales, positional_features
from .mlp import MLP
from .unet import UNet, levels_at

__all__ = ["MLP", "FourierFeatures", "NoiseScales", "UNet", "ddpm", "digits_unet", "levels_at", "positional_features"]
