"""scorefield restore, and the way from an image file to posterior samples that it shares with colorize and inpaint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import scorefield as sf
from scorefield.cli.files import ARRAYS, check_format, read_numpy, write_panel, write_samples
from scorefield.cli.names import operators, pick
from scorefield.cli.options import COUNT, Flag, Name, Number, OfRun, Result, Unset, check_writable, open_run, plural
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.model import ScoreModel

Shape = tuple[int, ...]
Draw = Callable[["ScoreModel", "Tensor", float], "tuple[Tensor, float]"]
"""(model, outputs of the operator, their noise) -> samples (n, C, H, W), and evaluations for each."""


@dataclass(frozen=True, kw_only=True)
class Restoring(OfRun):
    """What the commands share that draw images given a measurement."""

    image: Annotated[str, Name("FILE")]
    """The image, of the size of the run's images."""
    n: Number = 4
    """Number of different samples."""
    steps: Annotated[int | None, Unset("INT"), COUNT] = None
    """Steps; the method's own number unless given."""
    batch_size: Annotated[int, COUNT] = 16
    """Samples at a time."""
    grey: Flag = False
    """Turn a colour image to grey where the run is grey."""
    resize: Flag = False
    """Crop and resize images to the size of the run's."""
    panel: Annotated[str | None, Unset("FILE")] = None
    """Also write before, measurement, samples, mean and standard deviation in a row."""


@dataclass(frozen=True, kw_only=True)
class Options(Restoring):
    """Samples of the images that explain a measurement, with their mean and standard deviation.

    The run is one of images. The measurement --image is an image, or .npy where it is none (fourier and phase-retrieval:
    always); with --simulate it is clean.

    Example: scorefield restore runs/digits --image x.png --operator downsample:4 --noise 0.05 --simulate -n 8
    """

    operator: Annotated[str, Name("NAME[:VALUE]")]
    """downsample:K, blur:SIGMA, mask:FILE (white is known), grayscale, fourier:FRACTION, phase-retrieval, clip:LIMIT, ..."""
    noise: float = 0.02
    """Standard deviation of the measurement's noise; intensities go from 0 (black) to 1 (white)."""
    method: Annotated[str | None, Unset("NAME")] = None
    """mmps is the one to trust, and taken unless given (replace for distilled runs); docs/inverse.md compares it with tmpd,
    pigdm, dps, diffpir, ddrm, replace, repaint and smc."""
    simulate: Flag = False
    """Measure the clean image --image, with noise, in place of reading a measurement."""
    out: Annotated[str, Name("FILE")] = "restored.png"
    """The samples: .png (a grid if there are several), or .npy, .npz, .safetensors; a panel is written beside it."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    shape, interval = images_of(options.run)
    method = chosen_method(options.run, options.method, "mmps")
    check_method(method, options.noise)
    seen = Seen(read_operator(options.operator, shape, options.seed), shape, interval)
    check_linear(method, seen.operator)
    out = Path(options.out)
    panel = options.panel or str(out.with_name(f"{out.stem}-panel.png"))
    mode: Mode = "simulate" if options.simulate else "read"
    return restoration(options, seen, panel, options.noise, by_method(options, method, seen.in_model), mode)


def read_operator(word: str, shape: Shape, seed: int) -> Any:
    """The operator that a word names, of images (C, H, W).

    Raises:
        InputError: an unknown name, or a value that it cannot have for these images.
    """
    name, colon, value = word.partition(":")
    cls = pick("--operator", name, operators())
    if bool(value) != bool(cls.example) or bool(colon) != bool(value):
        right = f"{name}:{cls.example}" if cls.example else name
        raise InputError(f"--operator={word!r} cannot be read; expected such as {right}")
    try:
        return cls.from_word(value, shape, seed)
    except InputError as error:
        raise InputError(f"--operator={word!r}: {error}") from error


@dataclass(frozen=True)
class Seen:
    """An operator on intensities from 0 (black) to 1 (white), and the same in the range of a model.

    Main arguments:
        operator: linear, or of intensities where it is not. shape: of the images (C, H, W). interval: the model's range.
    """

    operator: Any
    shape: Shape
    interval: tuple[float, float]

    @property
    def linear(self) -> bool:
        """Whether the operator is linear, and so the same in any range but for an offset."""
        return getattr(self.operator, "linear", True)

    @property
    def in_model(self) -> Any:
        """The operator on images in the model's range."""
        return self.operator if self.linear else _OnIntensities(self.operator, *self.interval)

    @property
    def scale(self) -> float:
        """Noise in units of `in_model`'s output, of noise 1 of intensities."""
        low, high = self.interval
        return high - low if self.linear else 1.0

    def to_model(self, y: Tensor) -> Tensor:
        """Measurements of intensities as outputs of `in_model`."""
        import torch

        if not self.linear:
            return y
        low, high = self.interval
        base: Tensor = self.operator(torch.full((1, *self.shape), low))
        return (high - low) * y + base.to(y.device)

    def empty(self) -> Tensor:
        """A measurement (1, *) of zeros; it tells shape and type."""
        import torch

        return torch.zeros_like(self.operator(torch.zeros(1, *self.shape)))

    def measured(self, y: Tensor) -> Tensor:
        """y where something is measured, and zero elsewhere."""
        import torch

        mask = getattr(self.operator, "mask", None)
        return y if mask is None else torch.where(mask, y, torch.zeros_like(y))

    def shown(self, y: Tensor) -> Tensor:
        """A measurement of intensities as a picture (B, C', H', W')."""
        show = getattr(self.operator, "shown", None)
        picture: Tensor = y if show is None else show(y)
        return picture


