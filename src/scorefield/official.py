"""The samplers of the paper's own code, quirk for quirk, for comparison with it; use `scorefield.sample` for anything else.

What differs from the rest of the library, on purpose:
- the corrector runs before the predictor, at the same t; the paper's text has it after;
- Euler-Maruyama steps by T / N on a grid of spacing (T - t_min) / (N - 1);
- reverse diffusion and ancestral sampling read tables of N entries at the truncated index t (N - 1), and step to the entry
  below it rather than to the next time of the grid;
- the Langevin step uses norms averaged over the batch, so a sample depends on its batch-mates;
- tables, times and kernels are float32, with 1 - exp(.) where the library uses expm1;
- imputation puts known data at noise level t after the predictor has left it, and its mean keeps noise in the unknown part,
  so that the final denoising is lost there;
- the draw for a colourisation starts with the gray channel's mask applied to the pixels, not to the rotated channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, NoiseFn, NoNoise, Seed, source
from scorefield.sde import GaussianSDE
from scorefield.sdes import VE, VP, SubVP
from scorefield.solve.integrate import Field
from scorefield.solve.ode import Dopri5

Predictor: TypeAlias = Literal["euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none"]
Corrector: TypeAlias = Literal["langevin", "ald", "none"]
PREDICTORS: tuple[str, ...] = ("euler_maruyama", "reverse_diffusion", "ancestral_sampling", "none")
CORRECTORS: tuple[str, ...] = ("langevin", "ald", "none")

Update: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]"
"""(x, t of shape (B,)) -> (x after the update, its mean)."""
Turn: TypeAlias = "Callable[[Tensor], Tensor]"
Clamp: TypeAlias = "Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]"
"""(x, mean, t) -> the same with the known data put in."""

GRAY = (
    (0.57735014, -0.81649649, 4.7008697e-08),
    (0.57735026, 0.40824834, 0.70710671),
    (0.57735026, 0.40824822, -0.70710683),
)
"""Colours to (gray, two more channels); Song et al. 2021, App. I.3, with the digits of the paper's code."""


