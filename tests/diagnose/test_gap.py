"""The gap between flow and SDE: closed forms of a score of the wrong size, and nothing where there is none."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import gaussian
from scorefield.diagnose import flow_gap, fokker_planck_residual, residual_by_level

B = 10.05
"""Integral of beta."""


def scaled(delta: float) -> sf.ScoreModel:
    """s = -(1 + delta) x under VP, for data N(0, 1)."""
    return sf.ScoreModel.from_score(lambda x, t: -(1 + delta) * x, sf.VP(), shape=(1,))


@pytest.mark.parametrize(("delta", "wanted"), [(0.2, 0.47911), (0.1, 0.30786), (-0.1, 0.53485)])
def test_a_score_of_the_wrong_size_has_the_gap_of_the_closed_form(delta, wanted):
    flow, rate = math.exp(-delta * B), 1 + 2 * delta
    sde = 1 / rate + (1 - 1 / rate) * math.exp(-rate * B)
    assert abs(math.sqrt(flow) - math.sqrt(sde)) == pytest.approx(wanted, abs=2e-5)
    found = flow_gap(scaled(delta).double(), 8000, steps=300, seed=1, directions=1)
    assert found.significant
    # 0.02: Euler-Maruyama at 300 steps, and standard deviations from parts of 2000 draws
    assert found.excess == pytest.approx(wanted, abs=4 * found.gap.stderr + 0.02)


def test_an_exact_score_has_no_gap():
    gm = gaussian(sf.VP(), 3)
    found = flow_gap(gm, 1600, steps=150, seed=2, data=gm.sample(1600, seed=3))
    assert not found.significant
    assert found.excess < 0.8 * found.gap.value  # without what chance adds
    assert found.flow_to_data.value < 2.5 * found.data_floor.value
    assert found.sde_to_data.value < 2.5 * found.data_floor.value


def test_the_residual_of_the_wrong_score_is_its_closed_form():
    x, t, delta = torch.randn(6, 1, dtype=torch.float64), 0.4, 0.2
    wanted = -float(sf.VP().g2(t)) * delta * (1 + delta) * x
    assert torch.allclose(fokker_planck_residual(scaled(delta), x, t), wanted, atol=1e-12)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="needs 8 samples or more"):
        flow_gap(scaled(0.1), 4)


def test_the_residual_by_level_is_that_of_the_closed_form_and_nothing_of_an_exact_score():
    sde, delta, times = sf.VP(), 0.2, [0.1, 0.4]
    data = torch.randn(4000, 1, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    for t, found in zip(times, residual_by_level(scaled(delta), data, times), strict=True):
        # r = -g^2 delta (1 + delta) x, and x_t is N(0, 1)
        wanted = float(sde.sigma(t)) ** 6 * (delta * (1 + delta)) ** 2
        assert abs(found.value - wanted) < 4 * wanted * math.sqrt(2 / 4000)
        assert found.stderr < 0.1 * wanted
    gm = gaussian(sde, 3)
    assert all(abs(e.value) < 1e-15 for e in residual_by_level(gm, gm.sample(64, seed=1), times, probes=None))
    steps = sf.ScoreModel.from_score(lambda x, t: -x * (1 + torch.round(10 * t).reshape(-1, 1)), sde, shape=(3,))
    assert residual_by_level(steps, gm.sample(64, seed=1), times) == []  # numbered levels have no derivative by time
    with pytest.raises(ValueError, match="needs 8 or more"):
        residual_by_level(gm, gm.sample(4), times)