@dataclass(frozen=True)
class _OnIntensities:
    """A measurement of intensities, of images in the model's range."""

    measure: Callable[[Tensor], Tensor]
    low: float
    high: float
    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.measure((x - self.low) / (self.high - self.low))


Mode = Literal["read", "simulate", "known"]
"""What --image is: a measurement; a clean image to be measured with noise; or an image of which a part is known."""


def restoration(
    options: Any, seen: Seen, panel: str | None, noise: float, draw: Draw, mode: Mode, noun: str = "sample"
) -> Result:
    """Read or simulate the measurement, draw, write samples and panel; `options` are `Restoring` with --out.

    Raises:
        InputError: an option, a file or a method that does not fit.
    """
    import torch

    low, high = seen.interval
    outputs = [path for path in (options.out, panel) if path is not None]
    for path in outputs:
        check_format(path, seen.shape)
    if panel is not None and Path(panel).suffix.lower() in ARRAYS:
        raise InputError(f"cannot write {panel}: a panel is a picture; use .png")
    y, clean = _measured(options, seen, noise, mode)
    for path in outputs:
        check_writable(path)
    _, model = open_run(options.run, options.device)
    begin = time.monotonic()
    samples, calls = draw(model, seen.to_model(y).to(model.device), noise * seen.scale)
    if not bool(torch.isfinite(samples).all()):
        raise InputError("the samples left the finite numbers; take more --steps, or another method or sampler")
    write_samples(options.out, samples, low, high)
    if panel is not None:
        write_panel(panel, samples, low, high, seen.shown(y)[0], None if clean is None else clean[0])
    seconds, unit = time.monotonic() - begin, (samples.detach().float().cpu() - low) / (high - low)
    spread = float(unit.std(0).mean()) if len(unit) > 1 else 0.0
    text = (
        f"{plural(options.n, noun)}, mean standard deviation {spread:.3f}, {calls:.0f} evaluations each, "
        f"{seconds:.1f} s: {' and '.join(outputs)}"
    )
    values = {"out": options.out, "panel": panel, "n": options.n, "nfe": calls, "spread": spread}
    if mode == "simulate" and clean is not None:
        values["psnr"] = -10 * math.log10(max(float((unit.mean(0) - clean[0]).square().mean()), 1e-20))
        text = f"mean {values['psnr']:.2f} dB, {text}"
    return Result(text, values | {"seconds": seconds, "seed": options.seed})