@torch.no_grad()
def pc_sample(
    model: ScoreModel,
    shape: Sequence[int],
    predictor: Predictor = "reverse_diffusion",
    corrector: Corrector = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    probability_flow: bool = False,
    steps: int = 1000,
    t_min: float = 1e-3,
    denoise: bool = True,
    noise: NoiseFn | None = None,
    *,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """Predictor-corrector samples as the paper's code draws them (Song et al. 2021, Alg. 1 to 5, and the list above).

    Main arguments:
        shape: (B, *), with the batch.
        predictor: "euler_maruyama", "reverse_diffusion", "ancestral_sampling" or "none".
        corrector: "langevin", "ald" (annealed Langevin) or "none"; `corrector_steps` times at each noise level.
        snr: signal-to-noise ratio of the corrector.
        probability_flow: the predictor's discretisation of the probability flow in place of the reverse SDE.
        steps: N, the number of times, from T to `t_min` inclusive, and the length of the tables.
        denoise: return the mean of the last update, without its noise.
        noise: callable that returns the next standard-normal tensor of shape `shape`: the prior's, then at each time one
            for every corrector step and one for the predictor (which the probability flow takes and ignores).

    Other arguments:
        seed: as in `scorefield.sample`; not with noise. cond: passed to the network.

    Returns:
        Samples in the model's range, of shape `shape` and the dtype of the model.

    Raises:
        ValueError: an argument out of range, or a combination on which the paper's code itself fails.
    """
    field = Field(model, cond, shape[0])
    draws = source(seed, shape[0], noise)
    table = _Table(model.sde, steps)
    correct, predict = _updates(table, field, draws, predictor, corrector, snr, corrector_steps, probability_flow)
    x = table.prior_std * draws.normal(shape, model.dtype, model.device)
    return _loop(x, table, t_min, denoise, correct, predict)


@torch.no_grad()
def inpaint(
    model: ScoreModel,
    data: Tensor,
    mask: Tensor,
    predictor: Predictor = "reverse_diffusion",
    corrector: Corrector = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    probability_flow: bool = False,
    steps: int = 1000,
    t_min: float = 1e-3,
    denoise: bool = True,
    noise: NoiseFn | None = None,
    *,
    seed: Seed = None,
    repaired: bool = False,
    **cond: Any,
) -> Tensor:
    """Imputation as the paper's code does it (Song et al. 2021, App. I.2, and the list above); see `pc_sample`.

    Main arguments:
        data: (B, *), in the model's range; mask: 1 where data is known, 0 elsewhere, broadcastable to data.
        noise: as in `pc_sample`, and after every corrector and every predictor one more, for the known data.

    Other arguments:
        repaired: take the update's mean, not its noisy state, for the unknown part of the mean.

    Returns:
        Samples like data.

    Raises:
        ValueError: as `pc_sample`.
    """
    field, draws, table = Field(model, cond, len(data)), source(seed, len(data), noise), _Table(model.sde, steps)
    x, clamp = _known(table, draws, data, mask.to(data), (_same, _same), repaired)
    correct, predict = _updates(table, field, draws, predictor, corrector, snr, corrector_steps, probability_flow)
    return _loop(x, table, t_min, denoise, correct, predict, clamp)


@torch.no_grad()
def colorize(
    model: ScoreModel,
    gray: Tensor,
    predictor: Predictor = "reverse_diffusion",
    corrector: Corrector = "langevin",
    snr: float = 0.16,
    corrector_steps: int = 1,
    probability_flow: bool = False,
    steps: int = 1000,
    t_min: float = 1e-3,
    denoise: bool = True,
    noise: NoiseFn | None = None,
    *,
    seed: Seed = None,
    repaired: bool = False,
    **cond: Any,
) -> Tensor:
    """Colourisation as the paper's code does it (Song et al. 2021, App. I.3, and the list above); see `inpaint`.

    Main arguments:
        gray: (B, 3, *), the gray image in each of the three channels, in the model's range.

    Returns:
        Samples like gray.

    Raises:
        ValueError: as `pc_sample`, or images that do not have three channels.
    """
    if gray.ndim < 3 or gray.shape[1] != 3:
        raise ValueError(f"gray has shape {tuple(gray.shape)}; give (B, 3, height, width), the same image three times")
    field, draws, table = Field(model, cond, len(gray)), source(seed, len(gray), noise), _Table(model.sde, steps)
    rotation = torch.tensor(GRAY, dtype=torch.float32)
    there, back = (_turned(matrix.to(gray)) for matrix in (rotation, torch.linalg.inv(rotation)))
    known = torch.cat([torch.ones_like(gray[:, :1]), torch.zeros_like(gray[:, 1:])], 1)
    x, clamp = _known(table, draws, there(gray), known, (there, back), repaired)
    correct, predict = _updates(table, field, draws, predictor, corrector, snr, corrector_steps, probability_flow)
    return _loop(x, table, t_min, denoise, correct, predict, clamp)


def _same(x: Tensor) -> Tensor:
    return x


def _turned(matrix: Tensor) -> Turn:
    """Channels (B, C, *) turned by a matrix (C, C)."""
    return lambda x: torch.einsum("bi...,ij->bj...", x, matrix)


def _known(
    table: _Table, draws: Noise, target: Tensor, known: Tensor, turns: tuple[Turn, Turn], repaired: bool
) -> tuple[Tensor, Clamp]:
    """The start, and what puts the known part of the target, in turned channels, into each state."""
    there, back = turns

    def clamp(x: Tensor, mean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        centre, std = table.marginal(target, t)
        noisy = centre + draws.like(x) * expand(std, x)
        inside = back(there(x) * (1 - known) + noisy * known)
        return inside, back(there(mean if repaired else inside) * (1 - known) + centre * known)

    start = target * known + there(table.prior_std * draws.like(target) * (1 - known))
    return back(start), clamp


@torch.no_grad()
def ode_sample(
    model: ScoreModel,
    shape: Sequence[int],
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 1000,
    t_min: float = 1e-3,
    denoise: bool = False,
    noise: NoiseFn | None = None,
    *,
    seed: Seed = None,
    **cond: Any,
) -> Tensor:
    """Probability-flow samples, ended as the paper's code ends them (Song et al. 2021, App. D.3).

    Its final denoising is the mean of one reverse-diffusion step at t_min from tables of `steps` entries, not Tweedie's
    formula. Its error norm runs over the whole batch; here every sample has its own, so both agree to the tolerances.

    Main arguments:
        shape: (B, *), with the batch. rtol, atol: tolerances of the order-5 Runge-Kutta pair.
        noise, seed, cond: as in `pc_sample`.

    Raises:
        ValueError: an SDE that the paper's code does not have.
    """
    field = Field(model, cond, shape[0])
    table = _Table(model.sde, steps)
    x = table.prior_std * source(seed, shape[0], noise).normal(shape, model.dtype, model.device)
    solver = Dopri5(rtol=rtol, atol=atol, variable="t")
    x = solver.solve(field, x, (model.sde.T, t_min), NoNoise(shape[0])).x
    if not denoise:
        return x
    t = torch.full((shape[0],), t_min, dtype=torch.float32, device=x.device)
    f, g = table.discretize(x, t)
    return x - f + expand(g**2, x) * field.score(x, t)


def _loop(
    x: Tensor,
    table: _Table,
    t_min: float,
    denoise: bool,
    correct: Update,
    predict: Update,
    clamp: Clamp | None = None,
) -> Tensor:
    if not 0 <= t_min < table.sde.T:
        raise ValueError(f"t_min={t_min}: times must obey 0 <= t_min < {table.sde.T}")
    mean = x
    for t in torch.linspace(table.sde.T, t_min, table.steps, device=x.device):
        times = t.expand(x.shape[0])
        for update in (correct, predict):
            x, mean = update(x, times)
            if clamp is not None:
                x, mean = clamp(x, mean, times)
    return mean if denoise else x


@dataclass(frozen=True)
class _Table:
    """An SDE as the paper's code discretises it: float32, N entries."""

    sde: GaussianSDE
    steps: int

    def __post_init__(self) -> None:
        known = isinstance(self.sde, VP | SubVP) or (isinstance(self.sde, VE) and not self.sde.exact)
        if not known:
            raise ValueError(f"official samplers know VE(), VP() and SubVP(), not {self.sde}; use scorefield.sample")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: at least one step is needed")

    @property
    def prior_std(self) -> float:
        return self.sde.sigma_max if isinstance(self.sde, VE) else 1.0

    def marginal(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B,) of p(x_t | x_0)."""
        if isinstance(self.sde, VE):
            return x0, self.sde.sigma_min * (self.sde.sigma_max / self.sde.sigma_min) ** t
        assert isinstance(self.sde, VP | SubVP)
        log_mean = -0.25 * t**2 * (self.sde.beta_max - self.sde.beta_min) - 0.5 * t * self.sde.beta_min
        left = 1 - torch.exp(2 * log_mean)
        return expand(torch.exp(log_mean), x0) * x0, left if isinstance(self.sde, SubVP) else torch.sqrt(left)

    def continuous(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift like x, diffusion coefficient (B,)."""
        if isinstance(self.sde, VE):
            slope = math.sqrt(2 * math.log(self.sde.sigma_max / self.sde.sigma_min))
            return torch.zeros_like(x), self.marginal(x, t)[1] * slope
        assert isinstance(self.sde, VP | SubVP)
        span = self.sde.beta_max - self.sde.beta_min
        beta = self.sde.beta_min + t * span
        if isinstance(self.sde, SubVP):
            g2 = beta * (1 - torch.exp(-2 * self.sde.beta_min * t - span * t**2))
        else:
            g2 = beta
        return expand(-0.5 * beta, x) * x, torch.sqrt(g2)

    def discretize(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """f like x and G (B,) of one forward step x + f + G z."""
        if isinstance(self.sde, VE):
            sigma, below = self.sigmas(t)
            return torch.zeros_like(x), torch.sqrt(sigma**2 - below**2)
        if isinstance(self.sde, VP):
            beta = self.betas(t)
            return expand(torch.sqrt(1 - beta), x) * x - x, torch.sqrt(beta)
        drift, diffusion = self.continuous(x, t)
        return drift / self.steps, diffusion * math.sqrt(1 / self.steps)

    def sigmas(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Entry of the noise table at t and the one below it, which is 0 for the first, (B,)."""
        assert isinstance(self.sde, VE)
        low, high = math.log(self.sde.sigma_min), math.log(self.sde.sigma_max)
        table = torch.exp(torch.linspace(low, high, self.steps, device=t.device))
        i = self._index(t)
        return table[i], torch.where(i == 0, torch.zeros_like(t), table[i - 1])

    def betas(self, t: Tensor) -> Tensor:
        """Entry of the table of beta_i at t, (B,)."""
        assert isinstance(self.sde, VP)
        ends = (self.sde.beta_min / self.steps, self.sde.beta_max / self.steps)
        return torch.linspace(*ends, self.steps, device=t.device)[self._index(t)]

    def _index(self, t: Tensor) -> Tensor:
        return (t * (self.steps - 1) / self.sde.T).long()


def _updates(
    table: _Table,
    field: Field,
    draws: Noise,
    predictor: str,
    corrector: str,
    snr: float,
    corrector_steps: int,
    probability_flow: bool,
) -> tuple[Update, Update]:
    """The corrector and the predictor as functions of (x, t)."""
    _check(table, predictor, corrector, snr, corrector_steps, probability_flow)
    part = 0.5 if probability_flow else 1.0

    def none(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    def euler_maruyama(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        z = draws.like(x)
        drift, diffusion = table.continuous(x, t)
        drift = drift - expand(diffusion**2, x) * field.score(x, t)
        mean = x - drift / table.steps
        return mean + expand(diffusion, x) * math.sqrt(1 / table.steps) * z, mean

    def reverse_diffusion(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        f, g = table.discretize(x, t)
        z = draws.like(x)
        mean = x - (f - expand(g**2, x) * field.score(x, t) * part)
        return (mean if probability_flow else mean + expand(g, x) * z), mean

    def ancestral(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        score = field.score(x, t)
        if isinstance(table.sde, VE):
            sigma, below = table.sigmas(t)
            gap = sigma**2 - below**2
            mean = x + score * expand(gap, x)
            return mean + expand(torch.sqrt(below**2 * gap / sigma**2), x) * draws.like(x), mean
        beta = table.betas(t)
        mean = (x + expand(beta, x) * score) / expand(torch.sqrt(1 - beta), x)
        return mean + expand(torch.sqrt(beta), x) * draws.like(x), mean

    def langevin(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.ones_like(t) if isinstance(table.sde, VE) else 1 - table.betas(t)
        mean = x
        for _ in range(corrector_steps):
            score, z = field.score(x, t), draws.like(x)
            if corrector == "langevin":
                lengths = (torch.linalg.vector_norm(v.flatten(1), dim=1).mean() for v in (z, score))
                z_norm, score_norm = lengths
                size = (snr * z_norm / score_norm) ** 2 * 2 * alpha
            else:
                size = (snr * table.marginal(x, t)[1]) ** 2 * 2 * alpha
            mean = x + expand(size, x) * score
            x = mean + expand(torch.sqrt(size * 2), x) * z
        return x, mean

    predictors = {
        "euler_maruyama": euler_maruyama,
        "reverse_diffusion": reverse_diffusion,
        "ancestral_sampling": ancestral,
        "none": none,
    }
    return (none if corrector == "none" else langevin), predictors[predictor]


def _check(
    table: _Table, predictor: str, corrector: str, snr: float, corrector_steps: int, probability_flow: bool
) -> None:
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor={predictor!r} is unknown; choose one of {', '.join(PREDICTORS)}")
    if corrector not in CORRECTORS:
        raise ValueError(f"corrector={corrector!r} is unknown; choose one of {', '.join(CORRECTORS)}")
    if not snr > 0 or corrector_steps < 0:
        raise ValueError(
            f"snr={snr}, corrector_steps={corrector_steps}: a positive ratio, and a number of steps from 0"
        )
    if probability_flow and predictor in ("euler_maruyama", "ancestral_sampling"):
        raise ValueError(
            f"probability_flow with predictor={predictor!r} fails in the paper's code; use sf.solve.ProbabilityFlow()"
        )
    if isinstance(table.sde, SubVP) and (corrector != "none" or predictor == "ancestral_sampling"):
        raise ValueError("correctors and ancestral sampling fail for SubVP in the paper's code; use scorefield.sample")
    tabled = corrector != "none" or predictor in ("reverse_diffusion", "ancestral_sampling")
    if isinstance(table.sde, VP) and tabled and table.sde.beta_max > table.steps:
        raise ValueError(
            f"steps={table.steps} makes beta_i exceed 1 in the paper's code; give at least {math.ceil(table.sde.beta_max)}"
        )
