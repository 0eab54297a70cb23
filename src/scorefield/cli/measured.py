"""From an image file to posterior samples and their panel: what restore and colorize share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.options import Result, check_count, check_writable, open_run, plural
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.cli.operators import Measuring
    from scorefield.training import RunInfo


@dataclass(frozen=True)
class Work:
    """Options of the command, whose common names are read here, and what derives from them."""

    options: Any
    panel: str | None
    grey: bool = False


def solve(work: Work, measuring: Callable[[tuple[int, ...], float, float], Measuring], noise: float) -> Result:
    """Read or simulate the measurement, sample, write samples and panel.

    Raises:
        InputError: an option, a file or a method that does not fit.
    """
    import torch

    from scorefield.cli.files import check_format, write_samples
    from scorefield.cli.panel import write_panel
    from scorefield.inverse.restore import LINEAR, NOISELESS, restore
    from scorefield.training import read_run

    options = work.options
    for name in ("n", "steps", "batch_size"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    _check_noise(options, noise)
    info = read_run(options.run)
    if len(info.shape) != 3 or info.levels is None or info.range is None:
        raise InputError(f"{options.run} was trained on items of shape {info.shape}, not on images; it needs images")
    low, high = info.range
    check_format(options.out, info.shape)
    if work.panel is not None:
        check_format(work.panel, info.shape)
    seen = measuring(info.shape, low, high)
    if options.method in LINEAR and not getattr(seen.operator, "linear", True):
        raise InputError(f"--method={options.method} needs a linear measurement; use mmps, dps or smc")
    before = _clean(work, info) if options.simulate else None
    y = _simulated(seen, before, noise, options.seed) if before is not None else _read(work, seen)
    if work.panel is not None and Path(work.panel).suffix.lower() in (".npy", ".npz", ".safetensors"):
        raise InputError(f"cannot write {work.panel}: a panel is a picture; use .png")
    for path in [p for p in (options.out, work.panel) if p is not None]:
        check_writable(path)
    info, model = open_run(options.run, options.device)
    begin = time.monotonic()
    exact = options.method in NOISELESS
    found = restore(
        model,
        seen.operator,
        seen.to_model(y).to(model.device),
        noise * seen.scale if not exact else 0.0,
        options.n,
        options.method,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    samples = found.samples[0]
    if not bool(torch.isfinite(samples).all()):
        raise InputError(f"--method={options.method} left the finite numbers; take more --steps, or --method mmps")
    write_samples(options.out, samples, low, high)
    if work.panel is not None:
        write_panel(work.panel, samples, low, high, seen.show(y)[0], None if before is None else before[0])
    seconds, spread = time.monotonic() - begin, float(found.std().mean()) / (high - low)
    also = f" and {work.panel}" if work.panel else ""
    text = (
        f"{plural(options.n, 'sample')}, mean standard deviation {spread:.3f}, {found.nfe:.0f} evaluations each, "
        f"{seconds:.1f} s: {options.out}{also}"
    )
    values = {"out": options.out, "panel": work.panel, "n": options.n, "nfe": found.nfe, "spread": spread}
    if before is not None:
        error = (found.mean()[0].cpu() - low) / (high - low) - before[0]
        values["psnr"] = -10 * math.log10(max(float(error.square().mean()), 1e-20))
        text = f"mean {values['psnr']:.2f} dB, {text}"
    return Result(text, values | {"seconds": seconds, "seed": options.seed})


def _check_noise(options: Any, noise: float) -> None:
    from scorefield.inverse.restore import NOISELESS

    if not 0 <= noise < math.inf:
        raise InputError(f"--noise={noise} is impossible; expected 0 or more, such as 0.02")
    if noise == 0 and options.method not in (*NOISELESS, "ddrm"):
        raise InputError(
            f"--noise=0 is impossible with --method {options.method}; give a small one such as 0.005, or --method ddrm"
        )


def _clean(work: Work, info: RunInfo) -> Tensor:
    """The clean image as intensities (1, C, H, W)."""
    return _picture(work, info.shape, work.options.resize, "pass --resize")


def _read(work: Work, seen: Measuring) -> Tensor:
    """A measurement from its file, (1, *), in intensities."""
    path = work.options.image
    if work.options.resize:
        raise InputError("--resize is for a clean image, with --simulate; a measurement has the size that it has")
    if Path(path).suffix == ".npy":
        return _array(path, seen)
    if not seen.picture:
        raise InputError(
            f"--image {path} cannot hold this measurement, of shape {seen.shape}; give it as .npy, or pass --simulate"
        )
    y = _picture(work, seen.shape, False, "or pass --simulate if it is the clean image")
    return seen.measured(y)


def _picture(work: Work, shape: tuple[int, ...], resize: bool, remedy: str) -> Tensor:
    from scorefield.data.images import read_image

    path, (channels, height, width) = work.options.image, shape
    raw = read_image(path, channels, (height, width) if resize else None, convert=work.grey)
    if raw.shape[1:] != (height, width):
        raise InputError(
            f"--image {path} is {raw.shape[2]} x {raw.shape[1]} pixels and {width} x {height} is expected; {remedy}"
        )
    return raw.unsqueeze(0).float() / 255


def _array(path: str, seen: Measuring) -> Tensor:
    import numpy as np
    import torch

    from scorefield.errors import cannot_read

    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise cannot_read(path, error) from error
    except (ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"cannot read {path}: it is damaged or not a NumPy file; save it with numpy.save") from error
    wanted = "c" if seen.complex else "f"
    if tuple(values.shape) != seen.shape or values.dtype.kind != wanted or not np.isfinite(values).all():
        kind = "complex numbers" if wanted == "c" else "floats"
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; this measurement has finite {kind} of shape {seen.shape}"
        )
    y = torch.from_numpy(np.ascontiguousarray(values, np.complex64 if wanted == "c" else np.float32)).unsqueeze(0)
    return seen.measured(y)


def _simulated(seen: Measuring, clean: Tensor, noise: float, seed: int) -> Tensor:
    import torch

    y = seen.seen(clean)
    draws = torch.Generator().manual_seed(seed)
    z = torch.randn(y.shape, generator=draws)
    if y.is_complex():
        z = torch.complex(z, torch.randn(y.shape, generator=draws))
    return y + noise * seen.measured(z)
