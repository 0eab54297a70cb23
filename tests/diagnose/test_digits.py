"""The geometry of the bundled digits model: nearly straight ways in a plane, and a network that does not remember."""

from __future__ import annotations

import torch

import scorefield as sf
from scorefield.diagnose import trajectory


def test_ways_of_the_bundled_digits_are_nearly_straight_and_leave_the_memory_of_the_data():
    model = sf.load("digits")
    train = sf.Empirical(sf.digits().tensor(model.sde.range)[:3000], model.sde)
    way = trajectory(model, 4, sf.DDIM(), steps=24, grid="log_snr", seed=0)
    length = torch.linalg.vector_norm((way.x[-1] - way.x[0]).flatten(1), dim=1)
    assert float((way.chord().amax(0) / length).max()) < 0.006
    assert float(way.components(2)[:, 1].min()) > 0.97
    x, denoised = way.distance()
    assert float((x.diff(dim=0) < 0).double().mean()) > 0.99
    assert float((denoised < x)[:-1].double().mean()) > 0.93
    off = way.deviation(train).mean(1)
    assert float(off[way.sigma >= 15].max()) < 0.08
    assert float(off[way.sigma <= 1.5].min()) > 0.25  # a model that remembers the data has 0
    jump = int((way.sigma <= 0.5).nonzero()[0])  # an early stop there, with E[x_0 | x] in place of x
    assert jump <= 2 / 3 * 24
    assert float(torch.square(denoised[jump]).mean().sqrt()) / 28 < 0.06
