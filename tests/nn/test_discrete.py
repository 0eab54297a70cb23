"""Labels and tables of networks trained on a ladder of noise levels."""

import numpy as np
import pytest
import torch
from torch import nn

from scorefield.ladder import DDPMScore, SMLDLabels
from scorefield.model import ScoreModel
from scorefield.sdes import VP


class Echo(nn.Module):
    """Returns x, and remembers the label."""

    def forward(self, x, label):
        self.label = label
        return x


@pytest.mark.parametrize("n", [10, 1000])
def test_smld_labels_run_from_large_noise_to_small(n):
    t = torch.linspace(1, 0, n, dtype=torch.float64)
    assert torch.equal(SMLDLabels(n)(t), torch.arange(n).float())


@pytest.mark.parametrize("n", [100, 1000])
def test_table_is_ddpms(n):
    beta = np.linspace(0.1 / n, 20.0 / n, n)
    expected = np.sqrt(1 - np.cumprod(1 - beta))
    np.testing.assert_allclose(DDPMScore(Echo(), num_scales=n).table().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_score_divides_by_the_table_at_every_label(dtype):
    n = 1000
    net = DDPMScore(Echo(), num_scales=n)
    model = ScoreModel(net, VP(), "score")
    label = torch.arange(1, n)  # at label 0 the SDE is noiseless
    x = torch.ones(n - 1, 1, dtype=dtype)
    t = label.to(dtype) / (n - 1)
    expected = -1 / net.table()[label].reshape(-1, 1)
    torch.testing.assert_close(model.score(x, t).double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(net.net.label.double(), label.double(), rtol=0, atol=1e-4)


def test_unlike_the_sde_the_table_starts_at_one_step():
    """Its first level is sqrt(beta_1) of a whole step, where the SDE has no noise yet."""
    assert float(DDPMScore(Echo()).table()[0]) == pytest.approx((0.1 / 1000) ** 0.5)
