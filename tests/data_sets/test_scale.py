"""Scales of columns: they are inverted, their volume is that of the Jacobian, and JSON keeps them."""

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.data.scale import Scale
from scorefield.data.yeo_johnson import Powers


def bent(n=300):
    """Correlated columns, one of them log-normal, of unlike units."""
    mix = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.5]])
    z = np.random.default_rng(0).normal(size=(n, 3)) @ mix
    return torch.from_numpy(np.stack([5 + 100 * z[:, 0], np.exp(z[:, 1]), 0.01 * z[:, 2]], 1))


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 1.7, 2.0])
def test_powers_are_inverted_and_their_slope_is_known(power):
    powers = Powers(*torch.tensor([[0.3], [2.0], [power]], dtype=torch.float64))
    x = torch.linspace(-8, 8, 41, dtype=torch.float64)[:, None].requires_grad_()
    y = powers.bend(x)
    torch.testing.assert_close(powers.unbend(y.detach()), x.detach())
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(powers.log_slope(x.detach()), slope.log())


def test_a_power_is_taken_only_where_it_is_worth_its_bits():
    powers = Powers.fitted(bent()).powers
    assert powers[0] == powers[2] == 1
    assert powers[1] < 0.4
    assert Powers.fitted(bent()[:, [0, 2]]) is None


@pytest.mark.parametrize("straighten", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_the_volume_is_that_of_the_jacobian_and_json_keeps_it(whiten, straighten):
    x = bent()
    scale = Scale.from_json(Scale.of_columns(x, whiten=whiten, straighten=straighten).to_json())
    z = scale.forward(x)
    torch.testing.assert_close(scale.to_units(z), x)
    jacobian = torch.autograd.functional.jacobian
    for i in range(5):
        full = jacobian(lambda rows: scale.to_units(rows)[0], z[i : i + 1])[:, 0]
        torch.testing.assert_close(scale.log_volume(x[i : i + 1])[0], torch.linalg.slogdet(full)[1])
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    if whiten:
        # Three hundred rows draw the covariance towards its diagonal by a few hundredths.
        assert float((torch.cov(z.T, correction=0) - torch.eye(3)).abs().max()) < 0.1
        assert float((torch.corrcoef(x.T) - torch.eye(3)).abs().max()) > 0.4
    else:
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(3).double())


def test_the_shrinkage_is_that_of_scikit_learn():
    covariance = pytest.importorskip("sklearn.covariance")
    x = bent(40)
    u = (x - x.mean(0)) / x.std(0, correction=0)
    share = covariance.LedoitWolf().fit(u.numpy()).shrinkage_
    scale = Scale.of_columns(x, straighten=False)
    cov = scale.factor @ scale.factor.T
    expected = torch.cov(x.T, correction=0)
    shrunk = (1 - share) * expected + share * torch.diag(expected.diagonal())
    torch.testing.assert_close(cov, shrunk)
    assert share > 0.01


def test_two_columns_that_are_the_same_are_still_whitened_without_a_failure():
    x = bent()[:, [0, 0]]
    scale = Scale.of_columns(x)
    assert bool(torch.isfinite(scale.forward(x)).all())


def test_one_number_for_all_entries_counts_each_of_them():
    x = torch.zeros(4, 2, 3)
    expected = torch.full((4,), 6 * np.log(2)).double()
    torch.testing.assert_close(Scale(torch.tensor(1.0), torch.tensor(2.0)).log_volume(x).double(), expected)


def test_a_posterior_on_columns_in_their_units_gives_the_rest_given_them():
    """Of N(m, S) the first column given the second; a mask on decorrelated coordinates holds something else."""
    mean, root = torch.tensor([45.0, 10.0]).double(), torch.tensor([[12.0, 0.0], [0.3, 0.4]]).double()
    scale, cov, value, noise, n = Scale(mean, root), root @ root.T, 10.6, 0.05, 200
    model = sf.GaussianMixture(torch.zeros(1, 2).double(), 1.0, None, sf.VP())
    known = sf.Posterior(lambda z: scale.to_units(z)[:, 1:], torch.tensor([[value]]).double(), noise=noise)
    x = scale.to_units(sf.sample(model | known, n, steps=10, seed=0))
    slope = cov[0, 1] / (cov[1, 1] + noise**2)
    centre, std = mean[0] + slope * (value - mean[1]), (cov[0, 0] - slope * cov[0, 1]).sqrt()
    assert float(x[:, 0].mean()) == pytest.approx(float(centre), abs=4 * float(std) / n**0.5)
    assert float(x[:, 0].std()) == pytest.approx(float(std), rel=4 / (2 * n) ** 0.5)
    assert float((x[:, 1] - value).abs().max()) < 5 * noise
    asked = scale.to_model(torch.tensor([[0.0, value]]).double())[:, 1:]
    wrong = sf.Posterior(lambda z: z[:, 1:], asked.double(), noise=noise)
    y = scale.to_units(sf.sample(model | wrong, n, steps=10, seed=0))
    assert float((y[:, 1] - value).abs().mean()) > 4 * noise


@pytest.mark.parametrize("straighten", [False, True])
def test_seconds_since_1970_keep_their_digits(straighten):
    """Float32 has steps of 128 there."""
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(3))
    seconds = 1.7e9 + 1000.0 * z.double()
    scale = Scale.of_columns(seconds, straighten=straighten)
    back = scale.to_units(scale.to_model(seconds))
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, seconds, rtol=0, atol=0.01)
    assert Scale.of_columns(z.double()).to_units(z).dtype == torch.float32
