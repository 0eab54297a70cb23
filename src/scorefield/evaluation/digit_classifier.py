"""A small classifier of 28 x 28 digits, embedded with its weights, whose features judge generated digits."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.errors import InputError

SIDE = 28
FEATURES = 64


class DigitClassifier(nn.Module):
    """Three convolutions and two linear layers: images (B, 1, 28, 28) to 64 features and the logits of ten digits.

    Main arguments:
        low, high: values of float images that mean black and white. uint8 images run from 0 to 255 whatever these are.
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 24, 3, padding=1)
        self.fourth = nn.Linear(24 * 3 * 3, FEATURES)
        self.last = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """Input of the last layer, (B, 64), not negative.

        Raises:
            InputError: x is not (B, 1, 28, 28), or holds integers other than uint8.
        """
        if x.ndim != 4 or x.shape[1:] != (1, SIDE, SIDE):
            raise InputError(f"x has shape {tuple(x.shape)}; the digit classifier takes (B, 1, {SIDE}, {SIDE})")
        weight = self.last.weight
        if x.dtype == torch.uint8:
            x = x.to(weight.device, weight.dtype) / 255
        elif x.is_floating_point():
            x = (x.to(weight.device, weight.dtype) - self.low) / (self.high - self.low)
        else:
            raise InputError(f"x holds {x.dtype}; the digit classifier takes uint8, or floats from low to high")
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        x = F.max_pool2d(F.relu(self.third(x)), 2)
        return F.relu(self.fourth(x.flatten(1)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, 10) of features (B, 64)."""
        logits: Tensor = self.last(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the digits 0 to 9, (B, 10); differentiable in float images."""
        return self.logits(self.features(x))


def digit_classifier(
    low: float = -1.0, high: float = 1.0, *, device: str | torch.device | None = None
) -> DigitClassifier:
    """The embedded classifier in evaluation mode, without gradients of its weights.

    Trained by `benchmarks/digit_classifier.py` on the first 9,000 embedded digits; the last 1,000 were not used.

    Main arguments:
        low, high: values of float images that mean black and white; uint8 images are read as 0 .. 255.
    """
    from safetensors.torch import load

    model = DigitClassifier(low, high)
    model.load_state_dict(load(resources.files("scorefield.evaluation").joinpath("digits.safetensors").read_bytes()))
    return model.requires_grad_(False).eval().to(device)
