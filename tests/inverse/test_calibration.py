"""Calibration on samplers that are right, over-confident and biased, by construction."""

from __future__ import annotations

import pytest
import torch
from oracle import gaussian, rotated

import scorefield as sf
from scorefield import inverse
from scorefield.evaluation import calibrate

torch.set_num_threads(1)


def draws(scale: float = 1.0, shift: float = 0.0, m: int = 2000, k: int = 19):
    """Truths N(0, 1) and samples N(shift, scale^2): the posterior of a measurement that says nothing."""
    g = torch.Generator().manual_seed(0)
    truth = torch.randn(m, 2, generator=g, dtype=torch.float64)
    return shift + scale * torch.randn(m, k, 2, generator=g, dtype=torch.float64), truth


def test_a_right_sampler_covers_what_it_says():
    found = calibrate(*draws())
    assert found.expected(0.9) == pytest.approx(0.9)
    assert ((found.coverage(0.9) - 0.9).abs() < 4 * found.stderr(0.9)).all()
    assert (found.p_value() > 0.001).all()


@pytest.mark.parametrize(("scale", "shift"), [(0.7, 0.0), (1.5, 0.0), (1.0, 0.5)])
def test_a_wrong_sampler_is_found_out(scale, shift):
    found = calibrate(*draws(scale, shift))
    assert (found.p_value() < 1e-6).all()
    if shift == 0:
        assert bool((found.coverage(0.9) < 0.9).all()) == (scale < 1)


def test_equal_values_are_ordered_at_random():
    samples, truth = draws()
    found = calibrate(samples.round(), truth.round())
    assert (found.p_value() > 0.001).all()


def test_a_quantity_of_ones_own():
    samples, truth = draws(0.7)
    found = calibrate(samples, truth, lambda x: x.norm(dim=1, keepdim=True))
    assert found.ranks.shape == (2000, 1)
    assert float(found.p_value()) < 1e-6


def test_mmps_is_calibrated_and_dps_is_not():
    """Twenty samples for each of 200 measurements of a rotated Gaussian, in one call."""
    mean, cov = rotated(3)
    prior, m, k = gaussian(mean, cov, sf.VP()), 200, 19
    truth = prior.sample(m, seed=torch.Generator().manual_seed(1))
    a = inverse.Dense(torch.tensor([[0.6, 0.8, 0.0]]).double(), (3,))
    y = a(truth) + 0.3 * torch.randn(m, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def p_value(method: inverse.posterior.Method) -> float:
        model = prior | inverse.Posterior(a, y.repeat_interleave(k, 0), 0.3, method)
        x = sf.sample(model, m * k, sf.Ancestral(), steps=60, grid="log_snr", seed=torch.Generator().manual_seed(3))
        return float(calibrate(x.reshape(m, k, 3), truth, a).p_value())

    assert p_value("mmps") > 0.01
    assert p_value("dps") < 1e-3


def test_errors_name_the_argument():
    samples, truth = draws(m=5)
    with pytest.raises(ValueError, match="samples has shape"):
        calibrate(samples[:4], truth)
    with pytest.raises(ValueError, match="bins=50"):
        calibrate(samples, truth).p_value(50)
    with pytest.raises(ValueError, match=r"level=1\.5"):
        calibrate(samples, truth).coverage(1.5)
