"""Song et al. 2021, eq. 7, and Vincent 2011: denoising score matching, its minimum, its weightings and its times."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import PAPER, gaussian, moments, name
from scorefield.times import LogNormalTimes, LogSNRTimes, UniformTimes, low_discrepancy


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_the_exact_score_has_the_least_loss(sde):
    """min sigma^2-weighted loss = sum alpha^2 l / (alpha^2 l + sigma^2), from 40,000 draws."""
    gm, t, n = gaussian(sde), 0.4, 40_000
    x0 = gm.sample(n, seed=torch.Generator().manual_seed(0))
    loss = sf.dsm_loss(gm, x0, t=t, seed=1)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    signal = alpha**2 * gm._spectrum[0]
    least = float((signal / (signal + sigma**2)).sum())
    assert abs(float(loss.mean()) - least) < 4 * float(loss.std()) / n**0.5
    shifted = sf.ScoreModel.from_score(lambda x, u: gm.score(x, u) + 0.3, sde, (3,))
    worse = sf.dsm_loss(shifted, x0, t=t, seed=1)
    assert abs(float(worse.mean()) - least - 3 * 0.09 * sigma**2) < 4 * float(worse.std()) / n**0.5


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_denoising_and_explicit_score_matching_differ_by_a_constant(sde):
    """DSM - ESM = d / sigma^2 - tr C^{-1}, whatever the model."""
    gm, t, n = gaussian(sde), 0.5, 40_000
    model = sf.ScoreModel.from_score(lambda x, u: -0.7 * x, sde, (3,))
    x0 = gm.sample(n, seed=torch.Generator().manual_seed(2))
    z = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mean, std = sde.kernel(x0, t)
    x = mean + std * z
    explicit = (model.score(x, t) - gm.score(x, t)).square().sum(1)
    difference = sf.dsm_loss(model, x0, "none", t=t, noise=z) - explicit
    constant = 3 / float(sde.sigma(t)) ** 2 - float(torch.linalg.inv(moments(gm, t)[1]).trace())
    assert abs(float(difference.mean()) - constant) < 4 * float(difference.std()) / n**0.5


def test_weightings_are_their_formulas():
    gm = gaussian(sf.SubVP())
    x0 = gm.sample(6, seed=0)
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    z = torch.ones(6, 3, dtype=torch.float64)
    plain = sf.dsm_loss(gm, x0, "none", t=t, noise=z)
    sde = gm.sde
    factors = {"noise": sde.sigma(t) ** 2, "likelihood": sde.g2(t)}
    factors["edm"] = sde.sigma(t) ** 2 * (1 + (sde.sigma(t) / sde.alpha(t)) ** 2 / 0.25)
    for weighting, factor in factors.items():
        torch.testing.assert_close(sf.dsm_loss(gm, x0, weighting, t=t, noise=z), plain * factor)
    torch.testing.assert_close(sf.dsm_loss(gm, x0, lambda u: u**2, t=t, noise=z), plain * t**2)


def test_times_of_a_batch_fill_every_cell_once():
    u = low_discrepancy(64, torch.Generator().manual_seed(0))
    assert sorted(torch.floor(u * 64).long().tolist()) == list(range(64))
    assert not torch.equal(u, u.sort().values)


def test_proposals_follow_their_distributions():
    sde = sf.VP()
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    uniform, _ = UniformTimes()(u, sde)
    assert float(uniform.min()) >= 1e-5
    assert float(uniform.mean()) == pytest.approx(0.5, abs=1e-4)
    levels = sde.log_snr(LogSNRTimes()(u, sde)[0])
    assert float(levels.diff().std()) == pytest.approx(0.0, abs=1e-6)
    log_sigma = -0.5 * sde.log_snr(LogNormalTimes(-1.2, 1.2)(u, sde)[0])
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.01)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.01)


def test_the_same_seed_is_the_same_loss():
    gm = gaussian(sf.VP())
    x0 = gm.sample(5, seed=0)
    assert torch.equal(sf.dsm_loss(gm, x0, seed=4), sf.dsm_loss(gm, x0, seed=4))
    assert not torch.equal(sf.dsm_loss(gm, x0, seed=4), sf.dsm_loss(gm, x0, seed=5))


def test_an_unknown_weighting_is_named():
    with pytest.raises(ValueError, match="weighting='snr' is unknown"):
        sf.dsm_loss(gaussian(sf.VP()), torch.zeros(2, 3), "snr")
