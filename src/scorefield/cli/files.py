"""Samples, panels and latent codes as files; the suffix decides the format."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.errors import InputError, cannot_read
from scorefield.files import atomic_file

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

ARRAYS = (".npy", ".npz", ".safetensors", ".csv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SHOWN = 4
"""Samples in a panel, at most."""
SIDE = 112
"""Pixels to which small tiles of a panel are enlarged."""
CODES = "codes"


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether items of a shape can be shown as pictures."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def check_suffix(path: str, suffixes: Sequence[str]) -> str:
    """The suffix of a file to be written, in lower case.

    Raises:
        InputError: it is none of these.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in suffixes:
        known = " or ".join(suffixes) if len(suffixes) < 3 else f"one of {', '.join(suffixes)}"
        raise InputError(f"cannot write {path}: unknown suffix {suffix!r}; use {known}")
    return suffix


def check_format(path: str, shape: tuple[int, ...]) -> None:
    """Refuse a suffix that cannot hold samples of a shape.

    Raises:
        InputError: an unknown suffix, or a picture of what is not an image.
    """
    if check_suffix(path, PICTURES + ARRAYS) in PICTURES and not is_image(shape):
        raise InputError(f"cannot write {path}: items of shape {shape} are not images; use one of {', '.join(ARRAYS)}")


def write_samples(
    path: str,
    x: Tensor,
    low: float,
    high: float,
    columns: int | None = None,
    zoom: int = 1,
    names: Sequence[str] = (),
) -> None:
    """Write samples (N, *) with values in [low, high]: a picture as a grid, enlarged `zoom` times, arrays as they are.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    import numpy as np
    import torch

    suffix, values = Path(path).suffix.lower(), x.detach().cpu().contiguous()
    if values.dtype != torch.float64:  # which is kept where the columns need its digits
        values = values.float()
    content = io.BytesIO()
    if suffix == ".csv":
        rows, digits = values.flatten(1).tolist(), 9 if values.dtype == torch.float32 else 15
        lines = [",".join(names)] if names else []
        content.write("\n".join([*lines, *(",".join(f"{v:.{digits}g}" for v in row) for row in rows), ""]).encode())
    elif suffix == ".npy":
        np.save(content, values.numpy())
    elif suffix == ".npz":
        np.savez(content, images=values.numpy())
    elif suffix == ".safetensors":
        import safetensors.torch

        content.write(safetensors.torch.save({"samples": values}))
    else:
        _encode_picture(content, _grid(values, low, high, columns, zoom), suffix)
    with atomic_file(path) as file:
        file.write(content.getvalue())


def write_panel(
    path: str, samples: Tensor, low: float, high: float, seen: Tensor, before: Tensor | None = None
) -> None:
    """Write before, measurement, samples, mean and standard deviation in a row; arguments as in `panel`.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    tiles = panel(samples, low, high, seen, before)
    write_samples(path, tiles, low, high, len(tiles), zoom=max(1, SIDE // max(tiles.shape[-2:])))


def panel(samples: Tensor, low: float, high: float, seen: Tensor, before: Tensor | None = None) -> Tensor:
    """Tiles (K, C, H, W) in [low, high]; mean and standard deviation only of several samples.

    Main arguments:
        samples: (n, C, H, W) in [low, high]. seen, before: intensities (C', H', W') and (C, H, W).
        The standard deviation is shown relative to its largest value.
    """
    import torch

    x = samples.detach().float().cpu()
    tiles = [] if before is None else [_tile(before, x, low, high)]
    tiles += [_tile(seen, x, low, high), *x[:SHOWN]]
    if len(x) > 1:
        std = x.std(0)
        tiles += [x.mean(0), low + (high - low) * std / std.amax().clamp_min(1e-12)]
    return torch.stack(tiles)


def write_codes(path: str, codes: Tensor, names: Sequence[str]) -> None:
    """Write codes (N, *) as float32, in a .npz with the names of their items.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    import numpy as np

    values = codes.detach().float().cpu().contiguous().numpy()
    with atomic_file(path) as file:
        if path.lower().endswith(".npy"):
            np.save(file, values)
        else:
            np.savez(file, codes=values, names=np.array(names, dtype=np.str_))


def read_codes(path: str, shape: tuple[int, ...]) -> Tensor:
    """Codes (N, *shape) from a file that `write_codes` or NumPy wrote, float32.

    Raises:
        InputError: no such file, not an array, or codes of another shape.
    """
    import numpy as np
    import torch

    stored = read_numpy(path, CODES)
    if stored.dtype.kind != "f" or stored.ndim < 2 or stored.shape[1:] != shape or not len(stored):
        raise InputError(
            f"{path} holds {stored.dtype} of shape {stored.shape}; the run's codes are floats of shape (N, "
            f"{', '.join(map(str, shape))})"
        )
    codes = torch.from_numpy(np.ascontiguousarray(stored, dtype=np.float32))
    if not bool(torch.isfinite(codes).all()):
        raise InputError(f"{path} holds codes that are not finite; encode the items again")
    return codes


def read_numpy(path: str, key: str = "") -> np.ndarray:
    """The array of a .npy file, or that called `key` of a .npz file.

    Raises:
        InputError: no such file, or not an array.
    """
    import numpy as np

    try:
        stored = np.load(path, allow_pickle=False)
        if hasattr(stored, "files"):
            with stored as archive:
                if key not in archive.files:
                    held = ", ".join(archive.files) or "nothing"
                    raise InputError(f"{path} holds {held} and no {key!r}; give a file that encode wrote")
                stored = archive[key]
    except OSError as error:
        raise cannot_read(path, error) from error
    except InputError:
        raise
    except (ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path}: it is damaged or not a NumPy file; save it with numpy.save") from error
    array: np.ndarray = stored
    return array


def _tile(intensities: Tensor, like: Tensor, low: float, high: float) -> Tensor:
    from torch.nn import functional as F

    channels, height, width = like.shape[1:]
    image = intensities.detach().float().cpu().reshape(1, *intensities.shape[-3:])
    image = F.interpolate(image, (height, width), mode="nearest")[0]
    return low + (high - low) * image.expand(channels, height, width)


def _grid(x: Tensor, low: float, high: float, columns: int | None, zoom: int) -> Any:
    from scorefield.plot import image_grid

    if len(x) == 1:
        return image_grid(x, 1, low, high, zoom, gap=0)
    return image_grid(x, columns, low, high, zoom)


def _encode_picture(content: io.BytesIO, picture: Any, suffix: str) -> None:
    # In memory: Pillow loses the reason of a failure (a full disk) when it writes to a file itself.
    from PIL import Image

    picture.save(content, format=Image.registered_extensions()[suffix])
