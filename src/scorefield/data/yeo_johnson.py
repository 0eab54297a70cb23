"""Columns straightened by a power each (Yeo & Johnson 2000)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.inputs import tensor_of

TRIED = torch.linspace(0.0, 2.0, 81, dtype=torch.float64, device="cpu")
"""Powers for which the map is onto, so that no density is lost."""


@dataclass(frozen=True)
class Powers:
    """psi((x - centre) / scale) of rows x (N, D): eq. 2.1 of Yeo & Johnson 2000, column by column, float64.

    Main arguments:
        centre, scale, powers: (D,); a power of 1 leaves a column as it is.
    """

    centre: Tensor
    scale: Tensor
    powers: Tensor

    @classmethod
    def fitted(cls, x: Tensor) -> Powers | None:
        """Of rows x (N, D), no column constant: the powers of greatest likelihood of normal columns; None where all are 1."""
        centre, scale = x.mean(0), x.std(0, correction=0)
        powers = torch.tensor([_best(u) for u in ((x - centre) / scale).T], dtype=torch.float64, device="cpu")
        return None if bool((powers == 1).all()) else cls(centre, scale, powers)

    def bend(self, x: Tensor) -> Tensor:
        """psi of rows x (N, D)."""
        return _bend((x - self.centre) / self.scale, self.powers)

    def unbend(self, y: Tensor) -> Tensor:
        """The rows x (N, D) of y = psi."""
        chosen = torch.where(y >= 0, self.powers, 2 - self.powers)
        safe = torch.where(chosen == 0, 1.0, chosen)
        log = torch.where(chosen == 0, y.abs(), torch.log1p(safe * y.abs()) / safe)
        return torch.sign(y) * torch.expm1(log) * self.scale + self.centre

    def log_slope(self, x: Tensor) -> Tensor:
        """log d psi / dx of rows x, (N, D)."""
        u = (x - self.centre) / self.scale
        return (self.powers - 1) * torch.sign(u) * torch.log1p(u.abs()) - self.scale.log()

    def to_json(self) -> dict[str, list[float]]:
        """Lists of numbers, of which `from_json` makes the same powers."""
        return {name: getattr(self, name).tolist() for name in ("centre", "scale", "powers")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Powers:
        """The powers of `to_json`."""
        return cls(*(tensor_of(content[name], name, device="cpu").double() for name in ("centre", "scale", "powers")))


def _best(u: Tensor) -> float:
    """The power of greatest likelihood of a normal law for psi(u); 1, the identity, unless another one is worth its bits."""
    logs = (torch.sign(u) * torch.log1p(u.abs())).sum()
    gain = -0.5 * len(u) * _bend(u[:, None], TRIED).var(0, correction=0).log() + (TRIED - 1) * logs
    best = int(gain.argmax())
    return float(TRIED[best]) if float(gain[best]) > 0.5 * math.log(len(u)) else 1.0


def _bend(u: Tensor, power: Tensor) -> Tensor:
    log = torch.log1p(u.abs())
    chosen = torch.where(u >= 0, power, 2 - power)  # the negative half is the mirrored positive one of power 2 - lambda
    safe = torch.where(chosen == 0, 1.0, chosen)
    return torch.sign(u) * torch.where(chosen == 0, log, torch.expm1(safe * log) / safe)
