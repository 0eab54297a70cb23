"""scorefield restore."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from scorefield.cli.options import Common, Flag, Name, Result, Unset
from scorefield.inverse.restore import MethodName


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Samples of the images that explain a measurement, with their mean and standard deviation.

    Example: scorefield restore runs/digits --image x.png --operator downsample:4 --noise 0.05 --simulate -n 8
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    image: Annotated[str, Name("FILE")]
    """The measurement: an image, or .npy (fourier and phase: always). With --simulate, the clean image."""
    operator: Annotated[str, Name("NAME")]
    """downsample:K, blur:SIGMA, mask:FILE (white is known), gray, fourier:FRACTION, phase, or clip:LIMIT (of the intensity)."""
    noise: float = 0.02
    """Standard deviation of the measurement's noise; intensities go from 0 (black) to 1 (white)."""
    method: MethodName = "mmps"
    """mmps is the one to trust; docs/inverse.md compares them."""
    simulate: Flag = False
    """Measure the clean image --image, with noise, in place of reading a measurement."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 4
    """Number of samples."""
    steps: Annotated[int | None, Unset("INT")] = None
    """Steps; the method's own number unless given."""
    seed: int = 0
    """Decides the samples, the simulated noise and the columns of fourier."""
    batch_size: int = 16
    """Samples at a time."""
    grey: Flag = False
    """Turn a colour image to grey where the run is grey."""
    resize: Flag = False
    """Crop and resize a clean image to the size of the run's images."""
    out: Annotated[str, Name("FILE")] = "restored.png"
    """The samples: .png (a grid if there are several), or .npy, .npz, .safetensors."""
    panel: Annotated[str | None, Unset("FILE")] = None
    """Before, measurement, samples, mean and standard deviation in a row; OUT-panel.png unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from pathlib import Path

    from scorefield.cli.measured import Work, solve
    from scorefield.cli.operators import read_operator

    out = Path(options.out)
    panel = options.panel or str(out.with_name(f"{out.stem}-panel.png"))
    return solve(
        Work(options, panel, options.grey),
        lambda shape, low, high: read_operator(options.operator, shape, low, high, options.seed),
        options.noise,
    )
