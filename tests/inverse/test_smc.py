"""Twisted sequential Monte Carlo against exact posteriors of a Gaussian and of a mixture."""

from __future__ import annotations

import pytest
import torch
from oracle import condition, condition_mixture, gaussian
from torch import Tensor

import scorefield as sf
from scorefield import inverse

torch.set_num_threads(1)
SEED = 1


def spread(p: inverse.Particles) -> Tensor:
    return torch.cov(p.x.T, aweights=p.weights)


def test_particles_reach_the_posterior_of_a_gaussian():
    """The pair of SCIENCE 5.6 of correlation 0.8, the first coordinate measured: mean within 2 %, and the evidence."""
    mean, cov = torch.zeros(2).double(), torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    h, y = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([1.5], dtype=torch.float64)
    mean_y, cov_y, evidence = condition(mean, cov, h, y, 0.3)
    found = inverse.twisted_smc(
        gaussian(mean, cov, sf.VP()),
        inverse.Dense(h, (2,)),
        y[None],
        0.3,
        particles=10_000,
        steps=100,
        seed=torch.Generator().manual_seed(SEED),
    )
    assert (found.mean() - mean_y).norm() < 0.02 * mean_y.norm()
    assert (spread(found) - cov_y).norm() < 0.06 * cov_y.norm()
    assert found.log_evidence == pytest.approx(float(evidence), abs=0.03)
    assert torch.allclose(found.std(), spread(found).diagonal().sqrt(), rtol=1e-3)


def mixture() -> tuple[sf.GaussianMixture, Tensor, Tensor, list[float]]:
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.3]], dtype=torch.float64)
    covs = torch.stack([torch.tensor([[0.2, 0.1], [0.1, 0.15]]).double(), 0.1 * torch.eye(2).double()])
    return sf.GaussianMixture(means, covs, [0.4, 0.6], sf.VP()), means, covs, [0.4, 0.6]


def test_particles_find_the_weights_of_the_modes():
    """A measurement between two modes; no score of a single Gaussian guess could share the samples out rightly."""
    prior, means, covs, weights = mixture()
    h, y = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    exact = condition_mixture(prior, means, covs, weights, h, y, 0.3)
    found = inverse.twisted_smc(
        prior,
        inverse.Dense(h, (2,)),
        y[None],
        0.3,
        particles=10_000,
        steps=100,
        seed=torch.Generator().manual_seed(SEED),
    )
    share = found.weights @ (found.x[:, 0] > 0).double()
    assert float(share) == pytest.approx(float(torch.exp(exact._log_weights[0])), abs=0.02)


def test_a_nonlinear_measurement_keeps_both_of_its_answers():
    """y = x^2 of a standard normal: the posterior has two modes, at +-1."""
    prior = sf.GaussianMixture(torch.zeros(1, 1).double(), 1.0, None, sf.VP())
    found = inverse.twisted_smc(
        prior,
        torch.square,
        torch.ones(1, 1).double(),
        0.2,
        particles=4000,
        steps=50,
        seed=torch.Generator().manual_seed(SEED),
    )
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2 - (grid**2 - 1) ** 2 / (2 * 0.2**2))
    size = float((grid.abs() * density).sum() / density.sum())
    assert float(found.weights @ found.x.abs()[:, 0]) == pytest.approx(size, rel=0.02)
    assert 0.2 < float(found.weights @ (found.x[:, 0] > 0).double()) < 0.8


def test_effective_sample_size_is_reported():
    prior, *_ = mixture()
    found = inverse.twisted_smc(
        prior, inverse.Mask(torch.ones(2)), torch.tensor([[0.9, 0.4]]), 0.2, particles=64, steps=20, seed=0
    )
    assert found.ess.shape == (21,)
    assert float(found.ess[-1]) == pytest.approx(float(1 / (found.weights**2).sum()))
    assert bool(((found.ess >= 1 - 1e-9) & (found.ess <= 64 + 1e-9)).all())
    assert found.draw(5).shape == (5, 2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"y": torch.zeros(2, 2)}, "y has 2 rows"),
        ({"particles": 1}, "particles=1"),
        ({"noise": 0.0}, "noise=0.0"),
    ],
)
def test_errors_name_the_argument(bad, message):
    good = {"y": torch.zeros(1, 2), "noise": 0.1} | bad
    with pytest.raises(ValueError, match=message):
        inverse.twisted_smc(mixture()[0], inverse.Mask(torch.ones(2)), **good)
