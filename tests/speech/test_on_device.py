"""Restoration on a device without float64: what is shown, the start, the samples and the loss stay there."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from accelerator import DEVICE, Accelerator, OnDevice
from oracles import name


@pytest.fixture
def device():
    with Accelerator() as accelerator:
        yield accelerator


@pytest.mark.parametrize("sde", [sf.VPIDM(scale=2**-0.5), sf.OUVE()], ids=name)
def test_restoration_stays_on_its_device(device, sde):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sf.nn.FrameMLP(8, 16)
        torch.nn.init.normal_(net.exit.weight, std=0.1)
    y = torch.randn(3, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    results = []
    for place in ("cpu", DEVICE):
        model = sf.ScoreModel(sf.nn.Paired(net.to(place), sde), sde, "data", shape=(2, 8, 12))
        start = sf.near(y.to(place), sde, seed=0, model=model)
        x = sf.sample(model, 3, sf.DPMSolver(order=2), steps=3, y=y.to(place), x_init=start, denoise=True)
        loss = sf.dsm_loss(model, y.to(place), y=y.to(place), seed=0).sum()
        loss.backward()
        results.append((x, loss, start))
    assert all(isinstance(v, OnDevice) for v in results[1])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
