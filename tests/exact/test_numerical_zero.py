"""Numerical zero is zero: a schedule does not depend on the last bit of its end."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import Cubic, gaussian, name
from scorefield.coefficients import derivative
from scorefield.likelihood import elbo
from scorefield.times import ImportanceTimes, LogNormalTimes, LogSNRTimes


class Cosine(sf.GaussianSDE):
    """alpha(1) = 6e-17 as it is computed, and 0 on paper (Nichol & Dhariwal 2021, without their shift)."""

    def alpha(self, t):
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * t)


class ExactCosine(Cosine):
    """The same with alpha(1) = 0 to the last bit."""

    def alpha(self, t):
        return torch.sin(0.5 * math.pi * (1 - t))


class Root(Cosine):
    """By way of the variance."""

    def alpha(self, t):
        return torch.sqrt(0.5 + 0.5 * torch.cos(math.pi * t))


class ShiftedCosine(sf.GaussianSDE):
    """Nichol & Dhariwal 2021, eq. 17."""

    def alpha(self, t):
        return torch.cos((t + 0.008) / 1.008 * 0.5 * math.pi) / math.cos(0.008 / 1.008 * 0.5 * math.pi)

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t) ** 2)


class Sigmoid(sf.GaussianSDE):
    """alpha^2 falls along a sigmoid from 1 to 0 (Jabri et al. 2022)."""

    def alpha(self, t):
        low, high = torch.sigmoid(torch.tensor([-3.0, 3.0], dtype=torch.float64))
        return torch.sqrt(((torch.sigmoid(3 - 6 * t) - low) / (high - low)).abs())

    def sigma(self, t):
        return torch.sqrt((1 - self.alpha(t) ** 2).clamp_min(0.0))


class Polynomial(sf.GaussianSDE):
    """(1 - t)^2 / 3 multiplied out: three roundings at t = 1."""

    def alpha(self, t):
        return (1 / 3 - 2 * t / 3 + t**2 / 3) * 3

    def sigma(self, t):
        return t


class Backwards(sf.GaussianSDE):
    """A sigma that is 1e-16 where it should be 0."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return torch.cos(0.5 * math.pi * (1 - t))


class Fading(sf.GaussianSDE):
    """alpha(40) = 4e-18 is small, and no rounding."""

    T = 40.0

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * t))


ENDING = [Cosine(), ExactCosine(), Root(), ShiftedCosine(), Sigmoid(), Polynomial(), Cubic()]


@pytest.mark.parametrize("sde", ENDING, ids=name)
def test_an_alpha_that_is_zero_but_for_rounding_is_zero(sde):
    last = torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert float(sde.alpha(1.0)) == 0.0
    assert sde.alpha(last)[1] == 0.0
    assert sde.alpha(last)[0] > 0.1
    assert float(sde.log_snr(1.0)) == -math.inf
    assert float(sde.f(1.0)) == -math.inf
    a, v = sde.transition_coefficients(0.5, 1.0)
    assert (float(a), float(v)) == pytest.approx((0.0, float(sde.sigma(1.0)) ** 2), abs=1e-12)


def test_the_slope_of_what_vanishes_is_kept():
    assert float(Cosine().derivatives(1.0)[0]) == pytest.approx(-0.5 * math.pi)
    assert float(Backwards().sigma(0.0)) == 0.0
    assert float(Backwards().derivatives(0.0)[1]) == pytest.approx(0.5 * math.pi)


def test_a_branch_that_is_left_out_has_no_say_in_the_slope():
    """Reverse mode alone has 0 * inf at t = 0."""
    t = torch.tensor([0.0, 0.5], dtype=torch.float64)
    slope = derivative(lambda u: torch.where(u > 0, torch.sin(u) / u, 1.0), t)
    exact = [0.0, math.cos(0.5) / 0.5 - math.sin(0.5) / 0.25]
    torch.testing.assert_close(slope, torch.tensor(exact, dtype=torch.float64), rtol=1e-14, atol=1e-14)


def test_what_is_small_but_no_rounding_stays():
    sde = Fading()
    assert float(sde.alpha(40.0)) == pytest.approx(math.exp(-40), rel=1e-12)
    assert float(sde.f(40.0)) == pytest.approx(-1.0)
    tiny = sf.VE(sigma_min=1e-9, sigma_max=1.0)
    assert float(tiny.sigma(0.0)) == pytest.approx(1e-9, rel=1e-12)


@pytest.mark.parametrize("proposal", [LogSNRTimes(), ImportanceTimes(), LogNormalTimes()], ids=name)
def test_training_times_do_not_depend_on_the_last_bit(proposal):
    """The two cosines are one schedule; without the rule two thirds of the log-SNR times lie within 1e-3 of the end."""
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    (t, w), (exact_t, exact_w) = proposal(u, Cosine()), proposal(u, ExactCosine())
    torch.testing.assert_close(t, exact_t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(w, exact_w, rtol=1e-6, atol=1e-9)
    assert float((t > 0.999).double().mean()) < 0.01


def test_the_error_bar_of_the_elbo_does_not_depend_on_the_last_bit():
    x = gaussian(Cosine()).sample(20, seed=0)
    bound, exact = (elbo(gaussian(sde), x, 64, seed=1) for sde in (Cosine(), ExactCosine()))
    torch.testing.assert_close(bound.nats, exact.nats, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bound.stderr, exact.stderr, rtol=1e-4, atol=1e-6)


class Math(sf.GaussianSDE):
    """Functions of the module math, which take no tensors."""

    def alpha(self, t):
        return math.cos(t)

    def sigma(self, t):
        return t


@pytest.mark.parametrize("t", [0.5, torch.tensor([0.5]), torch.tensor([0.2, 0.4])], ids=["float", "one", "two"])
@pytest.mark.parametrize("method", ["alpha", "f", "log_snr"])
def test_functions_of_math_are_refused_in_one_line(method, t):
    with pytest.raises(ValueError, match=r"Math.alpha\(t\): t is a tensor; use functions of torch"):
        getattr(Math(), method)(t)
