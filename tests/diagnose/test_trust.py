"""What a likelihood and a posterior depend on, against closed forms of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import mixture, rotated
from scorefield.diagnose import likelihood_trust, posterior_trust, report
from scorefield.prior import Prior

SDE = sf.VP()
F64 = torch.float64


class Wide(sf.VP):
    """Starts from twice the noise."""

    def prior(self, shape):
        return Prior(tuple(shape), 2.0)


def test_the_scatter_of_a_probe_is_that_of_the_quadratic_form():
    """v' M v, M = 1/2 log of c_T / c_0 in the axes of the data, varies by 2 sum of the squares of M off its diagonal."""
    mean, cov = rotated(3)
    gm = sf.GaussianMixture(mean[None], cov[None], None, SDE)
    found = likelihood_trust(gm, gm.sample(4, seed=0), gm.sample(200, seed=1), probes=500, seed=2)
    values, basis = torch.linalg.eigh(cov)
    first, last = (SDE.alpha(t) ** 2 * values + SDE.sigma(t) ** 2 for t in (1e-5, 1.0))
    m = 0.5 * (basis * torch.log(last / first)) @ basis.T
    wanted = math.sqrt(2 * float(torch.square(m).sum() - torch.square(m.diagonal()).sum()))
    # Four standard errors of a standard deviation by 4 x 500 draws of kurtosis below 3.
    assert found.probe == pytest.approx(wanted, rel=4 * math.sqrt(2 / 2000) / 2)
    assert found.probes(0.01) == math.ceil((found.probe / (0.01 * 3 * math.log(2))) ** 2)
    # The nominal prior forgets the mean: alpha(T) = 0.0066 of it.
    assert torch.allclose(found.nats, gm.log_prob(gm.sample(4, seed=0), 1e-5), atol=0.02)
    assert abs(found.tolerance.value) < 0.02
    assert abs(found.t_min.value) < 0.02


def test_data_on_a_line_gain_without_end_from_a_smaller_t_min():
    along = torch.tensor([[[0.8, 0.4], [0.4, 0.2]]], dtype=F64)
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), along, None, SDE)
    found = likelihood_trust(gm, gm.sample(2, seed=3))
    wanted = float(torch.log(SDE.sigma(1e-5) / SDE.sigma(1e-6)))
    assert wanted == pytest.approx(0.5 * math.log(10), rel=1e-3)
    assert found.t_min.value == pytest.approx(wanted, abs=0.02)
    assert found.bits(found.t_min.value) == pytest.approx(0.5 * math.log2(10) / 2, abs=0.02)


def test_what_a_fitted_prior_gains_is_the_divergence_of_the_nominal_one():
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), 1.0, None, SDE).under(Wide())
    data = torch.randn(800, 2, generator=torch.Generator().manual_seed(5), dtype=F64)
    found = likelihood_trust(gm, data[:600], data[600:], tolerance=1e-3)
    # KL(N(0, I) || N(0, 4 I)); the fitted one has 5 parameters from 200 rows
    assert abs(found.prior.value - 2 * (math.log(2) + 1 / 8 - 1 / 2)) < 4 * found.prior.stderr + 5 / 200
    assert likelihood_trust(gm, data[:4]).prior is None


def test_items_whose_flow_does_not_arrive_are_counted():
    model = sf.ScoreModel.from_score(lambda x, t: torch.where(x > 0, math.nan, -x), SDE, shape=(1,))
    found = likelihood_trust(model, torch.tensor([[0.5], [-0.5], [-0.2]], dtype=F64))
    assert found.lost == 1
    assert found.nats.isfinite().tolist() == [False, True, True]
    with pytest.raises(ValueError, match="two of each"):
        likelihood_trust(model, torch.zeros(1, 1))


@pytest.mark.parametrize("size", [1.0, 0.5])
def test_coverage_is_that_of_the_posterior_of_a_gaussian_of_another_width(size):
    """Data N(0, 1) and a model N(0, size^2): ranks 1 to 8 of 9 hold the truth with probability 1 - u^9 - (1 - u)^9."""
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), size**2, None, SDE)
    data = torch.randn(1600, 2, generator=torch.Generator().manual_seed(6), dtype=F64) * torch.tensor([1.0, 0.8])
    found = posterior_trust(gm, data[:600], data[600:], noise=0.5, steps=30, seed=7)
    assert found.noise == pytest.approx(0.5, rel=0.05)
    share, n = size**2 / (size**2 + 0.25), 0.5
    spread = math.sqrt((1 - share) ** 2 + share**2 * n**2) / math.sqrt(share * n**2)
    wanted = []
    for ratio in (spread, 0.8 / size):
        z = torch.linspace(-8, 8, 4001, dtype=F64)
        u, weight = torch.special.ndtr(ratio * z), torch.exp(-0.5 * z**2)
        wanted.append(float(((1 - u**9 - (1 - u) ** 9) * weight).sum() / weight.sum()))
    cover = found.calibration.coverage(0.8).tolist()
    for value, right in zip(cover, wanted, strict=True):
        assert abs(value - right) < 4 * found.calibration.stderr(0.8)
    assert found.coverage().value == pytest.approx(sum(cover) / 2)
    assert found.expected() == 0.8


def test_intervals_of_a_model_that_is_too_sure_are_told():
    gm = mixture(SDE, 2)
    right = report(gm, gm.sample(300, seed=8), only=["posterior"]).chapters["posterior"]
    assert right.verdict == "good"
    sure = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), 0.25, None, SDE)
    wide = torch.randn(300, 2, generator=torch.Generator().manual_seed(9), dtype=F64)
    wrong = report(sure, wide, only=["posterior"]).chapters["posterior"]
    assert wrong.verdict == "act"
    assert wrong.advice.startswith("Widen")
    assert report(sure, only=["posterior"]).chapters["posterior"].verdict == "good"  # of what it draws itself


def test_samples_that_do_not_explain_the_measurement_are_told():
    gm = mixture(SDE, 2)
    stiff = sf.ScoreModel.from_score(lambda x, t: gm.score(x, t) * 3, SDE, shape=(2,)).double()
    found = report(stiff, gm.sample(40, seed=8), only=["posterior"]).chapters["posterior"]
    assert found.verdict == "watch"
    assert "do not explain" in found.found


def test_few_items_are_refused():
    gm = mixture(SDE, 2)
    with pytest.raises(ValueError, match="needs eight or more"):
        posterior_trust(gm, gm.sample(5))
