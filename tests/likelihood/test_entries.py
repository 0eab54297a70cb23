"""The parts of a log-density: their sum is the density, and each is what the flow of a Gaussian says in closed form."""

import math

import pytest
import torch

import scorefield as sf
from scorefield.evaluation.bits import item_likelihoods, item_places
from scorefield.likelihood import places
from scorefield.sampling import LIKELIHOOD_T_MIN as T_MIN


def rotated(dtype=torch.float64):
    c, s = math.cos(0.6), math.sin(0.6)
    turn = torch.tensor([[c, -s], [s, c]], dtype=dtype)
    cov = turn @ torch.diag(torch.tensor([1.5, 0.1], dtype=dtype)) @ turn.T
    return torch.tensor([0.4, -0.7], dtype=dtype), cov


def gaussian(mean, cov, sde=None):
    return sf.GaussianMixture(mean.unsqueeze(0), cov.unsqueeze(0), None, sf.VP() if sde is None else sde)


@pytest.mark.parametrize("probes", [1, 3])
def test_the_figure_is_that_of_log_prob_bit_for_bit_and_the_parts_add_up_to_it(probes):
    model = gaussian(*rotated())
    x = model.sample(3, seed=1)
    found = places(model, x, probes, seed=5, tolerance=1e-4)
    lp = sf.log_prob(model, x, probes=probes, seed=5, solver=sf.Dopri5(1e-4, 1e-4))
    assert torch.equal(found.lp.draws, lp.draws)
    assert torch.equal(found.lp.latent, lp.latent)
    assert torch.equal(found.lp.nfe, lp.nfe)
    assert torch.allclose(found.nats.sum(1), lp.nats, rtol=0, atol=1e-10)
    assert torch.allclose(found.bits().mean(1), found.lp.bits_per_dim(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sde", [sf.VP(), sf.VE(sigma_min=0.01, sigma_max=4.0)], ids=["VP", "VE"])
def test_parts_of_independent_entries_are_their_own_log_densities(sde):
    mean, std = torch.tensor([0.5, -0.3, 0.1], dtype=torch.float64), torch.tensor([0.2, 1.0, 0.6], dtype=torch.float64)
    model = gaussian(mean, torch.diag(std**2), sde)
    x = torch.tensor([[0.7, -1.0, 0.2], [0.1, 0.4, -1.5]], dtype=torch.float64)
    found = places(model, x, 2, seed=0, tolerance=1e-9)
    # At T the law is not quite the prior; at t_min it is the entry's Gaussian, noised.
    alpha, sigma = float(sde.alpha(T_MIN)), float(sde.sigma(T_MIN))
    spread = (alpha * std) ** 2 + sigma**2
    exact = torch.distributions.Normal(alpha * mean, spread.sqrt()).log_prob(x)
    ends = [float(f(sde.T)) for f in (sde.alpha, sde.sigma)]
    z = found.lp.latent
    law = torch.distributions.Normal(ends[0] * mean, ((ends[0] * std) ** 2 + ends[1] ** 2).sqrt())
    exact = exact - law.log_prob(z) + torch.distributions.Normal(0.0, ends[1]).log_prob(z)
    assert torch.allclose(found.nats, exact, rtol=0, atol=1e-6)
    assert float(found.stderr.max()) < 1e-9  # signs square to one: nothing is random where nothing is coupled


def test_parts_of_a_rotated_gaussian_are_the_integral_of_the_diagonal_of_the_jacobian():
    mean, cov = rotated()
    model, sde, probes = gaussian(mean, cov), sf.VP(), 400
    x = torch.tensor([[0.9, -0.2]], dtype=torch.float64)
    found = places(model, x, probes, seed=3, tolerance=1e-7)
    # Velocity f x - g^2 / 2 score: the Jacobian is f + g^2 / 2 C_t^-1. Midpoints in log t, fine enough for 1e-5.
    edges = torch.logspace(math.log10(T_MIN), 0, 40001, dtype=torch.float64)
    t, widths = (edges[1:] * edges[:-1]).sqrt(), edges.diff()
    c = sde.alpha(t).reshape(-1, 1, 1) ** 2 * cov + sde.sigma(t).reshape(-1, 1, 1) ** 2 * torch.eye(
        2, dtype=torch.float64
    )
    diagonal = sde.f(t).unsqueeze(1) + 0.5 * sde.g2(t).unsqueeze(1) * torch.linalg.inv(c).diagonal(dim1=1, dim2=2)
    z = sf.encode(model, x, sf.Dopri5(1e-9, 1e-9))
    own = torch.distributions.Normal(0.0, float(sde.sigma(sde.T))).log_prob(z)
    exact = own + (diagonal * widths.unsqueeze(1)).sum(0)
    assert float(found.stderr.min()) > 0
    assert bool(((found.nats - exact).abs() <= 4 * found.stderr + 1e-4).all())
    one = places(model, x, 1, seed=3)
    assert bool(one.stderr.isnan().all())
    # The spread over seeds is what the error bar of a single run says, within 4 standard errors of a variance.
    seeds = places(model, x.expand(probes, 2), 1, seed=9).nats
    assert torch.allclose(seeds.std(0), found.stderr[0] * math.sqrt(probes), rtol=4 * math.sqrt(1.0 / probes))


def test_items_have_the_likelihoods_of_the_command():
    data = sf.data.array(
        torch.randint(0, 256, (2, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    model = sf.GaussianMixture(torch.zeros(1, 1, 2, 2), torch.eye(4).unsqueeze(0), None, sf.VP())
    model.data_levels, model.data_range = 256, (-1.0, 1.0)
    found = item_places(model, data, [1], (-1.0, 1.0), seed=2, probes=2, tolerance=1e-4)
    lp, nats = item_likelihoods(model, data, [1], (-1.0, 1.0), seed=2, probes=2, solver=sf.Dopri5(1e-4, 1e-4))
    assert torch.equal(found.lp.nats, lp.nats)
    assert float(found.bits().sum()) * math.log(2) == pytest.approx(-float(nats[0]), rel=1e-9)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        places(gaussian(*rotated()), torch.zeros(0, 2, dtype=torch.float64))
