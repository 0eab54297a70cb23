"""Measurements by name: downsample:4, blur:1.5, mask:known.png, gray, fourier:0.3, phase, clip:0.6."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.data.images import read_image
from scorefield.errors import InputError, closest
from scorefield.inverse import Blur, Clip, Downsample, Fourier, Grayscale, Mask, PhaseRetrieval

Shape = tuple[int, ...]
NAMES = ("downsample", "blur", "mask", "gray", "fourier", "phase", "clip")
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luminance that most programs mean by grey (ITU-R BT.601)."""
CENTRE = 0.08
"""Share of each side of the Fourier plane, around frequency zero, that a random mask always has."""


@dataclass(frozen=True)
class Measuring:
    """A measurement of images with intensities from 0 (black) to 1 (white), and the same in the range of a model.

    Attributes:
        operator: on images (B, C, H, W) in the model's range.
        seen: what it makes of intensities, before noise.
        shape: of a measurement, `complex` or not.
        scale: what the noise of intensities is multiplied with, to be in units of the operator's output.
        picture: whether a measurement is itself an image, in the same intensities.
        to_model: measurements of intensities -> outputs of the operator.
        show: a measurement of intensities as a picture (B, C', H', W').
    """

    operator: Any
    seen: Callable[[Tensor], Tensor]
    shape: Shape
    complex: bool
    scale: float
    picture: bool
    to_model: Callable[[Tensor], Tensor]
    show: Callable[[Tensor], Tensor]

    def measured(self, y: Tensor) -> Tensor:
        """y where something is measured, and zero elsewhere."""
        if isinstance(self.operator, Mask):
            return self.operator(y)
        return y * self.operator.mask if isinstance(self.operator, Fourier) else y


def read_operator(word: str, shape: Shape, low: float, high: float, seed: int) -> Measuring:
    """The measurement of that name, of images (C, H, W) whose model has the range [low, high].

    Raises:
        InputError: an unknown name, or a value that it cannot have for these images.
    """
    name, colon, value = word.partition(":")
    if name not in NAMES:
        raise InputError(f"--operator={word!r} is unknown{closest(name, NAMES)}")
    if bool(colon) != (name not in ("gray", "phase")) or (colon and not value):
        example = {"downsample": "4", "blur": "1.5", "mask": "known.png", "fourier": "0.3", "clip": "0.6"}.get(name)
        right = f"{name}:{example}" if example else name
        raise InputError(f"--operator={word!r} cannot be read; expected such as {right}")
    span = high - low
    match name:
        case "phase":
            phase = PhaseRetrieval()
            return Measuring(
                _OnIntensities(phase, low, span), phase, *_output(phase, shape), 1.0, False, lambda y: y, _spectrum
            )
        case "clip":
            limit = _number(word, value, 0, 1)
            clip, seen = Clip(1 / limit, low, high, zero=low), Clip(1 / limit, 0.0, 1.0)
            return Measuring(clip, seen, shape, False, span, True, lambda y: low + span * y, lambda y: y)
    operator = _linear(name, word, value, shape, seed)
    base = operator(torch.full((1, *shape), low))
    fourier = name == "fourier"
    return Measuring(
        operator,
        operator,
        *_output(operator, shape),
        span,
        not fourier,
        lambda y: span * y + base.to(y.device),
        operator.adjoint if fourier else (lambda y: y),
    )


def gray(luma: bool, shape: Shape, low: float, high: float) -> Measuring:
    """The grey version of colour images, as mean or luminance."""
    if shape[0] != 3:
        raise InputError(f"the run has images of {shape[0]} channel; colours need a run of 3")
    operator = Grayscale(LUMA) if luma else Grayscale()
    return Measuring(
        operator, operator, (1, *shape[1:]), False, high - low, True, lambda y: low + (high - low) * y, lambda y: y
    )


def _linear(name: str, word: str, value: str, shape: Shape, seed: int) -> Any:
    match name:
        case "gray":
            if shape[0] != 3:
                raise InputError(f"--operator=gray needs a run on colour images; this one has {shape[0]} channel")
            return Grayscale()
        case "downsample":
            k = int(_number(word, value, 1, min(shape[1:]), whole=True))
            if any(side % k for side in shape[1:]):
                raise InputError(f"--operator={word!r}: {k} does not divide the sides {shape[1]} and {shape[2]}")
            return Downsample(k)
        case "blur":
            return Blur(_gaussian(_number(word, value, 0, min(shape[1:]) / 6)))
        case "mask":
            return Mask(_mask_of(value, shape))
        case _:
            return Fourier(_fourier_mask(_number(word, value, 0, 1), shape[1:], seed))


@dataclass(frozen=True)
class _OnIntensities:
    """A measurement of intensities, of images in the model's range."""

    measure: Callable[[Tensor], Tensor]
    low: float
    span: float
    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.measure((x - self.low) / self.span)


def _number(word: str, value: str, above: float, most: float, whole: bool = False) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (above < number <= most or (whole and number == above)) or (whole and number != round(number)):
        kind = f"a whole number from {above:g} to" if whole else f"a number above {above:g}, up to"
        raise InputError(f"--operator={word!r}: {value!r} is impossible; expected {kind} {most:g}")
    return number


def _gaussian(sigma: float) -> Tensor:
    i = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, dtype=torch.float64)
    line = torch.exp(-(i**2) / (2 * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def _mask_of(path: str, shape: Shape) -> Tensor:
    known = read_image(path, 1) >= 128
    if known.shape[1:] != shape[1:]:
        raise InputError(
            f"{path} is {known.shape[2]} x {known.shape[1]} pixels and the run has {shape[2]} x {shape[1]}; resize it"
        )
    if bool(known.all()) or not bool(known.any()):
        what = "nothing to fill in" if bool(known.all()) else "nothing that is known"
        raise InputError(f"{path} leaves {what}; white is known and black is filled in")
    return known


def _fourier_mask(fraction: float, sides: Shape, seed: int) -> Tensor:
    """Whole columns of the Fourier plane, as a scanner takes them: the middle ones and random others."""
    width = sides[-1]
    wanted = max(1, round(fraction * width))
    frequency = torch.fft.fftfreq(width).abs()
    middle = frequency <= max(CENTRE / 2, 0.5 / width) if wanted > 1 else frequency == 0
    order = torch.rand(width, generator=torch.Generator().manual_seed(seed)) - 2.0 * middle - 1.0 * (frequency == 0)
    columns = torch.zeros(width, dtype=torch.bool)
    columns[order.argsort()[:wanted]] = True
    return columns.expand(sides).clone()


def _output(operator: Callable[[Tensor], Tensor], shape: Shape) -> tuple[Shape, bool]:
    """Shape of one measurement, and whether it is complex."""
    y = operator(torch.zeros(1, *shape))
    return tuple(y.shape[1:]), y.is_complex()


def _spectrum(y: Tensor) -> Tensor:
    """Moduli on a logarithmic scale, frequency zero in the middle, brought to the size of the image."""
    shown = torch.log1p(torch.fft.fftshift(y, dim=(-2, -1)) * math.sqrt(y.shape[-1] * y.shape[-2]))
    shown = shown / shown.amax().clamp_min(1e-6)
    return torch.nn.functional.avg_pool2d(shown, 2)
