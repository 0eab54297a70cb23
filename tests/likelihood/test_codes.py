"""Codes of the probability flow: round trips, paths between them, and what two models agree on."""

import pytest
import torch

import scorefield as sf
from scorefield.latent import identifiability, interpolate, outlier_scores


def test_encode_then_decode_returns_the_sample(mixture):
    x = mixture.sample(3, seed=1)
    back = sf.decode(mixture, sf.encode(mixture, x))
    assert float((back - x).square().mean().sqrt()) < 1e-3


def test_the_latent_of_a_likelihood_is_the_code(mixture):
    x = mixture.sample(2, seed=1)
    tight = sf.Dopri5(rtol=1e-7, atol=1e-7)
    assert torch.allclose(sf.log_prob(mixture, x, seed=0, solver=tight).latent, sf.encode(mixture, x, tight), atol=1e-5)


def test_a_path_starts_and_ends_at_its_samples(mixture):
    a, b = mixture.sample(2, seed=1)
    path = interpolate(mixture, a, b, 4)
    assert path.shape == (4, 4)
    assert torch.allclose(path[[0, -1]], torch.stack([a, b]), atol=1e-3)


def test_temperature_scales_the_spread_of_a_gaussian():
    """The flow of N(0, v) is linear, so codes at half the length decode to samples at half the length."""
    gm = sf.GaussianMixture(torch.zeros(1, 3).double(), 0.25, None, sf.VP())
    a, b = gm.sample(2, seed=0)
    cool = interpolate(gm, a, b, 2, temperature=0.5)
    assert torch.allclose(cool, 0.5 * torch.stack([a, b]), atol=1e-3)


def test_equal_models_have_equal_codes_and_shuffled_ones_do_not():
    gm = sf.GaussianMixture(torch.zeros(1, 64), 0.25, None, sf.VP())
    report = identifiability(gm, gm, gm.sample(8, seed=0), batch_size=3)
    assert float(report.samples.difference.max()) == 0
    assert torch.allclose(report.samples.correlation, torch.ones(8).double())
    assert torch.allclose(report.dimensions.correlation, torch.ones(64).double())
    # Independent codes in 64 dimensions: correlation of size 1 / 8, difference near sqrt 2.
    assert report.ratio > 5
    assert float(report.shuffled_samples.difference.mean()) == pytest.approx(2**0.5, rel=0.1)
    assert float(report.shuffled_dimensions.difference.mean()) == pytest.approx(2**0.5, rel=0.1)
    assert "of the same sample: correlation 1.000" in str(report)


def test_agreement_by_dimension_is_that_over_samples():
    """Codes of N(m, v) are (x - m) / sqrt(v) + alpha(T) m: two models that differ in one dimension differ in it alone."""
    means = torch.zeros(1, 3).double(), torch.tensor([[0.0, 0.0, 0.5]]).double()
    first, second = (sf.GaussianMixture(m, 0.25, None, sf.VP()) for m in means)
    found = sf.latent.identifiability(first, second, first.sample(10, seed=0))
    assert found.dimensions.difference.tolist() == pytest.approx([0, 0, 1 - 0.5 * 6.57e-3], abs=1e-3)
    assert found.dimensions.correlation.tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert found.samples.difference.tolist() == pytest.approx([3**-0.5] * 10, abs=5e-3)


def test_outliers_on_either_side_of_the_typical_set_stand_out():
    gm = sf.GaussianMixture(torch.zeros(1, 64).double(), 0.25, None, sf.VP())
    coarse = {"seed": 0, "solver": sf.solve.RK4(), "steps": 10}
    reference = sf.log_prob(gm, gm.sample(100, seed=0), **coarse)
    usual = gm.sample(50, seed=1)
    scores = outlier_scores(sf.log_prob(gm, torch.cat([usual, 0 * usual[:1], 2 * usual[:1]]), **coarse), reference)
    assert float(scores[:50].median()) < 2
    assert bool((scores[50:] > 5).all())  # the mean has the highest likelihood of all, and is as far out


def test_bad_arguments_are_named(mixture):
    x = mixture.sample(2, seed=0)
    with pytest.raises(ValueError, match="n=1"):
        interpolate(mixture, x[0], x[1], 1)
    with pytest.raises(ValueError, match="temperature"):
        interpolate(mixture, x[0], x[1], temperature=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        identifiability(mixture, mixture, x[:1])


@pytest.mark.parametrize(
    "solver",
    [
        sf.solve.ExponentialSDE(),
        sf.solve.ProbabilityFlow(),
        sf.DDIM(eta=0.5),
        sf.Ancestral(),
        sf.PC(),
        sf.solve.AdaptiveSDE(),
        sf.solve.Churn(),
    ],
    ids=repr,
)
def test_codes_refuse_what_does_not_follow_the_flow_both_ways(mixture, solver):
    x = mixture.sample(2, seed=0)
    for go in (sf.encode, sf.decode):
        with pytest.raises(ValueError, match="codes follow the probability flow"):
            go(mixture, x, solver)


@pytest.mark.parametrize(
    "solver",
    [sf.DDIM(), sf.DPMSolver(3), sf.UniPC(), sf.solve.DEIS(), sf.solve.RK4(), sf.solve.ExponentialSDE(0.0)],
    ids=repr,
)
def test_codes_on_a_fixed_grid_are_those_of_the_flow(mixture, solver):
    x = mixture.sample(3, seed=1)
    exact = sf.encode(mixture, x)
    errors = [(sf.encode(mixture, x, solver, steps=k, grid="log_snr") - exact).abs().max() for k in (100, 400)]
    assert errors[1] < max(0.5 * errors[0], 1e-5)  # the reference is good to 1e-6
    assert errors[1] < 0.05


def test_codes_up_to_a_time_and_back(mixture):
    x = mixture.sample(3, seed=1)
    half = sf.encode(mixture, x, t_end=0.5)
    assert torch.allclose(sf.decode(mixture, half, t_end=0.5), x, atol=1e-4)
    whole = sf.encode(mixture, half, t_min=0.5)
    assert torch.allclose(whole, sf.encode(mixture, x), atol=1e-4)
    path = sf.encode(mixture, x, full=True)
    assert path.times[0] == 1e-5
    assert path.times[-1] == 1.0
    assert torch.equal(path.path[-1], path.x)
