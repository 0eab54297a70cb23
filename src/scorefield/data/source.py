"""Data named on a command line: the embedded digits, a folder of images, or an array file, checked against a shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scorefield.data.arrays import array, digits
from scorefield.data.dataset import Dataset, Range
from scorefield.data.folder import images, read_image
from scorefield.errors import InputError


def open_data(
    source: str,
    shape: tuple[int, ...] | None = None,
    *,
    train: bool = True,
    levels: int | None = None,
    range: Range | None = None,
    labels: bool = False,
    convert: bool = False,
    skip_broken: bool = False,
) -> Dataset:
    """The dataset called `source`: "digits", a folder of images, a .npy or .npz file, or one image file.

    Main arguments:
        shape: event shape that the items must have; images are resized to it, arrays are not. None takes what comes.
        train: which part of the digits.

    Other arguments:
        levels, range: see `array`.
        labels: whether the classes are wanted (the sub-folders of a folder).
        convert: turn colour images to grey where grey is expected.
        skip_broken: see `images`.

    Raises:
        InputError: no such data, or a shape that does not fit.
    """
    path = Path(source)
    picture_shape = shape is not None and len(shape) == 3
    if source == "digits":
        data = digits(train)
    elif not path.exists():
        raise InputError(
            f"cannot read {source}: it does not exist; give a folder of images, a .npy or .npz file, or 'digits'"
        )
    elif path.suffix in (".npy", ".npz"):
        data = array(path, levels=levels, range=range, image=picture_shape)
    else:
        channels, height, width = shape if shape is not None and len(shape) == 3 else (3, 32, 32)
        if shape is not None and not picture_shape:
            raise InputError(
                f"{source} holds images, and items of shape {shape} are expected; give a .npy file of them"
            )
        if path.is_dir():
            data = images(
                path, (height, width), channels=channels, labels=labels, skip_broken=skip_broken, convert=convert
            )
        else:
            raw = read_image(path, channels, (height, width), convert)
            data = replace(array(raw.unsqueeze(0), name=source), names=lambda _: source)
    if shape is not None and data.shape != shape:
        raise InputError(f"{source} {_mismatch(data.shape, shape)}")
    return data


def _mismatch(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(found) == len(wanted) == 3 and found[0] != wanted[0]:
        return f"has {found[0]} channels (items of shape {found}) and {wanted[0]} are expected; convert it first"
    return f"has items of shape {found} and {wanted} is expected; reshape or resize them first"
