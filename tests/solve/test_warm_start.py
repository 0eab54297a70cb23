"""Warm starts: states at a time before T, and images that are noised and denoised in part."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import PAPER, flow_map, gaussian, moments, name


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize(
    "solver", [sf.DPMSolver(3), sf.UniPC(), sf.solve.DEIS(), sf.solve.RK4(), sf.solve.KarrasHeun()], ids=name
)
def test_the_flow_starts_at_the_noise_level_of_the_start(solver, sde):
    gm, t = gaussian(sde), 0.4
    x = gm.sample(32, t, seed=0)
    end = sf.sample(gm, 32, solver, steps=60, x_init=x, t_start=t, denoise=False)
    assert float((end - flow_map(gm, x, t, sde.t_min)).abs().max()) < 0.01


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("solver", [sf.Ancestral(), sf.solve.ExponentialSDE(), sf.solve.Churn(0.02)], ids=name)
def test_noised_and_denoised_data_is_data(solver, sde):
    gm, n, t = gaussian(sde), 4000, 0.5
    x0 = gm.sample(n, seed=torch.Generator().manual_seed(0))
    mean, std = sde.kernel(x0, t)
    noised = mean + std * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = torch.Generator().manual_seed(2)
    x = sf.sample(gm, n, solver, steps=200, grid="log_snr", x_init=noised, t_start=t, denoise=False, seed=own)
    exact_mean, exact_cov = moments(gm, sde.t_min)
    spread = exact_cov.diagonal()
    assert ((x.mean(0) - exact_mean).abs() < 4 * (spread / n).sqrt() + 0.01).all()
    assert (torch.linalg.norm(torch.cov(x.T) - exact_cov) / torch.linalg.norm(exact_cov)) < 4 * (3 / n) ** 0.5 + 0.02


def test_an_edit_goes_further_from_the_original_the_later_it_starts():
    """The distance is known: E|x - x_0|^2 = 2 tr Cov[x_0 | x_t], two draws from the same posterior."""
    sde, n = sf.VP(), 4000
    gm = gaussian(sde)
    x0 = gm.sample(n, seed=torch.Generator().manual_seed(0))
    _, cov = moments(gm, 0.0)
    for t in (0.1, 0.3, 0.6):
        mean, std = sde.kernel(x0, t)
        noised = mean + std * torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        own = torch.Generator().manual_seed(2)
        x = sf.sample(
            gm, n, sf.solve.ExponentialSDE(order=1), steps=200, x_init=noised, t_start=t, t_min=1e-5, seed=own
        )
        rho2 = float(torch.exp(-sde.log_snr(t)))
        posterior = torch.linalg.inv(torch.linalg.inv(cov) + torch.eye(3, dtype=torch.float64) / rho2)
        assert abs(float((x - x0).square().sum(1).mean()) / float(2 * posterior.trace()) - 1) < 0.08


def test_no_time_to_go_leaves_the_start_as_it_is():
    gm = gaussian(sf.VP())
    x = gm.sample(4, 1e-3, seed=0)
    end = sf.sample(gm, 4, sf.DPMSolver(), steps=3, x_init=x, t_start=1.001e-3, denoise=False)
    torch.testing.assert_close(end, x, rtol=1e-3, atol=1e-3)
