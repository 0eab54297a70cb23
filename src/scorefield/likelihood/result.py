"""What a likelihood is handed back as, whether a density, a bound on one, or the probability of integers."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scorefield.errors import ScorefieldWarning
from scorefield.likelihood.dequantize import levels_width

if TYPE_CHECKING:
    from scorefield.charts import Chart

LEVELS, RANGE = 256, (-1.0, 1.0)
REAL = 0
"""Levels of data that has none."""


@dataclass(frozen=True, repr=False)
class LogProb:
    """Log-likelihoods of a batch, as means of unbiased estimates.

    Attributes:
        nats: log p(x) of each sample, the mean of its estimates, (B,), float64 (float32 on a
            device other than the CPU); NaN where the solver did not finish.
        stderr: standard error of nats, (B,); 0 where the estimate is exact, NaN where there is a single one.
        draws: the estimates, (B, K), one for each probe, draw of (t, eps) or dequantisation.
        nfe: evaluations of the network, (B,).
        status: 0 where the solver finished, else see `solve.integrate.STATUS`, (B,).
        dims: dimensions of a sample.
        latent: the state at T, like x; None for what follows no trajectory.
        discrete: whether these are probabilities of integers, in place of densities.
        levels, range: how many values the data of the model has, 0 for real numbers and None where nothing says, and the
            interval that they fill; `train` and `load` know them.
    """

    nats: Tensor
    stderr: Tensor
    draws: Tensor
    nfe: Tensor
    status: Tensor
    dims: int
    latent: Tensor | None = None
    discrete: bool = False
    levels: int | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def of_draws(cls, draws: Tensor, nfe: Tensor, status: Tensor, dims: int, exact: bool = False) -> LogProb:
        """From estimates (B, K); a sample that did not finish has none."""
        draws = torch.where((status == 0).unsqueeze(1), draws, math.nan)
        nats, k = draws.mean(1), draws.shape[1]
        spread = draws.std(1) if k > 1 else torch.full_like(nats, 0.0 if exact else math.nan)
        return cls(nats, spread / math.sqrt(k), draws, nfe, status, dims)

    def bits_per_dim(self, levels: int | None = None, low: float | None = None, high: float | None = None) -> Tensor:
        """Bits per dimension of discrete data with `levels` values that were dequantised to fill [low, high]: (B,).

        A density that is uniform on the range gives log2(levels) (Theis et al. 2016; 8 bits for 256 levels). The defaults
        are those of the data that the model was trained on, else 256 levels in [-1, 1]; other levels than the model's are
        counted as asked for, with a warning. Data of real numbers has no levels: its densities are `nats`. Probabilities of
        integers take no arguments.

        Raises:
            ValueError: fewer than one level, an empty range, no levels for a model of real numbers, or arguments for
                probabilities of integers.
        """
        bits = -self.nats / (self.dims * math.log(2))
        if self.discrete:
            if (levels, low, high) != (None, None, None):
                raise ValueError("bits_per_dim: these are probabilities of integers already; call it without arguments")
            return bits
        return math.log2(self.width(levels, low, high)) + bits

    def width(self, levels: int | None = None, low: float | None = None, high: float | None = None) -> float:
        """Levels per unit of the range, as `bits_per_dim` counts them.

        Raises:
            ValueError: as `bits_per_dim`.
        """
        if levels is None and self.levels == REAL:
            raise ValueError(
                "bits_per_dim: the model was trained on real numbers, which have no levels; take nats, or "
                "bits_per_dim(levels=256, low=-1, high=1) if they are levels that were dequantised to fill [-1, 1]"
            )
        told = None
        if None not in (levels, self.levels) and levels != self.levels != REAL:
            told = f"levels={levels}, and the model was trained on data of {self.levels} levels"
        start, end = self.range or RANGE
        if self.levels == REAL and self.range is None and None in (low, high):
            told = f"the model was trained on real numbers of unknown range, taken for [{start:g}, {end:g}]; give low and high"
        if told is not None:
            warnings.warn(f"bits_per_dim: {told}", ScorefieldWarning, stacklevel=3)
        start, end = start if low is None else low, end if high is None else high
        return levels_width(levels or self.levels or LEVELS, start, end)

    def bits_stderr(self) -> Tensor:
        """Standard error of `bits_per_dim`, (B,)."""
        return self.stderr / (self.dims * math.log(2))

    def importance_weighted(self) -> LogProb:
        """The tighter bound log mean exp of the estimates (Burda et al. 2016), for probabilities of integers.

        It needs accurate log-densities: noise of variance v in each raises it by up to v / 2. Its standard error is that
        of a ratio, by the delta method.
        """
        k = self.draws.shape[1]
        weights = torch.softmax(self.draws, 1) * k
        spread = weights.std(1) if k > 1 else torch.full_like(self.nats, math.nan)
        return replace(self, nats=torch.logsumexp(self.draws, 1) - math.log(k), stderr=spread / math.sqrt(k))

    def plot(self) -> Chart:
        """A figure of the values: their histogram, and in order with their standard errors (needs matplotlib)."""
        from scorefield.charts import values

        return values(self.nats, self.stderr, "nats")

    def __repr__(self) -> str:
        done = self.nats[self.status == 0].detach()
        mean = f"{float(done.mean()):.4f}" if len(done) else "nan"
        error = f" ± {float(done.std()) / math.sqrt(len(done)):.4f}" if len(done) > 1 else ""
        calls = float(self.nfe.double().mean())
        return (
            f"LogProb({len(self.nats)} samples of {self.dims} dims: mean {mean}{error} nats, nfe={calls:.1f} per sample, "
            f"unfinished={len(self.nats) - len(done)})"
        )
