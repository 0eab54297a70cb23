"""Twisted sequential Monte Carlo against exact posteriors of a Gaussian and of a mixture."""

from __future__ import annotations

import pytest
import torch
from oracle import condition, condition_mixture, gaussian, rotated
from torch import Tensor

import scorefield as sf
from scorefield import inverse
from scorefield.inverse import smc
from scorefield.randomness import FromFunction

torch.set_num_threads(1)
SEED = 1


def spread(p: inverse.Particles) -> Tensor:
    return torch.cov(p.x.T, aweights=p.weights)


def problem(d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A pair of correlation 0.8, or a rotated Gaussian: mean, covariance, operator, measurement."""
    if d == 2:
        cov = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
        return torch.zeros(2).double(), cov, torch.tensor([[1.0, 0.0]]).double(), torch.tensor([1.5]).double()
    g = torch.Generator().manual_seed(3)
    h = torch.randn(3 * d // 8, d, generator=g, dtype=torch.float64) / d**0.5
    return *rotated(d), h, torch.randn(3 * d // 8, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("d", "noise"), [(2, 0.3), (8, 0.5), (8, 0.05), (64, 0.5), (64, 0.05)])
def test_two_steps_are_exact_on_gaussians(d, noise, monkeypatch):
    """All weights are equal, so that the particles are an affine map of their noise, whose moments are read off.

    The bars are those of the start: at T the nominal prior is not quite that of the data, and the guess not quite constant.
    """
    mean, cov, h, y = problem(d)
    mean_y, cov_y, evidence = condition(mean, cov, h, y, noise)
    m, steps = len(y), 2
    draws = d + steps * (2 * d + m) + d + m  # the prior's, then those of the steps and of the last law
    offset = 1

    def units(shape):
        nonlocal offset
        z, first = torch.zeros(shape, dtype=torch.float64), offset
        offset += shape[1]
        z[first:offset] = torch.eye(shape[1], dtype=torch.float64)
        return z

    monkeypatch.setattr(smc, "source", lambda seed, n: FromFunction(n, units))
    found = inverse.twisted_smc(
        gaussian(mean, cov, sf.VP()), inverse.Dense(h, (d,)), y[None], noise, particles=1 + draws, steps=steps
    )
    assert offset == 1 + draws
    assert float(found.ess.min()) > 0.98 * (1 + draws)
    linear = found.x[1:] - found.x[0]
    assert (found.x[0] - mean_y).norm() < 0.003 * mean_y.norm()
    assert (linear.T @ linear - cov_y).norm() < 0.003 * cov_y.norm()
    assert found.log_evidence == pytest.approx(float(evidence), abs=0.02)


def test_an_isotropic_covariance_reaches_the_posterior_of_a_gaussian_too():
    """With more steps: the ancestral step has one variance for all directions."""
    mean, cov, h, y = problem(2)
    mean_y, cov_y, evidence = condition(mean, cov, h, y, 0.3)
    found = inverse.twisted_smc(
        gaussian(mean, cov, sf.VP()),
        inverse.Dense(h, (2,)),
        y[None],
        0.3,
        particles=10_000,
        steps=200,
        covariance="isotropic",
        seed=torch.Generator().manual_seed(SEED),
    )
    assert (found.mean() - mean_y).norm() < 0.02 * mean_y.norm()
    assert (spread(found) - cov_y).norm() < 0.04 * cov_y.norm()  # Monte-Carlo error of 10,000: 0.014
    assert found.log_evidence == pytest.approx(float(evidence), abs=0.03)
    assert torch.allclose(found.std(), spread(found).diagonal().sqrt(), rtol=1e-3)


def mixture() -> tuple[sf.GaussianMixture, Tensor, Tensor, list[float]]:
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.3]], dtype=torch.float64)
    covs = torch.stack([torch.tensor([[0.2, 0.1], [0.1, 0.15]]).double(), 0.1 * torch.eye(2).double()])
    return sf.GaussianMixture(means, covs, [0.4, 0.6], sf.VP()), means, covs, [0.4, 0.6]


def test_particles_reach_the_posterior_of_a_mixture():
    """A measurement between two modes; no score of a single Gaussian guess could share the samples out rightly."""
    prior, means, covs, weights = mixture()
    h, y = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    shares = torch.exp(condition_mixture(prior, means, covs, weights, h, y, 0.3)._log_weights)
    parts = [condition(m, c, h, y, 0.3) for m, c in zip(means, covs, strict=True)]
    mean = sum(w * p[0] for w, p in zip(shares, parts, strict=True))
    cov = sum(w * (p[1] + torch.outer(p[0] - mean, p[0] - mean)) for w, p in zip(shares, parts, strict=True))
    found = inverse.twisted_smc(
        prior,
        inverse.Dense(h, (2,)),
        y[None],
        0.3,
        particles=12_000,
        steps=60,
        seed=torch.Generator().manual_seed(SEED),
    )
    assert (found.mean() - mean).norm() < 0.02 * mean.norm()
    assert (spread(found) - cov).norm() < 0.02 * cov.norm()


@pytest.mark.parametrize("covariance", ["full", "isotropic"])
def test_a_nonlinear_measurement_keeps_both_of_its_answers(covariance):
    """y = x^2 of a standard normal: the posterior has two modes, at +-1."""
    prior = sf.GaussianMixture(torch.zeros(1, 1).double(), 1.0, None, sf.VP())
    found = inverse.twisted_smc(
        prior,
        torch.square,
        torch.ones(1, 1).double(),
        0.2,
        particles=4000,
        steps=50,
        covariance=covariance,
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
        ({"y": torch.zeros(2, 3)}, r"y has shape \(2, 3\)"),
        ({"particles": 1}, "particles=1"),
        ({"noise": 0.0}, "noise=0.0"),
        ({"covariance": "fulll"}, "covariance='fulll'"),
    ],
)
def test_errors_name_the_argument(bad, message):
    good = {"y": torch.zeros(1, 2), "noise": 0.1} | bad
    with pytest.raises(ValueError, match=message):
        inverse.twisted_smc(mixture()[0], inverse.Mask(torch.ones(2)), **good)


def test_several_measurements_are_taken_in_turn():
    prior, *_ = mixture()
    y = torch.tensor([[0.9, 0.4], [-0.6, 0.1], [0.2, 0.2]])
    masks = inverse.Mask(torch.tensor([[1, 1], [1, 0], [0, 1]]))
    settings = {"noise": 0.2, "particles": 32, "steps": 10, "seed": 3}
    found = inverse.twisted_smc(prior, masks, y, **settings)
    first = inverse.twisted_smc(prior, inverse.Mask(torch.ones(2)), y[0], **settings)
    assert found.x.shape == (3, 32, 2)
    assert found.weights.shape == (3, 32)
    assert found.log_evidence.shape == (3,)
    assert found.ess.shape == (3, 11)
    torch.testing.assert_close(found.x[0], first.x)
    torch.testing.assert_close(found.log_evidence[0], first.log_evidence)
    assert found.mean().shape == found.std().shape == (3, 2)
    torch.testing.assert_close(found.mean()[0], first.mean())
    torch.testing.assert_close(found.std()[0], first.std())
    torch.testing.assert_close(found.draw(5)[0], first.draw(5))
    assert not torch.equal(found.x[1], found.x[2])


def test_restoration_repeats_masks_with_their_measurements():
    """Three masks, two samples each: an entry that was measured without noise to speak of is found."""
    gm = sf.GaussianMixture(torch.zeros(1, 3), 0.3, None, sf.VP())
    mask, truth = torch.eye(3).bool(), torch.tensor([[0.7, 0.0, 0.0], [0.0, -0.5, 0.0], [0.0, 0.0, 0.3]])
    for method in ("mmps", "ddrm", "replace", "smc"):
        found = inverse.restore(gm, inverse.Mask(mask), truth, 0.01, n=2, method=method, steps=30)
        assert (found.samples - truth.unsqueeze(1))[mask.unsqueeze(1).expand(3, 2, 3)].abs().max() < 0.06
