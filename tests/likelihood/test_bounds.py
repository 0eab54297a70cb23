"""Evidence lower bounds and importance-sampled times against integrals known in closed form."""

import math

import pytest
import torch

import scorefield as sf
from scorefield.likelihood import LogProb, elbo
from scorefield.times import ImportanceTimes, UniformTimes

SDES = [sf.VP(), sf.SubVP(), sf.VE()]
T_MIN = 1e-5


def expected_square(sde, t, variance=0.25):
    """E |eps_hat - eps|^2 of one dimension for data N(0, variance) and its exact score."""
    signal = sde.alpha(t) ** 2 * variance
    return signal / (signal + sde.sigma(t) ** 2)


def moments_of_a_draw(sde, proposal, n=400_000):
    """Mean and variance of weight g^2 / sigma^2 |eps_hat - eps|^2: chi-squared given t, the midpoint rule over t."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t, weight = proposal(u, sde)
    level = weight * sde.g2(t) / sde.sigma(t) ** 2 * expected_square(sde, t)
    mean = level.mean()
    return float(mean), float(3 * (level**2).mean() - mean**2)


def test_importance_sampling_lowers_the_variance_a_hundredfold_on_the_same_mean():
    """VP, data N(0, 1/4), t_min = 1e-5: 12.43 for the mean, 3.0e5 and 6.6e2 for the variances of a single draw."""
    uniform = moments_of_a_draw(sf.VP(), UniformTimes(T_MIN))
    importance = moments_of_a_draw(sf.VP(), ImportanceTimes(T_MIN))
    assert importance[0] == pytest.approx(12.43, rel=0.01)
    assert uniform[0] == pytest.approx(importance[0], rel=0.01)
    assert importance[1] == pytest.approx(6.6e2, rel=0.05)
    assert uniform[1] > 100 * importance[1]


def test_single_draws_of_the_loss_have_that_mean_and_variance():
    gm = sf.GaussianMixture(torch.zeros(1, 1).double(), 0.25, None, sf.VP())
    n = 100_000
    data, seed = (gm.sample(n, seed=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1))
    losses = sf.dsm_loss(gm, data, "likelihood", times=ImportanceTimes(T_MIN), seed=seed, stratify=False)
    mean, variance = moments_of_a_draw(sf.VP(), ImportanceTimes(T_MIN))
    assert float(losses.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert float(losses.var()) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_weights_are_one_over_the_density_of_the_times(sde):
    """The mean weight is 1, and the mean of weight * t that of uniform times."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t, weight = ImportanceTimes(1e-3)(u, sde)
    assert float(t.min()) >= 1e-3 - 1e-12
    assert float(t.max()) <= sde.T + 1e-12
    assert float(weight.mean()) == pytest.approx(1, rel=1e-3)
    assert float((weight * t).mean()) == pytest.approx(0.5 * (1e-3 + sde.T), rel=1e-3)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_the_bound_is_tight_for_an_exact_model(sde):
    """Exact score and exact p_T: what is left is the decoder, (sigma / alpha)^2 / (2 v) nats a dimension, and VE's jump."""
    gm = sf.GaussianMixture(torch.tensor([[0.2, -0.4]]).double(), 0.25, None, sde)
    x = gm.sample(2, seed=0)
    draws = elbo(gm, x.repeat_interleave(4000, 0), 1, seed=1, prior="exact").draws
    bound = LogProb.of_draws(draws.reshape(2, 4000), torch.zeros(2), torch.zeros(2), 2)
    gap = 2 * float((sde.sigma(T_MIN) / sde.alpha(T_MIN)) ** 2) / 0.5
    assert bool(((bound.nats - gm.log_prob(x)).abs() < 4.5 * bound.stderr + gap).all())


def test_the_bound_lies_below_for_a_wrong_model(gaussian):
    wrong = sf.ScoreModel(lambda x, t: -gaussian.noise(x, t), gaussian.sde)
    x = gaussian.sample(4, seed=0)
    bound = elbo(wrong, x, 500, seed=1)
    assert bool((bound.nats + 5 * bound.stderr < gaussian.log_prob(x)).all())


def test_standard_errors_are_those_of_the_mean(gaussian):
    x = gaussian.sample(1, seed=0).expand(300, -1)
    bound = elbo(gaussian, x, 30, seed=1)
    assert float(bound.nats.std()) == pytest.approx(float(bound.stderr.square().mean().sqrt()), rel=0.15)


def test_a_bound_does_not_depend_on_batch_mates(gaussian):
    x = gaussian.sample(3, seed=0)
    assert torch.allclose(elbo(gaussian, x, 3, seed=1, batch_size=2).draws, elbo(gaussian, x, 3, seed=1).draws)


def test_bits_of_a_bound(gaussian):
    bound = elbo(gaussian, gaussian.sample(2, seed=0), 4, seed=1)
    expected = math.log2(128) - bound.nats / (4 * math.log(2))
    assert torch.allclose(bound.bits_per_dim(), expected)
    with pytest.raises(ValueError, match="samples=0"):
        elbo(gaussian, gaussian.sample(2, seed=0), 0)
