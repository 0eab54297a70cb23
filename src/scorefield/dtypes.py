"""What dtype a tensor may have, and which one it gets: the CPU counts in float64, other devices in what they are given."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

EXACT: tuple[str, ...] = ("cpu",)
"""Kinds of device on which the library makes float64 tensors of its own; Apple's MPS, for one, has none."""


def wide(x: Tensor) -> Tensor:
    """x in float64 on the CPU, where sums are to keep their digits; elsewhere in float32 at least."""
    return x.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype that `wide` gives x."""
    if x.device.type in EXACT:
        return torch.float64
    return torch.promote_types(x.dtype, torch.float32)


def exact(value: Any) -> Tensor:
    """Numbers as a float64 tensor on the CPU, converted after they moved."""
    if isinstance(value, Tensor):
        return value.cpu().double()
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def onto(value: Tensor, x: Tensor) -> Tensor:
    """value in the dtype and on the device of x, converted before it moves."""
    return value.to(x.dtype).to(x.device)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off; devices that know no autocast, such as meta, have none to switch off."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def check_real(x: Tensor, name: str = "x") -> None:
    """Refuse states that are not real floating-point numbers: noise and scores have no place among integers.

    Raises:
        ValueError: integers, booleans or complex numbers, or no tensor.
    """
    check_tensor(x, name)
    if x.is_complex():
        raise ValueError(f"{name} is complex; give its parts as real entries, torch.view_as_real({name})")
    check_not_integers(x, name)


def check_tensor(x: Any, name: str = "x") -> None:
    """Refuse what is no tensor, where an array cannot stand for one.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}; give a tensor, as torch.as_tensor makes one of an array")


def check_batch(x: Tensor, name: str = "x") -> None:
    """Refuse what is no batch (B, *) of real floating-point numbers.

    Raises:
        ValueError: as `check_real`, or one dimension or none.
    """
    check_real(x, name)
    if x.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; give a batch (B, *), one item being (1, *)")


def check_not_integers(x: Tensor, name: str = "x") -> None:
    """Refuse integers and booleans, which would cut every factor to 0.

    Raises:
        ValueError: such a dtype.
    """
    if not (x.is_floating_point() or x.is_complex()):
        hint = ", for 8-bit images in [-1, 1] x.float() / 127.5 - 1" if x.dtype == torch.uint8 else ""
        raise ValueError(f"{name} has dtype {x.dtype}; give data in the model's range, in floating point{hint}")


def check_finite(x: Tensor, name: str = "x") -> None:
    """Refuse samples (B, *) that are not finite.

    Raises:
        ValueError: some are; the first is named.
    """
    if x.is_meta:
        return
    bad = (~torch.isfinite(x.detach()).flatten(1).all(1)).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"{name} holds NaN or infinity in {len(bad)} of {len(x)} samples, first in sample {int(bad[0])}"
        )


def warn_of_units(x: Tensor, low: float, high: float, name: str = "x", what: str = "the model expects data") -> None:
    """Warn of data that can hardly be in the range [low, high]: 8-bit levels, or twenty times too large.

    One transfer of two numbers; nothing on the meta device.
    """
    if x.is_meta or x.numel() == 0:
        return
    least, most = (float(v) for v in torch.stack(torch.aminmax(x.detach())))
    reach = max(abs(low), abs(high))
    levels = least >= 0 and most > 8 * reach and bool((x == torch.round(x)).all())
    if levels or max(-least, most) > 20 * reach:
        warnings.warn(
            f"{name} runs from {least:.4g} to {most:.4g}, where {what} in [{low:.4g}, {high:.4g}]: "
            "convert it to the model's range first",
            RuntimeWarning,
            stacklevel=3,
        )
