"""The columns of a table, made nearly standard normal by an invertible map whose volume is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
POWERS = np.linspace(0.0, 2.0, 81)
"""Powers of Yeo and Johnson for which the map is onto, so that no density is lost."""


@dataclass(frozen=True)
class Columns:
    """z = W (psi(u) - m), u = (x - centre) / scale: each column straightened by a power, then all of them decorrelated.

    psi is that of Yeo & Johnson 2000, eq. 2, with the power of greatest likelihood between 0 and 2; W is the symmetric
    root of the inverse covariance.

    Attributes:
        centre, scale, powers, m: (D,). whiten, colour: W and its inverse, (D, D).
    """

    centre: Array
    scale: Array
    powers: Array
    mean: Array
    whiten: Array
    colour: Array

    @classmethod
    def fit(cls, x: Array, shrinkage: float | None) -> Columns:
        """From rows x (N, D), none of whose columns is constant.

        `shrinkage` is that of the covariance towards its diagonal; None leaves the columns correlated, W diagonal.
        """
        centre, scale = x.mean(0), x.std(0)
        u = (x - centre) / scale
        powers = np.array([_power(column) for column in u.T])
        y = _bend(u, powers)
        covariance = np.atleast_2d(np.cov(y.T, bias=True))
        kept = 0.0 if shrinkage is None else 1 - shrinkage
        covariance = kept * covariance + (1 - kept) * np.diag(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance)
        root = np.sqrt(np.maximum(values, 1e-10 * values.max()))
        whiten, colour = (vectors * s @ vectors.T for s in (1 / root, root))
        return cls(centre, scale, powers, y.mean(0), whiten, colour)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """z (N, D) of rows x (N, D), and the log of the factor by which the map stretches volume there, (N,)."""
        u = (x - self.centre) / self.scale
        stretch = ((self.powers - 1) * np.sign(u) * np.log1p(np.abs(u))).sum(1)
        constant = np.linalg.slogdet(self.whiten)[1] - np.log(self.scale).sum()
        return (_bend(u, self.powers) - self.mean) @ self.whiten.T, stretch + constant

    def inverse(self, z: Array) -> Array:
        """Rows x of z."""
        x: Array = _unbend(z @ self.colour.T + self.mean, self.powers) * self.scale + self.centre
        return x


def _power(u: Array) -> float:
    """The power of greatest likelihood of a normal law for psi(u); 1, the identity, unless another one is worth its bits."""
    logs = (np.sign(u) * np.log1p(np.abs(u))).sum()
    bent = _bend(u[:, None], POWERS)
    gain = -0.5 * len(u) * np.log(bent.var(0)) + (POWERS - 1) * logs
    best = int(gain.argmax())
    return float(POWERS[best]) if gain[best] > 0.5 * math.log(len(u)) else 1.0


def _bend(u: Array, power: Array) -> Array:
    log = np.log1p(np.abs(u))
    chosen = np.where(u >= 0, power, 2 - power)  # the negative half is the mirrored positive one of power 2 - lambda
    safe = np.where(chosen == 0, 1.0, chosen)
    result: Array = np.sign(u) * np.where(chosen == 0, log, np.expm1(safe * log) / safe)
    return result


def _unbend(y: Array, power: Array) -> Array:
    chosen = np.where(y >= 0, power, 2 - power)
    safe = np.where(chosen == 0, 1.0, chosen)
    log = np.where(chosen == 0, np.abs(y), np.log1p(safe * np.abs(y)) / safe)
    result: Array = np.sign(y) * np.expm1(log)
    return result
