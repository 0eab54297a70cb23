"""Clipping and dynamic thresholding of E[x_0 | x] as guidance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield import guide

torch.set_num_threads(1)


def wide(sde: sf.GaussianSDE) -> sf.GaussianMixture:
    """Data far beyond the range."""
    return sf.GaussianMixture(torch.tensor([[0.5, -2.0, 1.5, 0.1]], dtype=torch.float64), 0.04, None, sde)


def points(n: int = 5) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("sde", [sf.VP(), sf.VE()], ids=["VP", "VE"])
def test_clipped_estimates_are_in_range_and_every_view_agrees(sde):
    gm, x = wide(sde), points()
    clipped = gm | guide.Clamp()
    data = clipped.denoise(x, 0.3)
    torch.testing.assert_close(data, gm.denoise(x, 0.3).clamp(*sde.range))
    alpha, sigma = float(sde.alpha(0.3)), float(sde.sigma(0.3))
    torch.testing.assert_close(clipped.noise(x, 0.3), (x - alpha * data) / sigma)
    torch.testing.assert_close(clipped.score(x, 0.3), (alpha * data - x) / sigma**2)
    flow = sde.f(0.3) * x - 0.5 * sde.g2(0.3) * clipped.score(x, 0.3)
    torch.testing.assert_close(clipped.velocity(x, 0.3), flow)
    torch.testing.assert_close((gm | guide.Clamp(-5, 1.2)).denoise(x, 0.3), gm.denoise(x, 0.3).clamp(-5, 1.2))


def test_what_is_in_range_is_left_alone():
    gm = sf.GaussianMixture(torch.zeros(1, 4).double(), 1e-4, None, sf.VP())
    for limit in (guide.Clamp(), guide.Threshold()):
        assert torch.equal((gm | limit).denoise(points(), 0.1), gm.denoise(points(), 0.1))


def test_thresholding_divides_by_the_quantile_of_each_sample():
    """Saharia et al. 2022, sec. 2.3, on numbers: of |x| = 1, 2, 3, 4 the quantile 0.75 is 3."""
    data = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.1, 0.2, -0.3, 0.4]])
    found = guide.Threshold(0.75).limit(data, -1.0, 1.0)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, -2 / 3, 1.0, -1.0], [0.1, 0.2, -0.3, 0.4]]))
    torch.testing.assert_close(guide.Threshold(0.75).limit((data + 1) / 2, 0.0, 1.0), (found + 1) / 2)
    torch.testing.assert_close(guide.Threshold(1.0).limit(data, -1.0, 1.0)[0], data[0] / 4)
    torch.testing.assert_close(guide.Threshold(1.0, most=2.0).limit(data, -1.0, 1.0)[0], data[0].clamp(-2, 2) / 2)


def test_samples_under_strong_guidance_stay_in_range():
    gm = sf.GaussianMixture(torch.tensor([[0.9, 0.0], [-0.9, 0.0]]).double(), 0.05, None, sf.VP())
    strong = gm | sf.ClassifierGuidance(lambda x, t: gm.posterior(x, t).log(), 0, 30.0)
    free, kept = (sf.sample(m, 50, sf.DDIM(), steps=20, seed=0, denoise=True) for m in (strong, strong | guide.Clamp()))
    assert free.abs().max() > 1.2
    assert kept.abs().max() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: guide.Clamp(1, -1), "low=1, high=-1"),
        (lambda: guide.Clamp(float("nan"), 1), "low=nan"),
        (lambda: guide.Threshold(0.0), "quantile=0.0"),
        (lambda: guide.Threshold(float("nan")), "quantile=nan"),
        (lambda: guide.Threshold(0.9, most=0.5), "most=0.5"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
