"""Files of latent codes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.errors import InputError, cannot_read
from scorefield.files import atomic_file

KEY = "codes"


def check_suffix(path: str) -> None:
    """Refuse what is neither .npz nor .npy.

    Raises:
        InputError: another suffix.
    """
    suffix = Path(path).suffix
    if suffix not in (".npz", ".npy"):
        raise InputError(f"cannot write {path}: unknown suffix {suffix!r}; use .npz or .npy")


def write_codes(path: str, codes: Tensor, names: Sequence[str]) -> None:
    """Write codes (N, *) as float32, in a .npz with the names of their items.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    values = codes.detach().float().cpu().contiguous().numpy()
    with atomic_file(path) as file:
        if path.endswith(".npy"):
            np.save(file, values)
        else:
            np.savez(file, codes=values, names=np.array(names, dtype=np.str_))


def read_codes(path: str, shape: tuple[int, ...]) -> Tensor:
    """Codes (N, *shape) from a file that `write_codes` or NumPy wrote, float32.

    Raises:
        InputError: no such file, not an array, or codes of another shape.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if hasattr(stored, "files"):
            with stored as archive:
                if KEY not in archive.files:
                    held = ", ".join(archive.files) or "nothing"
                    raise InputError(f"{path} holds {held} and no {KEY!r}; give a file that encode wrote")
                stored = archive[KEY]
    except OSError as error:
        raise cannot_read(path, error) from error
    except InputError:
        raise
    except (ValueError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
        raise InputError(
            f"cannot read {path}: it is damaged or not a NumPy file; give one that encode wrote"
        ) from error
    if stored.dtype.kind != "f" or stored.ndim < 2 or stored.shape[1:] != shape or not len(stored):
        raise InputError(
            f"{path} holds {stored.dtype} of shape {stored.shape}; the run's codes are floats of shape (N, "
            f"{', '.join(map(str, shape))})"
        )
    codes = torch.from_numpy(np.ascontiguousarray(stored, dtype=np.float32))
    if not bool(torch.isfinite(codes).all()):
        raise InputError(f"{path} holds codes that are not finite; encode the items again")
    return codes
