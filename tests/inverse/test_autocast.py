"""Half precision is for networks: measurements keep their own under autocast."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield.inverse import DDRM, Dense

H = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)) * 3
GM = sf.GaussianMixture(torch.zeros(1, 16), 0.3, None, sf.VP())


class OnlyForward:
    """The matrix without an adjoint."""

    def __call__(self, x):
        return x @ H.to(x).T


def draw(operator, way):
    y = Dense(H, (16,))(GM.sample(1, seed=2))
    options = {"steps": 20, "seed": 0}
    if way == "ddrm":
        return sf.sample(GM, 8, DDRM(operator, y, 0.0), **options), y
    if way == "mmps":
        return sf.sample(GM | sf.Posterior(operator, y, 0.01), 8, sf.DDIM(), **options), y
    return sf.sample(GM, 8, sf.DDIM(eta=1.0), hooks=[sf.Replace(operator, y)], **options), y


@pytest.mark.parametrize("way", ["replace", "ddrm", "mmps"])
@pytest.mark.parametrize("operator", [Dense(H, (16,)), OnlyForward()], ids=["adjoint", "forward"])
def test_samples_under_autocast_are_those_without(operator, way):
    """The model is exact and counts in float64, so that autocast could only touch the measurement."""
    expected, y = draw(operator, way)
    with torch.autocast("cpu", torch.bfloat16):
        x, _ = draw(operator, way)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    assert way != "replace" or (x @ H.T - y).abs().max() < 1e-4
