"""Starts near the measurement, and a network that sees it, against Gaussian posteriors in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import scorefield as sf
from oracles import name
from scorefield.coefficients import expand
from scorefield.solve import AnnealedLangevin
from scorefield.training.describe import build_model, describe_model
from speech_oracle import in_x

Y, MEAN, P = 1.3, 0.65, 0.5
"""x_0 ~ N(0, 1) seen at 0 dB as y = 1.3: the posterior is N(0.65, 0.5)."""
BOTH = [sf.VPIDM(), sf.OUVE()]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal_model(sde, mean, covariance):
    """The model of u_t for x_0 | y ~ N(mean, covariance), exact; y is taken and not needed."""
    values, basis = torch.linalg.eigh(covariance)

    def score(u, t, y=None):
        a, s = sde.alpha(t), sde.sigma(t)
        return -((u - expand(a, u) * mean) @ basis / expand(a**2, u).mul(values).add(expand(s**2, u))) @ basis.T

    return sf.ScoreModel.from_score(score, sde, shape=mean.shape)


def one(sde):
    return normal_model(sde, f64(MEAN), f64(P).reshape(1, 1))


class Impulses:
    """Standard-normal draws replaced by one unit in one row at a time: row 0 has none, row j that of call j."""

    def __init__(self, rows):
        self.rows, self.calls = rows, 0

    def __call__(self):
        self.calls += 1
        z = torch.zeros(self.rows, 1, dtype=torch.float64)
        if self.calls < self.rows:
            z[self.calls] = 1
        return z


def moments(run, draws):
    """Mean and variance of an affine sampler, exactly: run(y, noise) -> (rows, 1)."""
    noise = Impulses(draws + 1)
    x = run(torch.full((draws + 1, 1), Y, dtype=torch.float64), noise)[:, 0]
    assert noise.calls == draws
    return float(x[0]), float(torch.square(x[1:] - x[0]).sum())


@pytest.mark.parametrize(
    ("sde", "share", "again"), [(sf.VPIDM(), 0.1150, 0.0015), (sf.OUVE(), 0.3759, 0.0531)], ids=name
)
def test_offset_that_the_flow_keeps(sde, share, again):
    """a (P / C)^(1/2) of y - E[x_0 | y], C = a^2 P + sigma^2, and a^2 P / C times that after a second start."""
    model, y = one(sde), f64(Y).reshape(1, 1)
    for restart, expected in ((None, share), (model, again)):
        start = sf.near(y, sde, noise=lambda: torch.zeros(1, 1, dtype=torch.float64), model=restart)
        x = sf.sample(model, 1, sf.Dopri5(1e-9, 1e-9), x_init=start, y=y, t_min=1e-7, denoise=False)
        assert float(x - MEAN) / (Y - MEAN) == pytest.approx(expected, abs=1e-3 * expected + 6e-5)


@pytest.mark.parametrize(("sde", "share"), [(sf.VPIDM(), 0.0132), (sf.OUVE(), 0.1413)], ids=name)
def test_offset_that_the_reverse_sde_keeps(sde, share):
    """a^2 P / C, from the mean of many small steps."""
    model, y = one(sde), f64(Y).reshape(1, 1)
    ends = []
    for first in (Y, MEAN):  # the two starts share every error of the steps
        start = sf.near(f64(first).reshape(1, 1), sde, noise=lambda: torch.zeros(1, 1, dtype=torch.float64))
        rest = {"steps": 1000, "x_init": start, "t_min": 1e-4, "denoise": False, "y": y}
        ends.append(sf.sample(model, 1, sf.EulerMaruyama(), noise=lambda: torch.zeros(1, 1).double(), **rest))
    assert float(ends[0] - ends[1]) / (Y - MEAN) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("sde", BOTH, ids=name)
def test_offset_in_every_direction_of_sixty_four(sde):
    """Harmonics in noise: the shares act along the eigenvectors of the posterior's covariance."""
    draws, d = torch.Generator().manual_seed(3), 64
    comb = torch.cos(torch.outer(torch.arange(d).double(), 0.3 * torch.arange(1, 6).double()) + torch.arange(5) ** 2)
    prior = comb @ torch.diag(f64(1, 0.6, 0.4, 0.3, 0.2)) @ comb.T + 0.05 * torch.eye(d).double()
    factor = torch.randn(d, d, generator=draws, dtype=torch.float64)
    noise = factor @ factor.T / d + 0.3 * torch.eye(d).double()
    gain = prior @ torch.linalg.inv(prior + noise)
    covariance = prior - gain @ prior
    covariance = 0.5 * (covariance + covariance.T)
    y = torch.randn(1, d, generator=draws, dtype=torch.float64)
    mean = (gain @ y[0] + 0.1).clone()
    model = normal_model(sde, mean, covariance)
    start = sf.near(y, sde, noise=lambda: torch.zeros(1, d).double(), model=model)
    x = sf.sample(model, 1, sf.Dopri5(1e-9, 1e-9), x_init=start, y=y, t_min=1e-7, denoise=False)
    values, basis = torch.linalg.eigh(covariance)
    a, s = float(sde.alpha(1.0)), float(sde.sigma(1.0))
    kept = a**2 * values / (a**2 * values + s**2)
    share = kept * a * torch.sqrt(values / (a**2 * values + s**2))
    torch.testing.assert_close(x[0] - mean, basis @ (share * (basis.T @ (y[0] - mean))), rtol=0, atol=3e-5)


