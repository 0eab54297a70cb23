"""Song et al. 2021, eq. 29 to 34 and App. C: kernels, transitions, priors, precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import scorefield as sf
from oracles import CONTRACTIVE, PAPER, SDES, Cubic, name

TIMES = torch.linspace(0.01, 0.97, 25, dtype=torch.float64)


@pytest.mark.parametrize("sde", [*SDES, *CONTRACTIVE], ids=name)
def test_kernel_solves_its_equations(sde):
    h = 1e-6
    d_alpha = (sde.alpha(TIMES + h) - sde.alpha(TIMES - h)) / (2 * h)
    d_variance = (sde.sigma(TIMES + h) ** 2 - sde.sigma(TIMES - h) ** 2) / (2 * h)
    torch.testing.assert_close(d_alpha, sde.f(TIMES) * sde.alpha(TIMES), rtol=1e-6, atol=1e-6)
    expected = 2 * sde.f(TIMES) * sde.sigma(TIMES) ** 2 + sde.g2(TIMES)
    torch.testing.assert_close(d_variance, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", [*PAPER, *CONTRACTIVE], ids=name)
def test_closed_forms_equal_what_the_base_class_derives(sde):
    base = sf.GaussianSDE
    for method in ("f", "g2", "log_snr"):
        torch.testing.assert_close(getattr(sde, method)(TIMES), getattr(base, method)(sde, TIMES), rtol=1e-9, atol=1e-9)
    for ours, derived in zip(sde.derivatives(TIMES), base.derivatives(sde, TIMES), strict=True):
        torch.testing.assert_close(ours, derived, rtol=1e-9, atol=1e-9)
    levels = sde.log_snr(TIMES)
    torch.testing.assert_close(sde.inverse_log_snr(levels), base.inverse_log_snr(sde, levels), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [*SDES, *CONTRACTIVE], ids=name)
def test_log_snr_falls_and_is_inverted(sde):
    times = torch.linspace(1e-4, 0.999, 200, dtype=torch.float64)
    levels = sde.log_snr(times)
    assert (levels.diff() < 0).all()
    torch.testing.assert_close(sde.inverse_log_snr(levels), times, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [*SDES, *CONTRACTIVE], ids=name)
def test_transitions_compose_to_the_kernel(sde):
    x0 = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    early, late = torch.tensor([0.1, 0.2, 0.5, 0.05]), torch.tensor([0.3, 0.9, 0.50001, 0.95])
    mean, std = sde.kernel(x0, early)
    moved, extra = sde.transition(mean, early, late)
    a = sde.transition_coefficients(early, late)[0].reshape(-1, 1, 1)
    direct, direct_std = sde.kernel(x0, late)
    torch.testing.assert_close(moved, direct, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((a * std) ** 2 + extra**2, direct_std**2, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sde", [*SDES, *CONTRACTIVE], ids=name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 4)])
def test_any_shape_of_time(sde, shape):
    t = torch.full(shape, 0.25)
    for method in ("alpha", "sigma", "f", "g2", "log_snr"):
        assert getattr(sde, method)(t).shape == shape
    assert float(sde.log_snr(0.25)) == pytest.approx(float(sde.log_snr(torch.tensor(0.25))))


@pytest.mark.parametrize("t", [1e-5, 1e-4, 1e-3, 0.1])
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_float32_times_keep_their_digits(sde, t):
    """Relative error at most 1e-5 against extended precision, where float32 1 - exp is wrong by percents."""
    time = torch.tensor(t, dtype=torch.float32)
    exact = np.longdouble(time.item())
    if isinstance(sde, sf.VE):
        sigma = np.longdouble(0.01) * np.longdouble(5000) ** exact
        g2 = 2 * np.log(np.longdouble(5000)) * sigma**2
    else:
        b = np.longdouble(0.1) * exact + np.longdouble(19.9) * exact**2 / 2
        beta, grown = np.longdouble(0.1) + np.longdouble(19.9) * exact, -np.expm1(-b)
        is_vp = isinstance(sde, sf.VP)
        sigma, g2 = (np.sqrt(grown), beta) if is_vp else (grown, beta * -np.expm1(-2 * b))
    _, std = sde.kernel(torch.zeros(1, 2), time)
    assert std.dtype == torch.float32
    assert abs(float(std) / float(sigma) - 1) < 1e-5
    assert abs(float(sde.g2(time).float()) / float(g2) - 1) < 1e-5


def test_discrete_and_continuous_ladders_agree_as_in_the_paper():
    """Song et al. 2021, App. B: max |prod(1 - beta_j) - e^{-B(i/N)}| = 8.1e-4; VP variance at 1e-3 is 1.099e-4 against 1e-4."""
    i = torch.arange(1, 1001, dtype=torch.float64)
    beta = 0.1 / 1000 + (i - 1) * 19.9 / (1000 * 999)
    gap = (torch.cumprod(1 - beta, 0) - sf.VP().alpha(i / 1000) ** 2).abs().max()
    assert float(gap) == pytest.approx(8.1e-4, rel=0.01)
    assert float(sf.VP().sigma(1e-3) ** 2) == pytest.approx(1.099e-4, rel=1e-3)
    assert float(sf.VP().alpha(1.0)) == pytest.approx(6.57e-3, rel=1e-3)


def test_the_two_kernels_of_ve_differ_by_sigma_min_in_quadrature():
    paper, exact = sf.VE(), sf.VE(exact=True)
    torch.testing.assert_close(paper.sigma(TIMES) ** 2 - exact.sigma(TIMES) ** 2, torch.full_like(TIMES, 1e-4))
    assert float(exact.sigma(0.0)) == 0.0
    assert float(paper.sigma(0.0)) == pytest.approx(0.01)
    torch.testing.assert_close(paper.g2(TIMES), exact.g2(TIMES))


def test_sub_vp_variance_is_below_vp():
    assert (sf.SubVP().sigma(TIMES) < sf.VP().sigma(TIMES)).all()


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_prior_is_the_kernel_of_nothing_at_the_end(sde):
    prior = sde.prior((5, 2, 3))
    x = prior.sample(seed=0)
    reference = torch.distributions.Normal(0.0, float(sde.sigma(torch.tensor(1.0)))).log_prob(x.double())
    torch.testing.assert_close(prior.log_prob(x), reference.flatten(1).sum(1))
    assert x.shape == (5, 2, 3)
    assert torch.equal(x, prior.sample(seed=0))


def test_alpha_zero_gives_finite_coefficients():
    a, v = Cubic().transition_coefficients(0.5, 1.0)
    assert float(a) == 0.0
    assert float(v) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.VE(sigma_min=2.0, sigma_max=1.0), "sigma_min=2.0"),
        (lambda: sf.VP(beta_min=-1.0), "beta_min=-1.0"),
        (lambda: sf.VP().transition(torch.zeros(1, 1), 0.5, 0.2), "forward in time"),
        (lambda: sf.VE(sigma_max=math.inf), "sigma_max=inf"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
