"""The affine map between the units of data and those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """x = mean + factor z for items x in the units of the data and z in those of the model, in float64 on the CPU.

    Main arguments:
        mean: one number, or like an item.
        factor: one number, or like an item: standard deviations; or of vectors (D, D), lower triangular: a Cholesky factor
            of the covariance, which whitens them.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def whitening(cls, x: Tensor) -> Scale:
        """The scale in which the vectors x, (N, D), have no mean and the unit covariance."""
        x = x.cpu().double()
        return cls(x.mean(0), torch.linalg.cholesky(torch.cov(x.T, correction=0).reshape(x.shape[1], -1)))

    @property
    def whitens(self) -> bool:
        """Whether the factor is a matrix."""
        return self.mean.ndim == 1 and self.factor.ndim == 2

    def to_model(self, x: Tensor) -> Tensor:
        """Items (B, *) in the units of the model, float32, on the device of x."""
        centred = x.cpu().double() - self.mean
        if self.whitens:
            z: Tensor = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T
        else:
            z = centred / self.factor
        near: Tensor = z.float().to(x.device)
        return near

    def to_units(self, z: Tensor) -> Tensor:
        """What a model returns, (B, *), in the units of the data, in the dtype and on the device of z."""
        wide = z.cpu().double()
        x = self.mean + (wide @ self.factor.T if self.whitens else wide * self.factor)
        return x.to(z.dtype).to(z.device)

    def log_volume(self, dims: int) -> float:
        """log |det dx / dz| of items of so many entries: what a log-density in the units of the model exceeds that of x by."""
        logs = (self.factor.diagonal() if self.whitens else self.factor).log()
        return float(logs.sum()) if logs.ndim else dims * float(logs)

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers, of which `from_json` makes the same scale."""
        return {"mean": self.mean.tolist(), "factor": self.factor.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scale:
        """The scale of `to_json`."""
        return cls(*(torch.tensor(content[name], dtype=torch.float64) for name in ("mean", "factor")))
