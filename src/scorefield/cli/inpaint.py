"""scorefield inpaint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from scorefield.cli.names import SamplerName, make_sampler
from scorefield.cli.options import Common, Flag, Name, Result, Unset, check_count, check_writable, open_run, plural
from scorefield.errors import InputError

DEFAULT_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Fill in the unknown part of an image by the paper's replacement method (Song et al. 2021, App. I.2).

    Example: scorefield inpaint runs/digits --image a.png --mask m.png --out y.png
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    image: Annotated[str, Name("FILE")]
    """The image, of the size of the run's images."""
    mask: Annotated[str, Name("FILE")]
    """An image of the same size: white is known, black is filled in."""
    invert: Flag = False
    """White is filled in, black is known."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Number of different completions."""
    sampler: SamplerName = "pc"
    """Any sampler with a fixed number of steps."""
    steps: int = DEFAULT_STEPS
    """Steps."""
    snr: Annotated[float | None, Unset("FLOAT")] = None
    """Signal-to-noise ratio of the corrector; 0.16 for VE and 0.01 for VP unless given."""
    seed: int = 0
    """Decides the completions."""
    batch_size: int = 64
    """Completions at a time."""
    grey: Flag = False
    """Turn a colour image to grey where the run is grey."""
    resize: Flag = False
    """Crop and resize image and mask to the size of the run's images."""
    out: Annotated[str, Name("FILE")] = "inpainted.png"
    """.png (a grid if there are several), or .npy, .npz, .safetensors."""
    panel: Annotated[str | None, Unset("FILE")] = None
    """Also write before, what is known, completions, mean and standard deviation in a row."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    import torch

    from scorefield.cli.files import check_format, write_samples
    from scorefield.cli.panel import write_panel
    from scorefield.inverse import Mask, Replace
    from scorefield.sampling import sample
    from scorefield.training import read_run

    for name in ("n", "steps", "batch_size"):
        check_count("--" + name.replace("_", "-"), getattr(options, name))
    info = read_run(options.run)
    if len(info.shape) != 3 or info.levels is None or info.range is None:
        raise InputError(
            f"{options.run} was trained on items of shape {info.shape}, not on images; inpaint needs images"
        )
    for path in [p for p in (options.out, options.panel) if p is not None]:
        check_format(path, info.shape)
    picture, low, high = _picture(options, "image", info), *info.range
    mask = _picture(options, "mask", info) >= 128
    known = torch.tensor(mask.numpy() != options.invert)
    if bool(known.all()) or not bool(known.any()):
        what = "nothing to fill in" if bool(known.all()) else "nothing that is known"
        raise InputError(
            f"--mask {options.mask} leaves {what}; white is known and black is filled in (--invert: the reverse)"
        )
    for path in [p for p in (options.out, options.panel) if p is not None]:
        check_writable(path)
    info, model = open_run(options.run, options.device)
    x = picture.unsqueeze(0).float() / 255 * (high - low) + low
    operator = Mask(known.to(model.device))
    y = operator(x.to(model.device)).expand(options.n, *info.shape)
    begin = time.monotonic()
    result = sample(
        model,
        options.n,
        make_sampler(options.sampler, model.sde, options.snr),
        steps=options.steps,
        shape=info.shape,
        seed=options.seed,
        batch_size=options.batch_size,
        hooks=[Replace(operator, y)],
        full=True,
    )
    write_samples(options.out, result.x, low, high)
    if options.panel is not None:
        intensities = picture.float() / 255
        write_panel(options.panel, result.x, low, high, torch.where(known, intensities, 0.5), intensities)
    seconds, calls = time.monotonic() - begin, float(result.nfe.double().mean())
    text = f"{plural(options.n, 'completion')}, {calls:.0f} network calls each, {seconds:.1f} s: {options.out}"
    return Result(text, {"out": options.out, "n": options.n, "nfe": calls, "seconds": seconds, "seed": options.seed})


def _picture(options: Options, which: str, info: Any) -> Any:
    from scorefield.data.images import read_image

    path = getattr(options, which)
    channels = 1 if which == "mask" else info.shape[0]
    size = info.shape[1:]
    raw = read_image(path, channels, size if options.resize else None, convert=options.grey or which == "mask")
    if raw.shape[1:] != size:
        raise InputError(
            f"--{which} {path} is {raw.shape[2]} x {raw.shape[1]} pixels and the run has {size[1]} x {size[0]}; "
            "resize it, or pass --resize"
        )
    return raw
