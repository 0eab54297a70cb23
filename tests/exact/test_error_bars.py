"""The error bars of likelihoods are honest, and a value does not change with its batch-mates."""

from __future__ import annotations

import torch

import scorefield as sf
from oracles import gaussian


def test_standard_error_covers_the_truth_at_the_nominal_rate():
    """200 repetitions of one 8-probe estimate: Student's t intervals of 95 % hold 95 +- 4 * 1.54 % of the time."""
    gm = gaussian(sf.VP(), d=6)
    x = gm.sample(1, seed=0).expand(200, -1)
    solver = sf.Dopri5(1e-6, 1e-6)
    truth = sf.log_prob(gm, x[:1], "exact", solver=solver).nats
    lp = sf.log_prob(gm, x, probes=8, seed=1, solver=solver)
    inside = ((lp.nats - truth).abs() < 2.365 * lp.stderr).double().mean()
    assert 0.95 - 4 * 0.0154 <= float(inside) <= 1.0
    spread = float(lp.nats.std()) / float(lp.stderr.square().mean().sqrt())
    assert abs(spread - 1) < 4 * (1 / 400 + 1 / 2800) ** 0.5
    assert abs(float(lp.nats.mean() - truth)) < 4 * float(lp.nats.std()) / 200**0.5


def test_a_networks_likelihood_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    net = sf.nn.UNet(1, 8, (1, 2), 1, (), dropout=0.0).eval()
    model = sf.ScoreModel(net, sf.VP(), "noise", shape=(1, 4, 4))
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    loose = sf.Dopri5(1e-2, 1e-2)
    together = sf.log_prob(model, x, seed=[4, 5, 6], solver=loose)
    alone = torch.cat([sf.log_prob(model, x[i : i + 1], seed=4 + i, solver=loose).nats for i in range(3)])
    torch.testing.assert_close(together.nats, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together.nats, sf.log_prob(model, x, seed=[4, 5, 6], solver=loose).nats)
