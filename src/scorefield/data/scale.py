"""The map between the units of data and those of a model, and its volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.data.yeo_johnson import Powers
from scorefield.inputs import tensor_of


@dataclass(frozen=True)
class Scale:
    """x = psi^-1(mean + factor z) for items x in the units of the data and z in those of the model, in float64 on the CPU.

    Main arguments:
        mean: one number, or like an item.
        factor: one number, or like an item: standard deviations; or of vectors (D, D), lower triangular: a Cholesky factor
            of the covariance, which whitens them.
        powers: psi, which straightens the columns of vectors; the identity where there is none.
    """

    mean: Tensor
    factor: Tensor
    powers: Powers | None = None

    @classmethod
    def of_columns(cls, x: Tensor, *, whiten: bool = True, straighten: bool = True, shrink: bool = True) -> Scale:
        """The scale in which the vectors x, (N, D), have no mean and unit variances, and where `whiten` no correlation.

        `straighten` bends columns that a power makes more nearly normal. `shrink` draws the covariance towards its diagonal
        by the share of Ledoit & Wolf 2004, which few rows need. No column may be constant.
        """
        x = x.cpu().double()
        powers = Powers.fitted(x) if straighten else None
        y = x if powers is None else powers.bend(x)
        mean, std = y.mean(0), y.std(0, correction=0)
        if not whiten:
            return cls(mean, std, powers)
        u = (y - mean) / std
        correlation = u.T @ u / len(u)
        share = _shrinkage(u, correlation) if shrink else 0.0
        correlation = (1 - share) * correlation + share * torch.eye(x.shape[1], dtype=x.dtype, device="cpu")
        values, basis = torch.linalg.eigh(correlation)
        least = 1e-10 * float(values.max())
        if float(values.min()) < least:
            correlation = (basis * values.clamp_min(least)) @ basis.T
        return cls(mean, std[:, None] * torch.linalg.cholesky(correlation), powers)

    @property
    def whitens(self) -> bool:
        """Whether the factor is a matrix."""
        return self.mean.ndim == 1 and self.factor.ndim == 2

    def forward(self, x: Tensor) -> Tensor:
        """z of items x (B, *), float64."""
        wide = x.cpu().double()
        centred = (wide if self.powers is None else self.powers.bend(wide)) - self.mean
        if not self.whitens:
            return centred / self.factor
        z: Tensor = torch.linalg.solve_triangular(self.factor, centred.T, upper=False).T
        return z

    def to_model(self, x: Tensor) -> Tensor:
        """Items (B, *) in the units of the model, float32, on the device of x."""
        return self.forward(x).float().to(x.device)

    def to_units(self, z: Tensor) -> Tensor:
        """What a model returns, (B, *), in the units of the data, in the dtype and on the device of z.

        Where that dtype has not the digits, as float32 for seconds since 1970, in float64 on the CPU.
        """
        x = self._backward(z.cpu().double())
        return x if self._needs_digits(z.dtype) else x.to(z.dtype).to(z.device)

    def _backward(self, z: Tensor) -> Tensor:
        x = self.mean + (z @ self.factor.T if self.whitens else z * self.factor)
        return x if self.powers is None else self.powers.unbend(x)

    def _needs_digits(self, dtype: torch.dtype) -> bool:
        """Whether numbers of the size of the mean are farther apart than a thousandth of the deviation."""
        std = torch.linalg.vector_norm(self.factor, dim=1) if self.whitens else self.factor
        ends = self.mean, self.mean + std
        low, high = ends if self.powers is None else (self.powers.unbend(end[None])[0] for end in ends)
        return bool((torch.finfo(dtype).eps * low.abs() > 1e-3 * (high - low).abs()).any())

    def log_volume(self, x: Tensor) -> Tensor:
        """log |det dx / dz| at items x (B, *), (B,): what a log-density of z exceeds that of x by."""
        logs = (self.factor.diagonal() if self.whitens else self.factor).log()
        constant = logs.expand(x.shape[1:]).sum() if x.ndim > 1 else logs
        slope = 0.0 if self.powers is None else self.powers.log_slope(x.cpu().double()).sum(1)
        return (constant - slope).expand(len(x)).to(x.device)

    def to_json(self) -> dict[str, Any]:
        """Lists of numbers, of which `from_json` makes the same scale."""
        known = {"mean": self.mean.tolist(), "factor": self.factor.tolist()}
        return known if self.powers is None else known | {"powers": self.powers.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scale:
        """The scale of `to_json`.

        Raises:
            ValueError: what is no numbers. KeyError, TypeError: what is none at all.
        """
        mean, factor = (tensor_of(content[name], name, device="cpu").double() for name in ("mean", "factor"))
        return cls(mean, factor, Powers.from_json(content["powers"]) if "powers" in content else None)


def _shrinkage(u: Tensor, correlation: Tensor) -> float:
    """The share of the identity in the best estimate of a covariance from rows u (N, D) (Ledoit & Wolf 2004, eq. 14)."""
    n, d = u.shape
    level = correlation.diagonal().mean()
    away = (correlation - level * torch.eye(d, dtype=u.dtype, device="cpu")).square().sum()
    noise = (u.square().sum(1).square().mean() - correlation.square().sum()) / n
    return float((torch.minimum(noise, away) / away).clamp(0, 1)) if float(away) > 0 else 0.0
