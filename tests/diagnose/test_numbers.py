"""Closed forms behind the chapters: a bound on the gap, short diffusion, Heun's rule as a difference of denoisers."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from map_oracles import EDM
from oracles import moments
from scorefield.diagnose import fit_prior
from scorefield.solve.integrate import Field

SDE = sf.VP()
F64 = torch.float64
LINE = sf.GaussianMixture(torch.ones(1, 1, dtype=F64), 0.25, None, SDE)
"""N(1, 1/4)."""
NODES = (torch.arange(4000, dtype=F64) + 0.5) / 4000


@pytest.mark.parametrize(
    ("delta", "gap", "bound"),
    [
        (0.2, 0.47911, 0.49977),
        (0.1, 0.30786, 0.32564),
        (0.05, 0.17564, 0.18731),
        (-0.1, 0.53485, 0.58798),
        (-0.2, 1.44153, 1.62619),
    ],
)
def test_the_gap_between_flow_and_sde_keeps_groenwalls_bound(delta, gap, bound):
    """W2 <= integral of exp(int_0^t L) g^2 / 2 (E|grad log p_SDE - s|^2)^(1/2), L the one-sided constant of the flow."""
    model, rate = sf.ScoreModel.from_score(lambda x, t: -(1 + delta) * x, SDE, shape=(1,)), 1 + 2 * delta
    b = -2 * torch.log(SDE.alpha(NODES))
    variance = 1 / rate + (1 - 1 / rate) * torch.exp(-rate * (-2 * math.log(float(SDE.alpha(1.0))) - b))
    x = variance.sqrt()[:, None]
    off = (-x / variance[:, None] - model.score(x, NODES)).abs()[:, 0]  # linear in x, so that one point is enough
    found = float((torch.exp(-0.5 * delta * b) * 0.5 * SDE.g2(NODES) * off).mean())
    assert found == pytest.approx(bound, abs=1e-4)
    assert gap < found < 1.15 * gap


def after_sde(start: float, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of Euler-Maruyama's output from N(0, 1) at `start`, by its own affine kernel."""
    m, v, at = 0.0, 1.0, torch.tensor([[0.0], [1.0]], dtype=F64)
    times = torch.linspace(start, 1e-3, steps + 1, dtype=F64)
    for t, s in zip(times[:-1], times[1:], strict=True):
        mean, std = sf.EulerMaruyama().kernel(Field.of(LINE, {}, 2), at, t, s)
        slope = float(mean[1] - mean[0])
        m, v = float(mean[0]) + slope * m, slope**2 * v + float(std) ** 2
    return m, math.sqrt(v)


def kl_and_w2(m: float, std: float, data: sf.GaussianMixture = LINE) -> tuple[float, float]:
    (mean,), ((cov,),) = (x.tolist() for x in moments(data, 1e-3))
    return 0.5 * (cov / std**2 + (mean - m) ** 2 / std**2 - 1 + math.log(std**2 / cov)), math.hypot(
        mean - m, math.sqrt(cov) - std
    )


@pytest.mark.parametrize(
    ("start", "flow_kl", "flow_w2", "sde_kl", "sde_w2"),
    [
        (0.5, 0.04045, 0.1458, 8.83e-4, 0.0210),
        (0.35, 0.1561, 0.3081, 0.01624, 0.0910),
        (0.25, 0.3149, 0.4855, 0.0857, 0.2183),
    ],
)
def test_the_flow_keeps_the_divergence_of_a_short_start_and_the_sde_contracts_it(
    start, flow_kl, flow_w2, sde_kl, sde_w2
):
    ends = sf.sample(
        LINE,
        2,
        sf.Dopri5(1e-9, 1e-9),
        x_init=torch.tensor([[0.0], [1.0]], dtype=F64),
        t_start=start,
        t_min=1e-3,
        denoise=False,
    )
    kl, w2 = kl_and_w2(float(ends[0]), float(ends[1] - ends[0]))
    assert kl == pytest.approx(flow_kl, rel=1e-3)
    assert w2 == pytest.approx(flow_w2, abs=1e-4)
    coarse, fine = (after_sde(start, n) for n in (400, 800))
    kl, w2 = kl_and_w2(*(2 * b - a for a, b in zip(coarse, fine, strict=True)))  # without the error of first order
    assert kl == pytest.approx(sde_kl, rel=0.01)
    assert w2 == pytest.approx(sde_w2, rel=0.01)


