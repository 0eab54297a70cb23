"""Backward SDEs against closed forms and the fixed point of their own scheme."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import scorefield as sf
from scorefield import bsde
from scorefield.errors import ScorefieldWarning

F64 = torch.float64


def linear(t, y, z):
    """F = a Y + b Z, a = .5, b = -.4."""
    return 0.5 * y - 0.4 * z[:, :, 0]


def target(w):
    return 0.8 + 0.6 * w


def test_regression_is_the_fixed_point_of_the_explicit_scheme():
    """N = 20: Y_0 = .92917114 and z_0 = .970652, not the continuum's .92328391 and .98923276."""
    found = bsde.solve(linear, target, steps=20, paths=200)
    assert float(found.y0) == pytest.approx(0.92917114, abs=2e-8)
    assert float(found.z0) == pytest.approx(0.6 / 0.975**19, abs=1e-9)
    assert found.miss < 1e-10
    fine = bsde.solve(linear, target, steps=400, paths=200)
    assert float(fine.y0) == pytest.approx(0.92328391, rel=1e-3)


def test_the_deep_solver_comes_to_the_same():
    found = bsde.solve(linear, target, steps=20, paths=128, method="deep", train_steps=250, progress=False)
    assert float(found.y0) == pytest.approx(0.92917, rel=5e-3)
    assert float(found.z0) == pytest.approx(0.97065, rel=0.1)
    assert found.miss < 0.05


def shooting(kind, largest, **options):
    """The deep solver and the scheme's fixed point, for a fixed target under VE(.01, largest) in 20 steps."""
    model = sf.GaussianMixture(torch.tensor([[0.5], [-0.3]], dtype=F64), 0.3, None, sf.VE(0.01, largest))
    driver = bsde.score_driver(model, kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the target is the same on all paths")
        exact = bsde.solve(driver, constant, steps=20, paths=2, degree=0)
        found = bsde.solve(driver, constant, steps=20, paths=16, method="deep", lr=0.05, progress=False, **options)
    return float(found.y0), float(exact.y0), found.miss


def test_the_deep_solver_of_a_flow_comes_to_the_scheme():
    y0, exact, miss = shooting("flow", 1.0, train_steps=120)
    assert y0 == pytest.approx(exact, abs=0.01)
    assert miss < 0.01
    assert exact > 1.8  # it began at 1.3


def test_the_deep_solver_begins_without_a_control():
    found = bsde.solve(linear, target, steps=5, paths=4, method="deep", train_steps=1, lr=1e-6, progress=False)
    assert float(found.z.abs().max()) < 1e-4  # a step of Adam moves each weight by its rate


def test_a_start_that_the_end_forgets_is_warned_of():
    """The reverse driver contracts by about (c + s_0^2) / (c + s_tau^2), .03: a small miss, and a start that is far off."""
    with pytest.warns(ScorefieldWarning, match=r"the end moves by 0\.0\d+ of what the start does"):
        y0, exact, miss = shooting("reverse", 3.0, train_steps=60)
    assert miss < 0.1 * abs(y0 - exact)


def gaussian(sde) -> sf.GaussianMixture:
    return sf.GaussianMixture(torch.tensor([[0.5]], dtype=F64), 1.0, None, sde)


@pytest.mark.parametrize(("kind", "power"), [("flow", 0.5), ("reverse", 1.0)])
def test_a_fixed_target_is_an_ordinary_differential_equation(kind, power):
    """VE(.01, 10), data N(.5, 1), xi = 1.3: m + (xi - m) ((c + s_tau^2) / (c + s_0^2))^k; the flow's is the code."""
    sde = sf.VE(0.01, 10.0)
    model = gaussian(sde)
    with pytest.warns(ScorefieldWarning, match=r"sf\.encode"):
        coarse, fine = (
            bsde.solve(bsde.score_driver(model, kind), constant, steps=n, paths=2, degree=0)
            for n in ((200, 400) if kind == "flow" else (300, 600))
        )
    found = 2 * fine.y0 - coarse.y0  # the scheme is of first order
    ratio = (1 + float(sde.sigma(1.0)) ** 2) / (1 + float(sde.sigma(0.0)) ** 2)
    exact = 0.5 + 0.8 * ratio**power
    assert exact == pytest.approx(8.5394985 if kind == "flow" else 81.2919208, rel=1e-6)
    assert float(found) == pytest.approx(exact, rel=0.01)
    assert float(fine.z.abs().max()) < 1e-8
    if kind == "flow":
        code = sf.encode(model, torch.tensor([[1.3]], dtype=F64))
        assert float(found) == pytest.approx(float(code), rel=0.01)


@pytest.mark.parametrize(("kind", "known"), [("flow", 1.60325988), ("reverse", 486.9323335)])
def test_a_fixed_target_under_vp(kind, known):
    """VP(.1, 20), data N(.5, .25), xi = 1.3: the flow's start is the code, and the reverse one far out."""
    sde = sf.VP()
    model = sf.GaussianMixture(torch.tensor([[0.5]], dtype=F64), 0.25, None, sde)
    with pytest.warns(ScorefieldWarning, match=r"sf\.encode"):
        coarse, fine = (
            float(bsde.solve(bsde.score_driver(model, kind), constant, steps=n, paths=2, degree=0).y0)
            for n in ((150, 300) if kind == "flow" else (300, 600))
        )
    a, s = (float(v(torch.ones((), dtype=F64))) for v in (sde.alpha, sde.sigma))
    start, end = 0.25, a**2 * 0.25 + s**2
    exact = a * 0.5 + (0.8 * math.sqrt(end / start) if kind == "flow" else 0.8 / a * end / start)
    assert exact == pytest.approx(known, rel=1e-7)
    assert 2 * fine - coarse == pytest.approx(exact, rel=0.01)  # the scheme is of first order
    if kind == "flow":
        assert float(sf.encode(model, torch.tensor([[1.3]], dtype=F64))) == pytest.approx(exact, rel=1e-3)


def constant(w):
    return torch.full_like(w, 1.3)


def test_the_control_of_the_reverse_driver():
    """Z_0 = s (c + s_tau^2) / (c + s_0^2) = 50.49495 under VE(.01, 10), ten times that of the flow."""
    model = gaussian(sf.VE(0.01, 10.0))
    coarse, fine = (
        bsde.solve(bsde.score_driver(model, "reverse"), lambda w: 0.5 + 0.5 * w, steps=n, paths=20, degree=1)
        for n in (200, 400)
    )
    assert float(fine.y0) == pytest.approx(0.5, abs=1e-6)
    assert float(2 * fine.z0 - coarse.z0) == pytest.approx(50.49495, rel=0.01)


def test_least_squares_is_near_the_continuum():
    """N = 50, 20,000 paths: Y_0 within 1.1 % and Z within 4 % of e^{aT}(mu + sigma b T) and sigma e^{a(T - t)}."""
    found = bsde.solve(linear, target, steps=50, paths=20_000, degree=1)
    assert float(found.y0) == pytest.approx(0.92328391, rel=0.011)
    exact = 0.6 * torch.exp(0.5 * (1 - found.times))
    assert float((found.z.mean(1)[:, 0, 0] / exact - 1).abs().max()) < 0.04


def test_the_log_density_along_the_reverse_process():
    """d log p(X) = (g^2 |s|^2 / 2 + div f) dt + g s.dW in reverse time: its error is a root of h, of mean zero."""
    cov = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.4]]], dtype=F64)
    model = sf.GaussianMixture(torch.tensor([[-1.2, -0.3], [0.8, 0.5]], dtype=F64), cov, [0.3, 0.7], sf.VP())
    draws, sizes, n = torch.Generator().manual_seed(0), [], 400
    for steps in (100, 400):
        times = torch.linspace(1, 0.02, steps + 1, dtype=F64)
        x = model.sample(n, t=1.0, seed=1)
        log_p = model.log_prob(x, 1.0)
        for t, s in zip(times[:-1], times[1:], strict=True):
            h, g2, score = float(t - s), float(sf.VP().g2(t)), model.score(x, t)
            dw = math.sqrt(h) * torch.randn(x.shape, generator=draws, dtype=F64)
            div = 2 * float(sf.VP().f(t))
            log_p = log_p + h * (0.5 * g2 * score.square().sum(1) + div) + math.sqrt(g2) * (score * dw).sum(1)
            x = x - h * (float(sf.VP().f(t)) * x - g2 * score) + math.sqrt(g2) * dw
        gap = log_p - model.log_prob(x, float(times[-1]))
        sizes.append(float(gap.square().mean().sqrt()))
        assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(n) + 80 / steps
    assert 1.5 < sizes[0] / sizes[1] < 3.2  # strong order 1/2: 2