def test_seven_evaluations_do_what_twenty_five_did():
    """Restart and six steps of DPM-Solver: mean 0.6510, variance 0.499 of 0.65 and 0.5."""
    sde, model = sf.VPIDM(), one(sf.VPIDM())

    def run(y, noise):
        start = sf.near(y, sde, noise=noise, model=model)
        return sf.sample(model, len(y), sf.DPMSolver(order=2), steps=6, x_init=start, y=y, denoise=True)

    assert moments(run, 2) == pytest.approx((0.6510, 0.4990), abs=1e-4)


def authors_chain(base, steps, eps, corrected):
    """Reverse diffusion in x with or without a corrector, the last noise left out, started at (alpha + c) y."""

    def run(y, noise):
        sde, whole = in_x(base, y, 1.0), base()

        def score(x, t):
            a, c, s = (expand(v, x) for v in (whole.alpha(t), whole.shift(t), whole.sigma(t)))
            return -(x - a * MEAN - c * y) / (a**2 * P + s**2)

        start = float(whole.alpha(1.0) + whole.shift(1.0)) * y + float(whole.sigma(1.0)) * noise()
        grid = torch.cat([torch.linspace(1, eps, steps, dtype=torch.float64), f64(0.0)])
        solver = sf.EulerMaruyama()
        if corrected:
            solver = sf.PC(solver, AnnealedLangevin(0.5), correct_first=True)
        model, last = sf.ScoreModel.from_score(score, sde), noise.rows - 1

        def quiet():
            z = noise()
            return 0 * z if noise.calls == last else z

        return sf.sample(model, len(y), solver, grid=grid, x_init=start, noise=quiet, denoise=False)

    return moments(run, 1 + steps * (2 if corrected else 1))


def test_the_chain_of_vpidm_as_published():
    assert authors_chain(sf.VPIDM, 25, 0.04, False) == pytest.approx((0.6788, 0.4779), abs=1e-4)
    assert authors_chain(sf.VPIDM, 25, 0.04, True) == pytest.approx((0.6641, 0.4916), abs=1e-4)


def test_the_corrector_of_sgmse_mends_the_start():
    """Its chain keeps a seventh of the offset without one, as the law of the start says, and almost none with it."""
    without, corrected = authors_chain(sf.OUVE, 30, 0.03, False), authors_chain(sf.OUVE, 30, 0.03, True)
    assert (without[0] - MEAN) / (Y - MEAN) == pytest.approx(0.1413, abs=2e-3)
    assert without == pytest.approx(recursion(30, 0.03, False), abs=1e-10)
    assert corrected == pytest.approx(recursion(30, 0.03, True), abs=1e-10)
    assert abs(corrected[0] - MEAN) < 0.2 * abs(without[0] - MEAN)
    # 0.7421 and 0.4640, 0.6628 and 0.4927 are of steps of 1/30 on the same times, which are 0.97/29 apart
    assert recursion(30, 0.03, False, 1 / 30) == pytest.approx((0.7421, 0.4640), abs=6e-5)
    assert recursion(30, 0.03, True, 1 / 30) == pytest.approx((0.6628, 0.4927), abs=6e-5)