@pytest.mark.parametrize(("start", "wanted"), [(1.0, 2.6e-10), (0.5, 9.2e-4), (0.35, 0.0134), (0.25, 0.0530)])
def test_the_flow_of_data_without_a_mean_keeps_the_divergence_of_its_variance(start, wanted):
    centred = sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), 0.25, None, SDE)
    points = torch.tensor([[0.0], [1.0]], dtype=F64)
    at = {"x_init": points, "t_start": start, "t_min": 1e-3, "denoise": False}
    ends = sf.sample(centred, 2, sf.Dopri5(1e-11, 1e-11), **at)
    kl, _ = kl_and_w2(float(ends[0]), float(ends[1] - ends[0]), centred)
    assert kl == pytest.approx(wanted, rel=0.02)  # of two or three digits


@pytest.mark.parametrize(("t", "constant"), [(0.25, 0.6013), (0.5, 0.5116), (0.75, 0.5005), (1.0, 0.50001)])
def test_the_divergence_from_the_prior_decays_with_what_is_kept_of_the_mean(t, constant):
    mean, cov = moments(LINE, t)
    kl = float(0.5 * (cov[0, 0] + mean[0] ** 2 - 1 - torch.log(cov[0, 0])))
    assert kl / float(SDE.alpha(t)) ** 2 == pytest.approx(constant, rel=2e-4)


def test_a_fitted_prior_makes_a_third_of_the_steps_do():
    """Four modes at radius 0.9, variance 0.02, weights 0.4 to 0.1; sliced W1 of the flow's samples."""

    def seeded(k):  # one generator of all samples is cheaper than a stream for each
        return torch.Generator().manual_seed(k)

    centres = 0.9 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)
    gm = sf.GaussianMixture(centres, 0.02, [0.4, 0.3, 0.2, 0.1], SDE)
    data, n = gm.sample(16_000, seed=seeded(1)), 16_000
    prior = fit_prior(SDE, gm.sample(16_000, seed=seeded(2)), 0.3)
    nominal = sf.prior.Prior((n, 2), 1.0)
    solver = sf.Heun()
    fitted = sliced_w1(sf.sample(gm, n, solver, steps=10, seed=seeded(4), t_start=0.3, prior=prior), data)
    plain = sliced_w1(sf.sample(gm, n, solver, steps=10, seed=seeded(5), t_start=0.3, prior=nominal), data)
    assert fitted < 0.0102 + 0.005  # from T = 1 with 30 steps it is 0.0102, which chance alone explains
    assert plain > 3 * fitted


def sliced_w1(x, y, directions=24):
    angle = math.pi * (torch.arange(directions, dtype=F64) + 0.5) / directions
    along = torch.stack([torch.cos(angle), torch.sin(angle)])
    return float(((x @ along).sort(0).values - (y @ along).sort(0).values).abs().mean())


def test_heuns_rule_is_a_difference_of_denoisers():
    """x' = x + h d - h / (2 sigma') (D(x + h d, sigma') - D(x, sigma)): the curvature is -D' / sigma."""
    cloud = sf.Empirical(torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=F64), EDM())
    x = 5 * torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    s, r = 5.0, 3.0
    d, h = cloud.denoise(x, s), r - s
    euler = x + h * (x - d) / s
    wanted = euler - h / (2 * r) * (cloud.denoise(euler, r) - d)
    grid = torch.tensor([s, r], dtype=F64)
    found = sf.sample(cloud, 16, sf.Heun(), grid=grid, x_init=x, denoise=False, t_start=s)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_the_midpoint_rule_is_a_difference_of_denoisers():
    """x' = x + h d - h / sigma_m (D(x_m, sigma_m) - D(x, sigma)), sigma_m = (sigma sigma')^(1/2), by one evaluation there."""
    cloud = sf.Empirical(torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=F64), EDM())
    x = 5 * torch.randn(16, 8, generator=torch.Generator().manual_seed(1), dtype=F64)
    s, r = 5.0, 3.0
    m, h = math.sqrt(s * r), r - s
    slope = cloud.velocity(x, s)
    middle = x + (m - s) * slope
    wanted = x + h * cloud.velocity(middle, m)
    # (x_m - D_m) / sigma_m = (x + (sigma_m - sigma) d - D_m) / sigma_m, and x = D + sigma d
    found = x + h * slope - h / m * (cloud.denoise(middle, m) - cloud.denoise(x, s))
    assert torch.allclose(found, wanted, atol=1e-12)
