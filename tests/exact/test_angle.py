"""The adaptive flow in the angle between data and noise: one equation for all SDEs, and an error estimate to rely on."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import PAPER, SDES, flow_map, gaussian, mixture, name

ANGLES = (1.5, 0.05)


def times(sde: sf.GaussianSDE) -> list[float]:
    """The times at which sigma / alpha is the tangent of each angle."""
    return [float(sde.inverse_log_snr(-2 * math.log(math.tan(angle)))) for angle in ANGLES]


def radius(sde: sf.GaussianSDE, t: float) -> float:
    return math.hypot(float(sde.alpha(t)), float(sde.sigma(t)))


def test_every_sde_takes_the_same_steps_to_the_same_point():
    ends, calls = [], []
    y = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sde in SDES:
        begin, end = times(sde)
        x = radius(sde, begin) * y
        r = sf.sample(mixture(sde), 5, sf.Dopri5(), x_init=x, t_start=begin, t_min=end, full=True)
        ends.append(r.x / radius(sde, end))
        calls.append(r.nfe.tolist())
    assert calls[1:] == calls[:-1]
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_no_sample_of_many_misses_the_tolerance(sde):
    """Over a long step an embedded estimate may vanish by accident: without a longest step this is 1e-3 for some."""
    gm = gaussian(sde, seed=1, low=0.05, high=4.0)
    x = sde.prior((400, 3)).sample(seed=5, dtype=torch.float64)
    r = sf.sample(gm, 400, sf.Dopri5(1e-5, 1e-5), x_init=x, t_min=1e-3, full=True)
    assert (r.x - flow_map(gm, x, 1.0, 1e-3)).abs().max() < 1e-4
    assert int(r.nfe.max()) <= 80


@pytest.mark.parametrize("variable", ["angle", "t"])
def test_both_variables_follow_the_closed_form(variable):
    gm = gaussian(sf.VE())
    x = sf.VE().prior((4, 3)).sample(seed=0, dtype=torch.float64)
    r = sf.sample(gm, 4, sf.Dopri5(1e-8, 1e-8, variable=variable), x_init=x, full=True)
    torch.testing.assert_close(r.x, flow_map(gm, x, 1.0, gm.sde.t_min), rtol=1e-6, atol=1e-6)
    by_time = sf.sample(gm, 4, sf.Dopri5(1e-8, 1e-8, variable="t"), x_init=x, full=True)
    assert variable == "t" or int(r.nfe.max()) < 0.7 * int(by_time.nfe.max())


def test_looser_tolerances_may_take_longer_steps():
    gm = gaussian(sf.VP())
    calls = [int(sf.sample(gm, 2, sf.Dopri5(tol, tol), seed=0, full=True).nfe.max()) for tol in (1e-2, 1e-5, 1e-9)]
    assert calls[0] < 30 < calls[1] < 80 < calls[2]


@pytest.mark.parametrize("variable", ["angle", "t"])
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_the_recorded_path_lies_on_the_flow(sde, variable):
    gm = gaussian(sde)
    x = sde.prior((3, 3)).sample(seed=0, dtype=torch.float64)
    r = sf.sample(gm, 3, sf.Dopri5(1e-9, 1e-9, variable=variable), x_init=x, full=True)
    torch.testing.assert_close(r.path[0], x)
    torch.testing.assert_close(r.path[-1], r.x)
    assert (r.times.diff() < 0).all()
    for state, t in zip(r.path, r.times.tolist(), strict=True):
        # cubic interpolation: of a lower order than the steps
        torch.testing.assert_close(state, flow_map(gm, x, 1.0, t), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variable", ["angle", "t"])
def test_gradients_through_adaptive_steps_are_those_of_the_flow(variable):
    """Of a Gaussian the flow is linear: d(sum of x_u)/dx_t = 1^T C_u^{1/2} C_t^{-1/2}."""
    gm = gaussian(sf.VP())
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    end = sf.sample(gm, 2, sf.Dopri5(1e-8, 1e-8, variable=variable), x_init=x, grad=True)
    (slope,) = torch.autograd.grad(end.sum(), x)
    (exact,) = torch.autograd.grad(flow_map(gm, x, 1.0, 1e-3).sum(), x)
    torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-6)


def test_gradients_are_finite_where_the_error_estimate_is_zero():
    """Data N(0, I) under VP does not move at all."""
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0, None, sf.VP())
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sf.sample(gm, 1, sf.Dopri5(), x_init=x, grad=True).sum(), x)
    torch.testing.assert_close(slope, torch.ones_like(slope))


def test_a_start_that_is_not_finite_is_given_up_at_once():
    calls = []
    model = sf.ScoreModel.from_score(lambda x, t: (calls.append(1), -x)[1], sf.VP(), (2,))
    with pytest.warns(RuntimeWarning, match="1 of 2 samples left the finite numbers"):
        r = sf.sample(model, 2, sf.Dopri5(), x_init=torch.tensor([[math.nan, 0.0], [0.0, 1.0]]), full=True)
    assert r.status.tolist() == [3, 0]
    assert int(r.nfe[0]) < 10
    torch.testing.assert_close(r.x[1], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.Dopri5(-1.0), "tolerances are not negative"),
        (lambda: sf.solve.Tsit5(0.0, 0.0), "not both 0"),
        (lambda: sf.solve.Bosh3(variable="sigma"), "choose angle or t"),
    ],
)
def test_impossible_tolerances_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
