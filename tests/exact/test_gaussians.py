"""Fits of Gaussians: densities are those of torch, expectation maximisation climbs, clusters and directions are found."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from scorefield.gaussians import fit_gaussians, fit_principal, fit_stationary

MEANS = torch.tensor([[3.0, -2.0, 0.0], [-4.0, 1.0, 2.0]], dtype=torch.float64)
FACTORS = torch.tensor([[[1.0, 0, 0], [0.6, 0.5, 0], [0, 0.2, 0.3]], [[0.4, 0, 0], [-0.3, 0.8, 0], [0, 0, 1]]]).double()


@pytest.fixture(scope="module")
def rows():
    draws = torch.Generator().manual_seed(0)
    which = (torch.rand(6000, generator=draws) < 0.3).long()
    noise = torch.randn(6000, 3, 1, generator=draws, dtype=torch.float64)
    return MEANS[which] + (FACTORS[which] @ noise)[:, :, 0]


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_the_density_is_that_of_torch(rows, kind):
    found = fit_gaussians(rows, 3, 0, kind)
    covs = torch.diag_embed(found.covs) if kind == "diag" else found.covs
    law = MixtureSameFamily(Categorical(found.weights), MultivariateNormal(found.means, covs))
    torch.testing.assert_close(found.log_prob(rows[:50]), law.log_prob(rows[:50]))
    assert float(found.weights.sum()) == pytest.approx(1)
    if kind == "tied":
        assert torch.equal(found.covs[0], found.covs[2])


def test_clusters_that_are_apart_are_found(rows):
    found = fit_gaussians(rows, 2, 0, settled=1e-7)
    order = found.means[:, 0].argsort(descending=True)
    n = len(rows)
    torch.testing.assert_close(found.means[order], MEANS, atol=4 * 1.2 / (0.3 * n) ** 0.5, rtol=0)
    torch.testing.assert_close(found.covs[order], FACTORS @ FACTORS.mT, atol=4 * 1.5 / (0.3 * n) ** 0.5, rtol=0)
    assert float(found.weights[order][1]) == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_more_sweeps_never_lose(rows, kind):
    levels = [
        float(fit_gaussians(rows[:500], 4, 1, kind, settled=-1.0, sweeps=s).log_prob(rows[:500]).mean())
        for s in (1, 2, 4, 8, 16, 32)
    ]
    assert all(b >= a - 1e-12 for a, b in zip(levels, levels[1:], strict=False))
    assert levels[-1] > levels[0] + 1e-3


@pytest.mark.parametrize("kind", ["full", "tied", "diag"])
def test_no_component_is_narrower_than_the_floor(kind):
    """Twenty rows and eight components, which would shrink to single rows."""
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = fit_gaussians(x, 8, 0, kind, floor=0.01)
    widths = found.covs if kind == "diag" else torch.linalg.eigvalsh(found.covs)
    assert float(widths.min()) >= 0.01 * (1 - 1e-9)
    assert bool(torch.isfinite(found.log_prob(x)).all())


@pytest.mark.parametrize(("n", "d"), [(4000, 12), (60, 200)])
def test_the_directions_of_a_gaussian_are_found(n, d):
    """Three directions of variances 9, 4 and 1 above a rest of 0.01, in more rows than entries and in fewer."""
    draws = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(d, 3, generator=draws, dtype=torch.float64)).Q
    widths = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    x = torch.randn(n, 3, generator=draws, dtype=torch.float64) * widths @ basis.T
    x = 5 + x + 0.1 * torch.randn(n, d, generator=draws, dtype=torch.float64)
    found, _ = fit_principal(x, 10, 0)
    assert len(found.spectrum) == 3
    torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(3).double())
    # A variance of n rows is known to a share of sqrt(2 / n); the rest is what the directions leave, over D - 3 entries.
    assert torch.allclose(found.spectrum, widths.square(), rtol=4 * (2 / n) ** 0.5 + 0.01 * d / n)
    assert float(found.rest) == pytest.approx(0.01, rel=4 * (2 / n / d) ** 0.5 + 4 / n)
    assert float(torch.linalg.matrix_norm(found.basis.T @ basis, 2)) > 0.99


def test_two_directions_and_the_rest_have_the_covariance_of_rows_of_three():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ FACTORS[0].mT
    found, _ = fit_principal(x, 3, 0)
    assert len(found.spectrum) == 2
    cov = found.basis * (found.spectrum - found.rest) @ found.basis.T + found.rest * torch.eye(3)
    torch.testing.assert_close(cov, torch.cov(x.T, correction=0))


def test_the_spectrum_of_a_stationary_gaussian_is_found_and_it_is_told_from_directions():
    """Nats of halves: the spectrum beats directions on a periodic field, and loses on one that is the same nowhere."""
    draws = torch.Generator().manual_seed(0)
    power = torch.tensor([1.0, 4, 2, 0.5, 0.1, 0.5, 2, 4]).double()
    z = torch.fft.fft(torch.randn(3000, 2, 8, generator=draws, dtype=torch.float64), norm="ortho")
    x = 3 + torch.fft.ifft(z * power.sqrt(), norm="ortho").real
    found, nats = fit_stationary(x, 0)
    torch.testing.assert_close(found.spectrum, power.expand(2, 8), rtol=4 * (2 / 3000) ** 0.5, atol=0)
    assert float(found.mean) == pytest.approx(3, abs=4 * (1.0 / 6000) ** 0.5)
    # Entropy of the law, but for D / 2 log(2 pi): -sum (1 + log P) / 2.
    assert nats == pytest.approx(-float(1 + power.log().mean()) * 8, abs=4 * (8 / 1500) ** 0.5)
    assert nats > fit_principal(x.flatten(1), 16, 0)[1]
    uneven = x * torch.linspace(0.1, 3, 8)
    assert fit_stationary(uneven, 0)[1] < fit_principal(uneven.flatten(1), 16, 0)[1]