def recursion(steps, eps, corrected, h=None):
    """Mean and variance of that chain by plain numbers: OUVE(1.5, 0.05, 0.5), steps of h or up to the next time and 0."""
    log = math.log(10)
    times = [1 + i * (eps - 1) / (steps - 1) for i in range(steps)]
    mean, var = Y, variance_of_ouve(1.0)
    for i, t in enumerate(times):
        a, s2, g2 = math.exp(-1.5 * t), variance_of_ouve(t), 0.05**2 * math.exp(2 * log * t) * 2 * log
        spread, middle = a**2 * P + s2, a * MEAN + (1 - a) * Y
        if corrected:
            e = 2 * 0.5**2 * s2
            mean, var = (1 - e / spread) * mean + e / spread * middle, (1 - e / spread) ** 2 * var + 2 * e
        step = h or (t - times[i + 1] if i < steps - 1 else t)
        keep = 1 + 1.5 * step - g2 * step / spread
        mean, var = keep * mean - 1.5 * step * Y + g2 * step / spread * middle, keep**2 * var
        var += g2 * step if i < steps - 1 else 0.0
    return mean, var


def variance_of_ouve(t):
    log = math.log(10)
    return 0.05**2 * math.exp(-3 * t) * math.expm1(2 * (1.5 + log) * t) * log / (1.5 + log)


def test_steps_in_u_keep_less_of_the_start_than_those_in_x():
    """24 steps of Euler-Maruyama and a last denoising end 0.0036 from 0.65, the authors' 25 in x 0.0288."""
    sde, model = sf.VPIDM(), one(sf.VPIDM())

    def run(y, noise):
        keys = {"steps": 24, "t_min": 0.04, "x_init": sf.near(y, sde, noise=noise), "noise": noise, "y": y}
        return sf.sample(model, len(y), sf.EulerMaruyama(), denoise=True, **keys)

    def integrated(t):
        return 0.1 * t + 0.95 * t**2

    def alpha(t):
        return math.exp(-0.5 * integrated(t) - 1.5 * t)

    mean, h = alpha(1.0) * Y, 0.96 / 24
    for i in range(24):
        t = 1 - i * h
        beta, s2 = 0.1 + 1.9 * t, -math.expm1(-integrated(t))
        score = -(mean - alpha(t) * MEAN) / (alpha(t) ** 2 * P + s2)
        mean += h * ((0.5 * beta + 1.5) * mean + (beta + 3 * s2) * score)
    a, s2 = alpha(0.04), -math.expm1(-integrated(0.04))
    mean = MEAN + a * P / (a**2 * P + s2) * (mean - a * MEAN)
    assert moments(run, 25)[0] == pytest.approx(mean, abs=1e-10)
    assert mean == pytest.approx(0.64638, abs=1e-5)


@pytest.mark.parametrize("sde", BOTH, ids=name)
def test_what_is_clean_already_comes_back(sde):
    """x_0 = y: x_t = u + c y has the mean (a + c) x_0, and the sampler returns it."""
    y = f64(0.7, -1.2).reshape(1, 2)
    mean = sde.kernel(y, 0.4)[0] + sde.shift(0.4) * y
    torch.testing.assert_close(mean, (sde.alpha(0.4) + sde.shift(0.4)) * y)
    model = normal_model(sde, y[0], 1e-12 * torch.eye(2).double())
    x = sf.sample(model, 1, sf.DDIM(), steps=8, x_init=sf.near(y, sde, seed=0, model=model), y=y, denoise=True)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sde", BOTH, ids=name)
