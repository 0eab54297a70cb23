"""Where in a sample its log-density comes from: the flow's change of variables, entry by entry."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.dtypes import check_finite, check_real, warn_of_units, wide
from scorefield.inputs import as_tensor
from scorefield.likelihood.log_prob import AugmentedFlow
from scorefield.likelihood.result import LogProb
from scorefield.likelihood.trace import Function, Hutchinson, Linearizer, estimator
from scorefield.model import ScoreModel
from scorefield.randomness import Seed, source
from scorefield.sampling import LIKELIHOOD_T_MIN
from scorefield.solve.adaptive import Control, Flow
from scorefield.solve.integrate import Field
from scorefield.solve.ode import Dopri5


@dataclass(frozen=True)
class Places:
    """A log-density and its parts, one for each entry of the sample.

    Attributes:
        lp: what `log_prob` says, bit for bit.
        nats: parts of lp.nats, like x (B, *), float64; their sum over a sample is lp.nats, up to rounding.
        stderr: standard error of each part by the spread of the probes, like x; NaN for a single probe.
    """

    lp: LogProb
    nats: Tensor
    stderr: Tensor

    def bits(self) -> Tensor:
        """Parts of `lp.bits_per_dim()`, like x: the bits that each entry costs; their mean is the figure.

        Raises:
            ValueError: as `bits_per_dim`.
        """
        return math.log2(self.lp.width()) - self.nats / math.log(2)

    def bits_stderr(self) -> Tensor:
        """Standard error of `bits`, like x."""
        return self.stderr / math.log(2)


def places(
    model: ScoreModel, x: Tensor, probes: int = 8, *, seed: Seed = None, tolerance: float = 1e-5, **cond: Any
) -> Places:
    r"""log p(x) as a sum over the entries of x, by the probability flow (Song et al. 2021, eq. 39 and 40).

    log p(x) = sum over i of  log N(z_i; 0, sigma(T)^2) + integral from t_min to T of e_i (J e)_i dt

    z is the code of x, J the Jacobian of the velocity on the way there, and e a vector of random signs, so that e_i (J e)_i
    has the mean J_ii. The sum is exact; it is shared out by the coordinates of the flow: a part says how far the code of
    that entry lies out and how much the flow stretched along it, not how well the entry can be guessed from the others.
    Where entries are independent it is log p_i(x_i).

    Main arguments:
        x: data in the model's range, (B, *). probes: random vectors for each sample. seed: as in `log_prob`.
        tolerance: relative and absolute, of Dopri5. cond: passed to the network.

    Raises:
        ValueError: as `log_prob`.
    """
    x = as_tensor(x)
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; give at least one sample, (B, *)")
    check_real(x)
    check_finite(x)
    warn_of_units(x, *model.sde.range)
    n, d, prior = len(x), math.prod(x.shape[1:]), model.sde.prior(tuple(x.shape))
    linearizer = Linearizer()
    draws = estimator("hutchinson", x, source(seed, n), probes, linearizer=linearizer)
    assert isinstance(draws, Hutchinson)
    field = Field.of(model, cond, n, torch.zeros_like(x[:1]))
    flow = AugmentedFlow(field, tuple(x.shape[1:]), x.dtype, _Entries(draws.probes, linearizer), linearizer)
    with torch.inference_mode(False), torch.no_grad():
        state = wide(x).flatten(1)
        y = torch.cat([state, state.new_zeros((n, probes * (1 + d)))], 1)
        solution = _Leading(tolerance, d + probes).solve(flow, y, (LIKELIHOOD_T_MIN, model.sde.T), source(0, n))  # type: ignore[arg-type]
        solution.warn()
    z, totals, parts = solution.x.split([d, probes, probes * d], 1)
    latent = z.reshape(x.shape)
    values = prior.log_prob(latent).unsqueeze(1) + totals
    lp = LogProb.of_draws(values, solution.nfe, solution.status, d)
    lp = replace(lp, latent=latent.to(x.dtype), levels=model.data_levels, range=model.data_range)
    own = -0.5 * torch.square(z / prior.std) - math.log(prior.std) - 0.5 * math.log(2 * math.pi)
    shares = own.unsqueeze(1) + parts.reshape(n, probes, d)
    shares = torch.where((solution.status == 0).reshape(-1, 1, 1), shares, math.nan)
    spread = shares.std(1) / math.sqrt(probes) if probes > 1 else torch.full_like(own, math.nan)
    return Places(lp, shares.mean(1).reshape(x.shape), spread.reshape(x.shape))


@dataclass
class _Entries:
    """Hutchinson's estimates, and after them their parts: (B, K + K D) columns."""

    probes: Tensor
    linearizer: Linearizer

    @property
    def columns(self) -> int:
        return len(self.probes) * (1 + math.prod(self.probes.shape[2:]))

    def __call__(self, function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        linear = self.linearizer(function, x)
        moved = linear.products(self.probes)
        parts = (wide(moved) * wide(self.probes)).flatten(2)
        return linear.value, torch.cat([parts.sum(2).T, parts.transpose(0, 1).flatten(1)], 1)

    def take(self, index: Tensor, ndim: int = 0) -> _Entries:
        return _Entries(self.probes[:, index], self.linearizer)


class _Leading(Dopri5):
    """Dopri5 whose steps are chosen by the leading columns alone, as if the others were not there."""

    def __init__(self, tolerance: float, columns: int) -> None:
        super().__init__(tolerance, tolerance)
        object.__setattr__(self, "control", _LeadingControl(columns, tolerance))


class _LeadingControl(Control):
    def __init__(self, columns: int, tolerance: float) -> None:
        super().__init__(tolerance, tolerance)
        object.__setattr__(self, "columns", columns)

    def error(self, error: Tensor, size: Tensor) -> Tensor:
        return super().error(error[:, : self.columns], size[:, : self.columns])  # type: ignore[attr-defined]

    def first_step(self, flow: Flow, x: Tensor, t: Tensor, k: Tensor, span: float, order: float) -> Tensor:
        n: int = self.columns  # type: ignore[attr-defined]
        return super().first_step(_Padded(flow, x), x[:, :n], t, k[:, :n], span, order)


@dataclass(frozen=True)
class _Padded:
    """A flow seen through its leading columns; the others are zero, which no velocity depends on."""

    flow: Flow
    like: Tensor

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        n = x.shape[1]
        return self.flow.velocity(torch.cat([x, torch.zeros_like(self.like[:, n:])], 1), t)[:, :n]