def _measured(options: Any, seen: Seen, noise: float, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """The measurement, and the clean image that it was made of, if it was."""
    if mode == "read":
        return _read(options, seen), None
    clean = read_picture(options, seen.shape, options.resize, "pass --resize")
    return simulated(seen, clean, noise if mode == "simulate" else 0.0, options.seed), clean


def by_method(options: Any, method: str, operator: Any) -> Draw:
    """Drawing by a method of `inverse.restore`."""
    from scorefield.inverse.restore import NOISELESS

    def draw(model: ScoreModel, y: Tensor, noise: float) -> tuple[Tensor, float]:
        found = sf.inverse.restore(
            model,
            operator,
            y,
            0.0 if method in NOISELESS else noise,
            options.n,
            method,  # type: ignore[arg-type]
            steps=options.steps,
            seed=options.seed,
            batch_size=options.batch_size,
        )
        return found.samples[0], found.nfe

    return draw


def chosen_method(run: str, method: str | None, usual: str) -> str:
    """The method that was asked for, or the usual one; a distilled run has no score, and takes replacement alone.

    Raises:
        InputError: another method for a distilled run.
    """
    distilled = "map" in sf.training.read_run(run).model
    if distilled and method not in (None, "replace"):
        raise InputError(f"--method {method} needs a score, and {run} is a distilled run, which has none; use replace")
    return method or ("replace" if distilled else usual)


def check_method(method: str, noise: float) -> None:
    """Refuse an unknown method, and noise that it cannot have.

    Raises:
        InputError: an option that is out of range.
    """
    from scorefield.inverse.restore import METHOD_STEPS, NOISELESS

    pick("--method", method, {name: name for name in METHOD_STEPS})
    if not 0 <= noise < math.inf:
        raise InputError(f"--noise={noise} is impossible; expected 0 or more, such as 0.02")
    if noise == 0 and method not in (*NOISELESS, "ddrm"):
        raise InputError(
            f"--noise=0 is impossible with --method {method}; give a small one such as 0.005, or --method ddrm"
        )


def check_linear(method: str, operator: Any) -> None:
    """Refuse a method that needs a linear operator where there is none.

    Raises:
        InputError: the method does not fit.
    """
    from scorefield.inverse.restore import LINEAR

    if method in LINEAR and not getattr(operator, "linear", True):
        raise InputError(f"--method={method} needs a linear measurement; use mmps, dps or smc")


def images_of(run: str) -> tuple[Shape, tuple[float, float]]:
    """Shape (C, H, W) and range of the images of a run.

    Raises:
        InputError: it was trained on something else.
    """
    info = sf.training.read_run(run)
    if len(info.shape) != 3 or info.levels is None or info.range is None:
        raise InputError(
            f"{run} was trained on items of shape {info.shape}, not on images, which this command restores; in Python "
            "sf.inverse.restore(sf.load(run), operator, y[None], noise=...) restores any items (docs/inverse.md)"
        )
    return info.shape, info.range


def _read(options: Any, seen: Seen) -> Tensor:
    """A measurement from its file, (1, *), in intensities."""
    path, like = options.image, seen.empty()
    if options.resize:
        raise InputError("--resize is for a clean image, with --simulate; a measurement has the size that it has")
    if Path(path).suffix.lower() == ".npy":
        return seen.measured(_array(path, like))
    if like.is_complex() or not getattr(seen.operator, "picture", True):
        raise InputError(
            f"--image {path} cannot hold this measurement, of shape {tuple(like.shape[1:])}; give it as .npy, or pass "
            "--simulate"
        )
    return seen.measured(
        read_picture(options, tuple(like.shape[1:]), False, "or pass --simulate if it is the clean image")
    )


def read_picture(options: Any, shape: Shape, resize: bool, remedy: str) -> Tensor:
    """--image as intensities (1, C, H, W)."""
    from scorefield.data.images import read_image

    path, (channels, height, width) = options.image, shape
    raw = read_image(path, channels, (height, width) if resize else None, convert=options.grey)
    if tuple(raw.shape[1:]) != (height, width):
        raise InputError(
            f"--image {path} is {raw.shape[2]} x {raw.shape[1]} pixels and {width} x {height} is expected; {remedy}"
        )
    return raw.unsqueeze(0).float() / 255


def _array(path: str, like: Tensor) -> Tensor:
    import numpy as np
    import torch

    values, shape = read_numpy(path), tuple(like.shape[1:])
    wanted = "c" if like.is_complex() else "f"
    if tuple(values.shape) != shape or values.dtype.kind != wanted or not np.isfinite(values).all():
        kind = "complex numbers" if wanted == "c" else "floats"
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; this measurement has finite {kind} of shape {shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(values, np.complex64 if wanted == "c" else np.float32)).unsqueeze(0)


def simulated(seen: Seen, clean: Tensor, noise: float, seed: int) -> Tensor:
    """A clean image (1, C, H, W) of intensities as it would be measured, with noise of a seed."""
    import torch

    y: Tensor = seen.operator(clean)
    draws = torch.Generator().manual_seed(seed)
    z = torch.randn(y.shape, generator=draws)
    if y.is_complex():
        z = torch.complex(z, torch.randn(y.shape, generator=draws))
    return y + noise * seen.measured(z)
