"""The network beside a mixture: without the network the model is the mixture, at every noise level."""

import pytest
import torch

import scorefield as sf
from scorefield.automatic.choose import choose
from scorefield.automatic.findings import find
from scorefield.nn import MLP, BesideMixture
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


def test_a_description_and_weights_make_it_again():
    model = silent(0.5)
    again = build_model(describe_model(model))
    again.load_state_dict(model.state_dict())
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
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