def test_a_random_target_has_a_control():
    """xi = m + s W / sqrt(tau): Y_0 = m and Z_0 = s ((c + s_tau^2) / (c + s_0^2))^k by the flow's driver, 5.024687."""
    model = gaussian(sf.VE(0.01, 10.0))
    coarse, fine = (
        bsde.solve(bsde.score_driver(model), lambda w: 0.5 + 0.5 * w, steps=n, paths=20, degree=1) for n in (200, 400)
    )
    assert float(fine.y0) == pytest.approx(0.5, abs=1e-6)
    assert float(2 * fine.z0 - coarse.z0) == pytest.approx(5.024687, rel=0.01)
    assert float(fine.z[-1].mean()) == pytest.approx(0.5, rel=0.02)


def test_a_lipschitz_network_keeps_its_bound():
    torch.manual_seed(0)
    net = bsde.LipschitzMLP(3, 2, width=16, bound=2.5).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(5)
    x = torch.randn(50, 3, dtype=F64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: net(v[None])[0]))(x)
    assert float(torch.linalg.matrix_norm(jacobian, ord=2).max()) <= 2.5 * (1 + 1e-9)
    assert net(x).shape == (50, 2)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="steps=0"):
        bsde.solve(linear, target, steps=0)
    with pytest.raises(ValueError, match="terminal returned shape"):
        bsde.solve(linear, lambda w: w[:, 0])
    with pytest.raises(ValueError, match="finite numbers"):
        bsde.solve(linear, lambda w: w * math.nan)
    with pytest.raises(ValueError, match="driver returned shape"):
        bsde.solve(lambda t, y, z: z, target)
    with pytest.raises(ValueError, match="kind='x'"):
        bsde.score_driver(gaussian(sf.VP()), "x")
    with pytest.raises(ValueError, match="even width"):
        bsde.LipschitzMLP(2, 2, width=3)
