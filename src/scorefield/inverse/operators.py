"""Linear measurements y = A x with their adjoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Operator(Protocol):
    """What a linear measurement offers."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x, (B, *) -> (B, *)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, like x."""
        ...


@dataclass(frozen=True, eq=False)
class Mask:
    """Keeps the entries where the mask is true, zero elsewhere.

    Main arguments:
        mask: boolean or 0/1, broadcastable to (B, *): of the event shape, or with a row for each sample.

    Raises:
        ValueError: values other than 0 and 1.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        mask = torch.as_tensor(self.mask)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask: values must be 0 (unknown) or 1 (known)")
        object.__setattr__(self, "mask", mask.bool())

    def __call__(self, x: Tensor) -> Tensor:
        """x with its unknown entries set to zero."""
        return torch.where(self.mask.to(x.device), x, torch.zeros_like(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The same as the operator itself."""
        return self(y)
