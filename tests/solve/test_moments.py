"""Mean and covariance of every stochastic solver on a rotated Gaussian, predicted from its response to each of its draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import scorefield as sf
from oracles import PAPER, gaussian, moments, name
from scorefield.randomness import FromFunction, FromGenerator
from scorefield.solve.integrate import Field, integrate
from scorefield.times import sampling_grid

SOLVERS = {
    "EulerMaruyama": sf.EulerMaruyama(),
    "ReverseDiffusion": sf.ReverseDiffusion(),
    "Ancestral-posterior": sf.Ancestral(),
    "Ancestral-transition": sf.Ancestral(variance="transition"),
    "PC-ReverseDiffusion": sf.PC(sf.ReverseDiffusion(), sf.solve.AnnealedLangevin(snr=0.05)),
    "PC-Ancestral-corrected-first": sf.PC(sf.Ancestral(), sf.solve.AnnealedLangevin(snr=0.05), correct_first=True),
    "DDIM-1": sf.DDIM(eta=1.0),
    "DDIM-0.5": sf.DDIM(eta=0.5),
    "ExponentialSDE-0.5": sf.solve.ExponentialSDE(strength=0.5, order=1),
    "ExponentialSDE-2": sf.solve.ExponentialSDE(strength=2.0, order=1),
    "ExponentialSDE-1-order2": sf.solve.ExponentialSDE(strength=1.0, order=2),
    "ExponentialSDE-0.5-order3": sf.solve.ExponentialSDE(strength=0.5, order=3),
    "Churn": sf.solve.Churn(amount=0.02),
    "AdaptiveSDE-fixed": sf.solve.AdaptiveSDE(),
}
every_case = pytest.mark.parametrize(
    ("solver", "sde"),
    [(s, e) for s in SOLVERS.values() for e in PAPER],
    ids=[f"{s}-{name(e)}" for s in SOLVERS for e in PAPER],
)


def grid(sde: sf.GaussianSDE, steps: int) -> Tensor:
    return sampling_grid(sde, steps, 0.9, 0.05, "log_snr")


def predicted(solver: sf.Solver, gm: sf.GaussianMixture, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance at the end, from the exact ones at the start: the sampler is affine in its start and its draws."""
    d = gm.means.shape[1]
    counted: list[int] = []

    def nothing(shape):
        counted.append(1)
        return torch.zeros(shape, dtype=torch.float64)

    integrate(solver, Field(gm, {}, 1), torch.zeros(1, d, dtype=torch.float64), times[:2], FromFunction(1, nothing))
    draws = len(counted) * (len(times) - 1)  # every step draws as often as the first
    rows = 1 + d + d * draws
    eye = torch.eye(d, dtype=torch.float64)
    x = torch.zeros(rows, d, dtype=torch.float64)
    x[1 : d + 1] = eye
    draw = iter(range(draws))

    def response(shape):
        z, first = torch.zeros(shape, dtype=torch.float64), 1 + d + d * next(draw)
        z[first : first + d] = eye
        return z

    end, _ = integrate(solver, Field(gm, {}, rows), x, times, FromFunction(rows, response))
    assert next(draw, None) is None
    mean, cov = moments(gm, float(times[0]))
    a, b = (end[1 : d + 1] - end[0]).T, (end[d + 1 :] - end[0]).reshape(-1, d, d).mT
    return a @ mean + end[0], a @ cov @ a.T + (b @ b.mT).sum(0)


@every_case
def test_samples_have_the_predicted_moments(solver, sde):
    """100 steps; every mean and covariance within four standard errors."""
    gm, n = gaussian(sde), 1500
    times = grid(sde, 100)
    noise = FromGenerator(n, torch.Generator().manual_seed(3))
    x = gm.marginal(float(times[0])).draw(noise, torch.float64, torch.device("cpu"))
    x, _ = integrate(solver, Field(gm, {}, n), x, times, noise)
    mean, cov = predicted(solver, gm, times)
    spread = cov.diagonal()
    assert ((x.mean(0) - mean).abs() < 4 * (spread / n).sqrt()).all()
    assert ((torch.cov(x.T) - cov).abs() < 4 * ((spread.outer(spread) + cov**2) / n).sqrt()).all()


@every_case
def test_predicted_moments_converge_to_the_exact_ones(solver, sde):
    gm = gaussian(sde)
    errors = []
    for steps in (60, 120):
        times = grid(sde, steps)
        mean, cov = predicted(solver, gm, times)
        exact_mean, exact_cov = moments(gm, float(times[-1]))
        errors.append(float(torch.linalg.norm(cov - exact_cov) / torch.linalg.norm(exact_cov)))
        assert (mean - exact_mean).abs().max() < 0.08
    strength = getattr(solver, "strength", 1.0)
    assert errors[1] < 0.07 * (1 + strength**2)  # the error grows with the noise that is put in and taken out again
    # What the corrector adds (Song et al. 2021, Alg. 4) is a share of the covariance that does not depend on the steps, and
    # Churn keeps a relative rise of the noise level: there nothing is left to halve.
    assert errors[1] < 0.62 * errors[0] or errors[1] < 5e-3
