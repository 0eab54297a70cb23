"""scorefield generate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Annotated, Any

import scorefield as sf
from scorefield.cli.files import check_format, is_image, write_samples
from scorefield.cli.names import read_solver
from scorefield.cli.options import (
    Drawing,
    Grid,
    Number,
    OfRun,
    Result,
    Unset,
    check_writable,
    drawn,
    label_condition,
    open_run,
    plural,
)
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Drawing, Grid, OfRun):
    """Draw samples of a class: by a classifier (Song et al. 2021, eq. 14), or classifier-free where the run has classes.

    Example: scorefield generate runs/digits --classifier runs/digits-classifier --label 3 -n 16 --out threes.png
    """

    label: int
    """The class."""
    classifier: Annotated[str | None, Unset("RUN")] = None
    """Folder that the classifier command wrote."""
    scale: float = 1.0
    """Strength of the classifier: 0 is none, 1 samples the class, more sharpens."""
    guidance: Annotated[float | None, Unset("FLOAT")] = None
    """Strength of classifier-free guidance: 0 is none, 1 samples the class, more sharpens; 1 unless given."""
    interval: Annotated[tuple[float, float] | None, Unset("LOW HIGH")] = None
    """Classifier-free guidance at these times only, the plain class elsewhere."""
    n: Number = 16
    """Number of samples."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.png (a grid), or .npy, .npz, .safetensors (floats in the model's range); generated.png or .npy unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    for name in ("scale", "guidance"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"--{name}={value} is impossible; expected 0 or more, such as 1")
    read_solver(options.sampler)
    shape = sf.training.read_run(options.run).shape
    out = options.out or f"generated{'.png' if is_image(shape) else '.npy'}"
    check_format(out, shape)
    check_writable(out)
    info, model = open_run(options.run, options.device)
    guided, cond = _guide(options, model, info.shape)
    begin = time.monotonic()
    result = drawn(options, guided, options.n, info.shape, **cond)
    low, high = info.range or model.sde.range
    write_samples(out, result.x, low, high, options.columns)
    seconds, calls = time.monotonic() - begin, float(result.nfe.float().mean())
    text = (
        f"{plural(options.n, 'sample')} of class {options.label}, {calls:.0f} evaluations each, {seconds:.1f} s: {out}"
    )
    return Result(text, {"out": out, "n": options.n, "label": options.label, "nfe": calls, "seconds": seconds})


def _guide(options: Options, model: Any, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """The guided model, and the condition that goes with it."""
    from scorefield.training.classifier import load_classifier

    if options.classifier is not None:
        if options.guidance is not None or options.interval is not None:
            raise InputError("--guidance and --interval are classifier-free; leave them out, or --classifier")
        other = sf.training.read_run(options.classifier).shape
        if other != shape:
            raise InputError(
                f"--classifier {options.classifier} is for items of shape {other} and {options.run} has {shape}; "
                "train one for it"
            )
        clf = load_classifier(options.classifier, model.sde, model.device)
        classes = int(clf.net.num_classes)  # type: ignore[arg-type]
        if not 0 <= options.label < classes:
            raise InputError(f"--label={options.label} does not exist; give one from 0 to {classes - 1}")
        return model | sf.ClassifierGuidance(clf, options.label, options.scale), {}
    if not getattr(model.net, "num_classes", 0):
        raise InputError(
            f"{options.run} has no classes; train a classifier with `scorefield classifier` and give it as --classifier"
        )
    cond = label_condition(model, options.label, options.n)
    if options.scale != 1:
        raise InputError("--scale is that of a classifier; give --classifier, or --guidance")
    return model | sf.ClassifierFree(1.0 if options.guidance is None else options.guidance, options.interval), cond