def test_the_start_has_the_law_that_is_promised(sde):
    y = torch.full((20_000, 1), 2.0, dtype=torch.float64)
    state = sf.near(y, sde, seed=1)
    s = float(sde.sigma(1.0))
    assert float(state.mean()) == pytest.approx(2 * float(sde.alpha(1.0)), abs=4 * s / 20_000**0.5)
    assert float(state.std()) == pytest.approx(s, rel=4 / 40_000**0.5)
    torch.testing.assert_close(sf.near(y[:3], sde, seed=1), state[:3])


class Seen(nn.Module):
    """Keeps what it was shown, and returns some of it."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.weight = channels, nn.Parameter(torch.ones(1, 1))

    def forward(self, x, t):
        self.shown, self.t = x, t
        return x[:, : self.channels] * self.weight


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("sde", BOTH, ids=name)
def test_a_network_is_shown_x_and_y(sde, channels):
    net = Seen(channels)
    model = sf.ScoreModel(sf.nn.Paired(net, sde), sde, "noise")
    u, y = torch.randn(2, 3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    t = torch.tensor([0.1, 0.5, 0.9])
    noise = model.noise(u, t, y=y)
    c = sde.shift(t).float().reshape(3, 1, 1, 1)
    torch.testing.assert_close(net.shown, torch.cat([u + c * y, y], 1))
    torch.testing.assert_close(net.t, t)
    torch.testing.assert_close(noise, u + c * y)


def test_rows_of_y_follow_their_samples():
    sde = sf.VPIDM()
    model = sf.ScoreModel(sf.nn.Paired(sf.nn.MLP(6), sde), sde, "noise")
    y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    rest = {"steps": 3, "y": y, "x_init": sf.near(y, sde, seed=0, model=model), "seed": 0}
    whole = sf.sample(model, 5, sf.DPMSolver(order=2), **rest)
    torch.testing.assert_close(sf.sample(model, 5, sf.DPMSolver(order=2), batch_size=2, **rest), whole)


def test_a_saved_model_is_made_again():
    sde = sf.OUVE(theta=1.2)
    model = sf.ScoreModel(sf.nn.Paired(sf.nn.MLP(6, 16), sde), sde, "data", shape=(3,))
    again = build_model(describe_model(model))
    again.load_state_dict(model.state_dict())
    u, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    torch.testing.assert_close(again.denoise(u, 0.3, y=y), model.denoise(u, 0.3, y=y), rtol=0, atol=0)


def test_training_shows_y():
    """One direction of the loss: the gradient moves the weights, and y of another sample changes the loss."""
    sde = sf.VPIDM()
    model = sf.ScoreModel(sf.nn.Paired(Seen(3), sde), sde, "noise")
    x0, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    loss = sf.dsm_loss(model, x0, y=y, seed=0)
    assert not torch.allclose(loss, sf.dsm_loss(model, x0, y=y.flip(0), seed=0))
    loss.sum().backward()
    assert model.net.net.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m, y: m.noise(y, 0.5), "y is missing"),
        (lambda m, y: m.noise(y, 0.5, y="y"), "y is str; give a tensor"),
        (lambda m, y: sf.VPIDM(eta=-1.0), "VPIDM needs eta > 0 and scale > 0"),
        (lambda m, y: m.noise(y, 0.5, y=y[:, :2]), r"y has shape \(4, 2\); expected \(4, 3\)"),
        (lambda m, y: sf.sample(m, 4, x_init=y[:, :2], y=y), r"y has shape \(4, 3\); expected \(4, 2\)"),
        (lambda m, y: sf.near(y > 0, m.sde), "y has dtype torch.bool"),
        (lambda m, y: sf.nn.Paired(nn.Identity(), sf.VP()), "needs an SDE with shift"),
        (lambda m, y: sf.ScoreModel(sf.nn.Paired(sf.nn.MLP(6), sf.VPIDM()), sf.VPIDM()), "predict='noise'"),
        (lambda m, y: sf.ScoreModel(m.net, m.sde, "noise", clock="sigma"), "no clock"),
    ],
)
def test_what_does_not_fit_is_told(call, told):
    sde = sf.VPIDM()
    model = sf.ScoreModel(sf.nn.Paired(sf.nn.MLP(6), sde), sde, "noise")
    with pytest.raises(ValueError, match=told):
        call(model, torch.ones(4, 3))
