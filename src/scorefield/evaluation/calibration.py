"""Is a posterior sampler right? Ranks and coverage of the truth among its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scorefield.charts import Chart


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of the truth among K posterior samples, for M simulated measurements and Q quantities.

    A right sampler gives ranks uniform on 0 .. K (Talts et al. 2018, Theorem 1): heaped at both ends it is
    over-confident, in the middle under-confident, on one side biased.

    Attributes:
        ranks: (M, Q), integers from 0 to K.
        samples: K.
    """

    ranks: Tensor
    samples: int

    def coverage(self, level: float = 0.9) -> Tensor:
        """Share of truths inside the central interval that ranks of this level span, (Q,); a right sampler gives `expected`."""
        low, high = self._interval(level)
        return ((self.ranks >= low) & (self.ranks <= high)).double().mean(0)

    def expected(self, level: float = 0.9) -> float:
        """What a right sampler covers: the level, rounded to what K samples can express."""
        low, high = self._interval(level)
        return (high - low + 1) / (self.samples + 1)

    def stderr(self, level: float = 0.9) -> float:
        """Standard error of one quantity's coverage over the M measurements, for a right sampler."""
        p = self.expected(level)
        return math.sqrt(p * (1 - p) / len(self.ranks))

    def p_value(self, bins: int = 10) -> Tensor:
        """Chi-square test of uniform ranks, (Q,): the chance of such ranks from a right sampler.

        Raises:
            ValueError: fewer than 2 bins, or more than there are ranks.
        """
        if not 2 <= bins <= self.samples + 1:
            raise ValueError(f"bins={bins}: give between 2 and {self.samples + 1}")
        edges = torch.arange(self.samples + 1, device="cpu") * bins // (self.samples + 1)
        size = torch.bincount(edges, minlength=bins).double() / (self.samples + 1) * len(self.ranks)
        found = torch.stack([torch.bincount(edges[column], minlength=bins) for column in self.ranks.T]).double()
        statistic = (torch.square(found - size) / size).sum(1)
        freedom = torch.tensor((bins - 1) / 2, dtype=torch.float64, device="cpu")
        chance: Tensor = torch.special.gammaincc(freedom, statistic / 2)
        return chance

    def plot(self) -> Chart:
        """A figure of the ranks beside the band of even ones (needs matplotlib)."""
        from scorefield.charts import ranks

        return ranks(self.ranks, self.samples)

    def __repr__(self) -> str:
        m, q = self.ranks.shape
        covered, p = self.coverage(), self.p_value(min(10, self.samples + 1))
        return (
            f"Calibration({m} measurements, {q} quantities, {self.samples} samples each: 90 % intervals cover "
            f"{float(covered.mean()):.3f} on average, {self.expected():.3f} expected; smallest p-value {float(p.min()):.2g})"
        )

    def _interval(self, level: float) -> tuple[int, int]:
        if not 0 < level < 1:
            raise ValueError(f"level={level}: give a number between 0 and 1, such as 0.9")
        outside = round((self.samples + 1) * (1 - level) / 2)
        return outside, self.samples - outside


def calibrate(
    samples: Tensor,
    truth: Tensor,
    quantity: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Calibration:
    """Simulation-based calibration of samples drawn for measurements of known truths.

    Main arguments:
        samples: (M, K, *): K posterior samples for each of M measurements, simulated from truths drawn from the prior.
        truth: (M, *).

    Other arguments:
        quantity: (N, *) -> (N, Q), what is ranked; every entry by default.
        seed: of the random order among equal values.

    Raises:
        ValueError: shapes that do not fit.
    """
    if samples.ndim < 2 or samples.shape[:1] + samples.shape[2:] != truth.shape:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and truth {tuple(truth.shape)}; give (M, K, *) and (M, *)"
        )
    m, k = samples.shape[:2]
    read = quantity if quantity is not None else (lambda x: x.flatten(1))
    drawn = read(samples.flatten(0, 1)).reshape(m, k, -1)
    true = read(truth).reshape(m, 1, -1)
    ties, below = (drawn == true).sum(1).cpu(), (drawn < true).sum(1).cpu()
    u = torch.rand(ties.shape, generator=_generator(seed), dtype=torch.float64, device="cpu")
    ranks = below + torch.floor(u * (ties + 1)).long()
    return Calibration(ranks, k)


def _generator(seed: int) -> torch.Generator:
    # Salted: with the seed that the caller drew the truths from, the order of ties would follow the truths.
    return torch.Generator().manual_seed((seed ^ 0xCA11B8A7E) % 2**63)
