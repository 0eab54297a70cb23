"""What `sf.fit` hands back works in the units and the form of the data."""

import types

import pytest
import torch

import scorefield as sf
from scorefield.automatic.door import Fitted
from scorefield.automatic.findings import find
from scorefield.errors import InputError

MEAN = torch.linspace(40, 60, 20, dtype=torch.float64)
MIX = torch.randn(20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu() + 6 * torch.eye(20)
COV = MIX.T @ MIX


@pytest.fixture(scope="module")
def fitted():
    """The exact model of signals of 21 entries, whose first is cut off, in units of its own."""
    z = torch.randn(400, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = z @ MIX + MEAN
    found = find(torch.cat([x, x[:, -1:]], 1)[:, None].numpy())
    assert found.data.shape == (1, 20)
    scale = found.data.scale
    mean = ((MEAN - scale.mean) / scale.factor).reshape(1, 1, 20)
    model = sf.GaussianMixture(mean, (COV / scale.factor**2)[None], None, sf.VP())
    return Fitted(types.SimpleNamespace(model=model.double(), path="run", step=0), found, None)


def test_restored_items_are_draws_of_the_posterior(fitted):
    seen = slice(3, 9)
    y = MEAN[seen] + 20.0
    gain = COV[:, seen] @ torch.linalg.inv(COV[seen, seen] + 4.0 * torch.eye(6))
    mean, cov = MEAN + gain @ (y - MEAN[seen]), COV - gain @ COV[seen]
    found = fitted.restore(lambda x: x[:, 0, seen], y[None], noise=2.0, n=400, steps=20, seed=0, progress=False)
    x = found.samples[0, :, 0].double()
    error = cov.diagonal().sqrt() / 20
    assert ((x.mean(0) - mean).abs() < 4.5 * error + 0.02 * cov.diagonal().sqrt()).all()
    assert x.std(0) == pytest.approx(cov.diagonal().sqrt(), rel=0.2)
    with pytest.raises(ValueError, match="needs a linear operator"):
        fitted.restore(lambda x: x[:, 0, seen], y[None], noise=2.0, method="ddrm")


def test_items_take_the_form_of_the_model(fitted):
    x = torch.randn(3, 21, generator=torch.Generator().manual_seed(2)).double() + 50
    exact = torch.distributions.MultivariateNormal(MEAN, COV).log_prob(x[:, :20])
    for form in (x, x[:, None], x[:, None, :20], x.numpy()):
        torch.testing.assert_close(fitted.log_prob(form, trace="exact", prior="exact").nats, exact, rtol=0, atol=0.01)
    torch.testing.assert_close(fitted.to_units(fitted.to_model(x))[:, 0], x[:, :20].float(), rtol=1e-5, atol=0)
    with pytest.raises(InputError, match=r"items of shape \(3, 21\) and \(1, 20\) is expected"):
        fitted.log_prob(x[None])
