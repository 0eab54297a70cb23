"""How long to diffuse: fitted priors and what they cost, against Gaussians of which everything is known."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import gaussian, mixture, moments
from scorefield.diagnose import diffusion_time, fit_prior

SDE = sf.VP()
LINE = sf.GaussianMixture(torch.ones(1, 1, dtype=torch.float64), 0.25, None, SDE)
"""N(1, 1/4)."""


def kl_to_standard(t: float) -> float:
    mean, cov = moments(LINE, t)
    return float(0.5 * (cov[0, 0] + mean[0] ** 2 - 1 - torch.log(cov[0, 0])))


def actual_kl_of_the_sde(wrong: float, start: float, end: float = 1e-3) -> float:
    """KL(p_end || reverse SDE from N(0, 1) at `start` with the score (1 + wrong) s*): its moments, by small exact steps."""
    m, v = 0.0, 1.0
    times = torch.linspace(start, end, 1501, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:], strict=True):
        at, h = 0.5 * float(t + s), float(t - s)
        (mean,), ((cov,),) = (x.tolist() for x in moments(LINE, at))
        b = float(SDE.g2(at))
        # downwards, x grows by (b/2 - b k / C) x + b k mean / C, k = 1 + wrong
        rate, push = 0.5 * b - b * (1 + wrong) / cov, b * (1 + wrong) * mean / cov
        grow = math.exp(rate * h)
        m, v = grow * m + push * (grow - 1) / rate, grow**2 * v + b * (grow**2 - 1) / (2 * rate)
    (mean,), ((cov,),) = (x.tolist() for x in moments(LINE, end))
    return 0.5 * (cov / v + (mean - m) ** 2 / v - 1 + math.log(v / cov))


def test_the_prior_of_one_gaussian_has_the_moments_of_noised_data_exactly():
    gm = gaussian(SDE, 3)
    data = gm.sample(500, seed=0)
    alpha, sigma = float(SDE.alpha(0.3)), float(SDE.sigma(0.3))
    fitted = fit_prior(SDE, data, 0.3).mixture
    assert torch.allclose(fitted.means[0], alpha * data.mean(0), atol=1e-12)
    wanted = alpha**2 * torch.cov(data.T) + sigma**2 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(fitted.covs[0], wanted, atol=1e-12)


def test_a_prior_of_two_gaussians_finds_the_two_of_a_mixture():
    gm = mixture(SDE, 2)
    data, t = gm.sample(4000, seed=1), 0.2
    fitted, x = fit_prior(SDE, data, t, components=2), gm.sample(4000, t, seed=2)
    gap = gm.log_prob(x, t) - fitted.log_prob(x)
    spread = float(gap.std()) / math.sqrt(len(gap))
    # The fit costs (number of its parameters) / (2 rows) nats: 11 / 8000.
    assert abs(float(gap.mean())) < 4 * spread + 4 * 11 / 8000
    assert float((gm.log_prob(x, t) - fit_prior(SDE, data, t).log_prob(x)).mean()) > 0.1


def test_images_keep_their_shape():
    prior = fit_prior(SDE, torch.rand(40, 1, 2, 2, dtype=torch.float64), 0.5, components=2)
    assert prior.sample(3, seed=0).shape == (3, 1, 2, 2)
    assert prior.log_prob(prior.sample(3, seed=0)).shape == (3,)


def test_divergences_are_those_of_the_closed_form():
    times = [0.25, 0.35, 0.5, 1.0]
    found = diffusion_time(LINE, LINE.sample(8000, seed=torch.Generator().manual_seed(3)), times, LINE)
    recorded = [0.3149, 0.1561, 0.04045, 2.159e-5]
    for t, wanted, nominal, fitted in zip(times, recorded, found.nominal, found.fitted, strict=True):
        assert kl_to_standard(t) == pytest.approx(wanted, rel=1e-3)
        assert abs(nominal.value - wanted) < 4 * nominal.stderr + 1e-4
        # A Gaussian of Gaussian data: what is left is 2 parameters from 4000 rows.
        assert abs(fitted.value) < 4 * fitted.stderr + 4 * 2 / 8000
    assert all(e.value < 1e-20 for e in found.score)


def test_the_density_by_the_models_own_flow_is_the_oracles():
    data = LINE.sample(200, seed=4)
    own, known = (diffusion_time(LINE, data, [0.35], oracle) for oracle in (None, LINE))
    assert own.nominal[0].value == pytest.approx(known.nominal[0].value, abs=2e-3)
    with pytest.raises(ValueError, match="give diffusion_time an oracle="):
        own.bound()


def test_a_wrong_score_has_a_best_time_and_the_bound_holds_at_every_time():
    wrong = sf.ScoreModel.from_score(lambda x, t: 1.1 * LINE.score(x, t), SDE, shape=(1,))
    times = [0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 1.0]
    found = diffusion_time(wrong, LINE.sample(6000, seed=torch.Generator().manual_seed(5)), times, LINE)
    wanted = [0.00767, 0.01931, 0.0316, 0.0572]
    for value, i in zip(wanted, (1, 2, 4, 6), strict=True):
        assert abs(found.score[i].value - value) < 4 * found.score[i].stderr + 1e-4
    assert found.best() == 0.7
    actual = [actual_kl_of_the_sde(0.1, t) for t in times]
    assert actual[1] == pytest.approx(0.0715, abs=1e-4)
    assert actual[3] == pytest.approx(0.00882, abs=1e-5)
    assert all(bound >= kl for bound, kl in zip(found.bound(), actual, strict=True))
    assert times[actual.index(min(actual))] == 0.6  # not that of the bound


@pytest.mark.parametrize("sde", [sf.VP(), sf.VE(), sf.RectifiedFlow()], ids=repr)
def test_sampling_from_a_fitted_prior_at_an_early_time_gives_the_data(sde):
    gm = gaussian(sde, 2)
    prior = fit_prior(sde, gm.sample(20_000, seed=torch.Generator().manual_seed(6)), 0.3)
    x = sf.sample(gm, 4000, sf.DPMSolver(), steps=20, t_start=0.3, prior=prior, seed=7)
    mean, cov = moments(gm, 0.0)
    assert torch.allclose(x.mean(0), mean, atol=4 * float(cov.diagonal().max()) ** 0.5 / math.sqrt(2000))
    assert torch.allclose(torch.cov(x.T), cov, atol=0.15 * float(cov.diagonal().max()))


def test_early_starts_with_a_law_are_exact_and_without_one_refused():
    gm = gaussian(SDE, 3)
    x = gm.sample(5, seed=8)
    found = sf.log_prob(gm, x, "exact", prior=gm.marginal(0.4), t_end=0.4, solver=sf.Dopri5(1e-9, 1e-9), t_min=1e-3)
    assert torch.allclose(found.nats, gm.log_prob(x, 1e-3), atol=1e-6)
    through = sf.log_prob(gm, x, "exact", prior=gm, t_end=0.4, solver=sf.Dopri5(1e-9, 1e-9), t_min=1e-3)
    assert torch.equal(through.nats, found.nats)  # a mixture stands for its law where the flow ends
    with pytest.raises(ValueError, match=r"t_end=0\.4 is before T=1"):
        sf.log_prob(gm, x, t_end=0.4)
    with pytest.raises(ValueError, match="or their law as prior="):
        sf.sample(gm, 2, sf.Heun(), t_start=0.4)
    a, b = (sf.sample(gm, 4, sf.Heun(), t_start=0.4, seed=1, prior=p) for p in (gm, gm.marginal(0.4)))
    assert torch.equal(a, b)


def test_training_times_end_where_they_are_told_to():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    t, weight = sf.times.UniformTimes(0.1, 0.5)(u, SDE)
    assert torch.allclose(t, 0.1 + 0.4 * u)
    assert bool((weight == 1).all())
    with pytest.raises(ValueError, match="t_max=2"):
        sf.times.UniformTimes(0.1, 2.0)(u, SDE)


@pytest.mark.parametrize(
    ("data", "t", "components", "message"),
    [
        (torch.zeros(5), 0.5, 1, "finite floats"),
        (torch.full((5, 2), math.nan), 0.5, 1, "finite floats"),
        (torch.zeros(3, 2), 0.5, 2, "2 components need 4"),
        (torch.zeros(5, 2), 1.5, 1, "give a time in"),
    ],
)
def test_priors_of_nonsense_are_refused(data, t, components, message):
    with pytest.raises(ValueError, match=message):
        fit_prior(SDE, data, t, components)
