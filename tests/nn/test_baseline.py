"""Networks beside a Gaussian or a mixture: without the network the model is that law, at every noise level."""

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.automatic.choose import WIDTHS, choose
from scorefield.automatic.findings import find
from scorefield.nn import MLP, BesideGaussian, BesideMixture, BesideStationary
from scorefield.training.describe import build_model, describe_model

MEANS = torch.tensor([[1.0, -2.0], [-1.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
COVS = torch.tensor([[[1.0, 0.6], [0.6, 0.5]], [[0.02, -0.01], [-0.01, 0.3]], [[0.2, 0.0], [0.0, 0.1]]]).double()
WEIGHTS = torch.tensor([0.5, 0.2, 0.3]).double()


def silent(sigma_data):
    net = MLP(2, 8)
    torch.nn.init.zeros_(net.exit.weight)
    beside = BesideMixture(net, 3, sigma_data)
    beside.begin(WEIGHTS, MEANS, COVS)
    return sf.ScoreModel(beside, sf.VP(), "edm", shape=(2,), sigma_data=sigma_data)


@pytest.mark.parametrize("t", [1e-4, 0.05, 0.4, 1.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_without_the_network_it_is_the_mixture(sigma_data, t):
    exact = sf.GaussianMixture(MEANS, COVS, WEIGHTS, sf.VP())
    x = exact.sample(200, t, seed=0).double()
    model = silent(sigma_data).double()
    # The clock goes through float32: errors of 1e-6 in log(sigma).
    torch.testing.assert_close(model.denoise(x, t), exact.denoise(x, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.noise(x, t), exact.noise(x, t), rtol=1e-3, atol=1e-3)


def silent_gaussian():
    """Two directions of unlike variances and a rest, over items (1, 2, 2)."""
    basis = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    law = (torch.arange(4).double() - 1, basis, torch.tensor([2.0, 0.5]).double(), torch.tensor(0.03).double())
    net = MLP(4, 8)
    torch.nn.init.zeros_(net.exit.weight)
    beside = BesideGaussian(net, (1, 2, 2), 2, 0.7)
    beside.begin(*law)
    return sf.ScoreModel(beside, sf.VP(), "edm", shape=(1, 2, 2), sigma_data=0.7), law


@pytest.mark.parametrize("t", [1e-4, 0.05, 0.4, 1.0])
def test_without_the_network_it_is_the_gaussian(t):
    model, (mean, basis, spectrum, rest) = silent_gaussian()
    cov = basis * (spectrum - rest) @ basis.T + rest * torch.eye(4)
    exact = sf.GaussianMixture(mean.reshape(1, 1, 2, 2), cov[None], None, sf.VP())
    x = exact.sample(200, t, seed=0).double()
    torch.testing.assert_close(model.double().denoise(x, t), exact.denoise(x, t), rtol=1e-4, atol=1e-4)


def silent_stationary():
    """A spectrum of two channels over a grid of 2 x 3, and the covariance that it means."""
    power = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.01
    power[:, :, 2] = power[:, :, 1]  # that of a real field: the same at opposite frequencies
    waves = torch.fft.fftn(torch.eye(12, dtype=torch.float64).reshape(12, 2, 2, 3), dim=(2, 3))
    cov = torch.fft.ifftn(waves * power, dim=(2, 3)).real.reshape(12, 12)
    net = MLP(12, 8)
    torch.nn.init.zeros_(net.exit.weight)
    beside = BesideStationary(net, (2, 2, 3), 0.9)
    beside.begin(torch.tensor(0.4), power)
    return sf.ScoreModel(beside, sf.VP(), "edm", shape=(2, 2, 3), sigma_data=0.9), cov


@pytest.mark.parametrize("t", [1e-4, 0.05, 0.4, 1.0])
def test_without_the_network_it_is_the_stationary_gaussian(t):
    model, cov = silent_stationary()
    exact = sf.GaussianMixture(torch.full((1, 2, 2, 3), 0.4).double(), cov[None], None, sf.VP())
    x = exact.sample(200, t, seed=0).double()
    torch.testing.assert_close(model.double().denoise(x, t), exact.denoise(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [silent(0.5), silent_gaussian()[0], silent_stationary()[0]],
    ids=["mixture", "gaussian", "stationary"],
)
def test_a_description_and_weights_make_it_again(model):
    again = build_model(describe_model(model))
    again.load_state_dict(model.state_dict())
    x = torch.randn(5, *model.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.denoise(x, 0.3), model.denoise(x, 0.3))


def test_the_door_begins_with_the_mixture_of_its_data():
    """Before the first step the likelihood of held-out rows is that of the law, but for what 1,350 rows cannot tell."""
    exact = sf.GaussianMixture(MEANS, COVS, WEIGHTS, sf.VP())
    x = exact.sample(1500, 0.0, seed=1).double() @ torch.tensor([[3.0, 1.0], [0.0, 2.0]]).double() + 7
    found = find(x.numpy())
    model = choose(found, 1.0, 10, torch.device("cpu"), 0).model.eval()
    y = found.data.scale.to_model(found.held_out.read(range(150)))
    lp = sf.log_prob(model, y, "exact", solver=sf.Dopri5(1e-4, 1e-4), progress=False)
    truth = exact.log_prob(torch.linalg.solve(torch.tensor([[3.0, 1.0], [0.0, 2.0]]).double().T, (x - 7).T).T)
    nats = lp.nats - found.data.scale.log_volume(found.held_out.read(range(150)))
    law = truth - torch.tensor(6.0).double().log()
    held = torch.cdist(found.held_out.read(range(150)).double(), x).argmin(1)
    assert float((law[held] - nats).mean()) < 0.1
    assert float((nats - law[held]).mean()) < 0.1


def test_signals_begin_with_their_gaussian(monkeypatch):
    """Before the first step the samples of a Gaussian process have its spectrum, which no network of seconds learns."""
    monkeypatch.setitem(WIDTHS, "signal", (8,))  # the network is silent still
    draws = np.random.default_rng(0)
    power = np.zeros(64)
    power[1:5] = [8, 4, 2, 1]
    z = draws.normal(size=(600, 64)) + 1j * draws.normal(size=(600, 64))
    x = 3 * np.fft.ifft(z * np.sqrt(power)).real[:, None]
    found = find(x)
    model = choose(found, 1.0, 10, torch.device("cpu"), 0).model.eval()
    assert isinstance(model.net, BesideStationary)
    made = found.data.scale.to_units(sf.sample(model, 600, sf.DPMSolver(2), steps=20, seed=0, progress=False)).numpy()
    own, law = (np.abs(np.fft.fft(y[:, 0])[:, :33]) ** 2 for y in (made, x))
    error = np.sqrt((own.var(0) + law.var(0)) / 600)[1:5]
    assert np.all(np.abs(own.mean(0) - law.mean(0))[1:5] < 4 * error)
    assert own.mean(0)[6:].sum() < 1e-3 * own.mean(0).sum()
