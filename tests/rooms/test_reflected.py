"""Data with walls: kernel, score, folding, likelihood and codes against cosine series, and recordings of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.reflected import CosineSeries, ReflectedVE, cube_to_simplex, simplex_to_cube

F64 = torch.float64
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "34_reflected.safetensors"
recorded = pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")
WIDE = ReflectedVE(0.01, 5.0)
SERIES = CosineSeries((0.8, 0.25, 0.1), WIDE)


def time_of(sigma: float, sde: ReflectedVE = WIDE) -> float:
    return math.log(sigma / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)


@pytest.mark.parametrize(
    ("sigma", "x0", "x", "score"),
    [
        (0.05, 0.1, 0.04, 20.8667421763),
        (0.1, 0.05, 0.02, -1.5016600269),
        (0.2, 0.3, 0.9, -13.9740931526),
        (0.3, 0.9, 0.95, 0.4938905333),
        (0.5, 0.2, 0.6, -1.6355150190),
        (1.0, 0.2, 0.6, -0.0348940123),
    ],
)
def test_kernel_score_by_numbers(sigma, x0, x, score):
    start, end = torch.tensor([[x0]], dtype=F64), torch.tensor([[x]], dtype=F64)
    assert float(WIDE.kernel_score(end, start, time_of(sigma))) == pytest.approx(score, abs=1e-9)


def test_both_sums_agree_where_they_meet():
    x = torch.rand(200, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x0 = torch.rand(200, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    below, above = (WIDE.kernel_score(x, x0, time_of(0.5 * (1 + e))) for e in (-1e-12, 1e-12))
    assert torch.allclose(below, above, atol=1e-9)


def test_each_sample_its_own_time_and_box():
    """Affine boxes scale the score; entries without walls have the Gaussian one."""
    boxed = ReflectedVE(0.03, 6.0, low=(-1.0, -math.inf), high=(2.0, math.inf))
    x = torch.tensor([[0.5, 3.0], [1.9, -4.0]], dtype=F64)
    x0 = torch.tensor([[0.2, 1.0], [1.5, 0.0]], dtype=F64)
    t = torch.tensor([0.3, 0.7], dtype=F64)
    found = boxed.kernel_score(x, x0, t)
    unit = ReflectedVE(0.01, 2.0)
    inside = unit.kernel_score((x[:, :1] + 1) / 3, (x0[:, :1] + 1) / 3, t) / 3
    assert torch.allclose(found[:, :1], inside, atol=1e-12)
    sigma = boxed.sigma(t)
    assert torch.allclose(found[:, 1], (x0[:, 1] - x[:, 1]) / sigma**2, atol=1e-12)
    moved = boxed.perturb(x0, t, 100 * torch.ones_like(x0))
    assert bool(((moved[:, 0] >= -1) & (moved[:, 0] <= 2)).all())
    assert torch.allclose(moved[:, 1], x0[:, 1] + 100 * sigma)
    draw = boxed.prior((4000, 2)).sample(seed=0)
    assert float(draw[:, 0].min()) >= -1
    assert float(draw[:, 0].max()) <= 2
    assert float(draw[:, 0].mean()) == pytest.approx(0.5, abs=4 * 3 / math.sqrt(12 * 4000))
    assert float(draw[:, 1].std()) == pytest.approx(6.0, rel=4 / math.sqrt(8000))


def test_the_series_is_the_law_of_folded_noise():
    """E[cos n pi x_t] = a_n / 2 exp(-n^2 pi^2 sigma^2 / 2) by folded draws from the inverse distribution function."""
    n = 20_000
    u = torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    low, high = torch.zeros_like(u), torch.ones_like(u)
    for _ in range(50):
        middle = 0.5 * (low + high)
        below = SERIES.cdf(middle) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    t = time_of(0.2)
    x = WIDE.perturb(low, t, torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(1)))
    for k, a in enumerate(SERIES.a, 1):
        c = torch.cos(k * math.pi * x)
        expected = 0.5 * a * math.exp(-0.5 * (k * math.pi * 0.2) ** 2)
        assert abs(float(c.mean()) - expected) < 4 * float(c.std()) / math.sqrt(n)


def model(sde: ReflectedVE = WIDE) -> sf.ScoreModel:
    series = CosineSeries(SERIES.a, sde)
    return sf.ScoreModel.from_score(lambda x, t: series.score(x, t), sde, shape=(1,))


def test_likelihood_and_codes_of_the_series():
    x = torch.tensor([[0.0], [0.03], [0.2], [0.5], [0.77], [0.99], [1.0]], dtype=F64)
    right = [0.76484858, 0.75928497, 0.52663877, -0.28702488, -0.71859223, -1.04785568, -1.04883723]
    assert SERIES.log_prob(x, 1e-5).tolist() == pytest.approx(right, abs=1e-7)
    found = sf.log_prob(model(), x, "exact", solver=sf.Dopri5(1e-7, 1e-7))
    assert found.nats.tolist() == pytest.approx(right, abs=2e-5)
    z = sf.encode(model(), x[1:6])
    assert z.flatten().tolist() == pytest.approx([0.064341, 0.397417, 0.743959, 0.907658, 0.996495], abs=2e-5)
    assert torch.allclose(sf.decode(model(), z), x[1:6], atol=1e-4)


class Leaky(torch.nn.Module):
    """A score that pushes through both walls, as that of an imperfect network does."""

    def forward(self, x, t):
        return 3 * (0.4 - x)


@pytest.mark.parametrize(
    "solver", [sf.Dopri5(1e-8, 1e-8), sf.solve.Tsit5(1e-8, 1e-8), sf.solve.RK4(), sf.Heun(), sf.EulerMaruyama()]
)
def test_no_solver_leaves_the_box_under_a_network_that_would(solver):
    leaky = sf.ScoreModel(Leaky(), ReflectedVE(0.05, 2.0), "noise", shape=(2,))
    steps = None if solver.adapts else 400
    r = sf.sample(leaky, 50, solver, seed=0, steps=steps, full=True, progress=False)
    assert ((r.x >= 0) & (r.x <= 1)).all()
    assert (r.status == 0).all()
    assert r.path is None or ((r.path >= 0) & (r.path <= 1)).all()


def test_likelihood_and_codes_under_a_network_that_would_leave_the_box():
    """Fixed steps fold as they go, adaptive ones at the end: the same flow, and codes that come back."""
    leaky = sf.ScoreModel(Leaky(), ReflectedVE(0.05, 2.0), "noise", shape=(1,)).double()
    x = torch.linspace(0.02, 0.98, 7, dtype=F64)[:, None]
    one = sf.log_prob(leaky, x, "exact", solver=sf.Dopri5(1e-6, 1e-6))
    other = sf.log_prob(leaky, x, "exact", solver=sf.solve.RK4(), steps=300)
    assert torch.isfinite(one.nats).all()
    assert float(one.nats.abs().max()) > 0.1
    torch.testing.assert_close(one.nats, other.nats, rtol=0, atol=2e-2)
    z = sf.encode(leaky, x, solver=sf.Dopri5(1e-6, 1e-6))
    assert ((z >= 0) & (z <= 1)).all()


def wasserstein(x: torch.Tensor) -> float:
    """W1 to the series, by its distribution function on the sorted sample."""
    grid = torch.linspace(0, 1, 2001, dtype=F64)
    empirical = torch.searchsorted(x.flatten().sort().values, grid, right=True).double() / x.numel()
    return float(torch.trapezoid((empirical - SERIES.cdf(grid[:, None])[:, 0]).abs(), grid))


@pytest.mark.parametrize(("steps", "bar"), [(20, 0.0218), (50, 0.0082)])
def test_euler_maruyama_folds_by_itself(steps, bar):
    """Nobody has to remember the fold: the process asks for it, and the error is at most 1.5 times the published one."""
    x = sf.sample(model(), 20_000, sf.EulerMaruyama(), steps=steps, seed=0, t_min=1e-3, progress=False)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    assert wasserstein(x.double()) < 1.5 * bar + 4 * 0.3 / math.sqrt(20_000)


def test_tweedie_is_refused_by_name():
    for call in (model().denoise, model().noise):
        with pytest.raises(ValueError, match="ReflectedVE"):
            call(torch.rand(2, 1), 0.5)
    for solver in (sf.DDIM(), sf.DPMSolver(), sf.Ancestral()):
        with pytest.raises(ValueError, match="ReflectedVE"):
            sf.sample(model(), 2, solver, steps=3, seed=0)


def test_denoising_loss_is_least_at_the_score():
    """dsm_loss asks the process for its noise and its kernel score; adding c to the score adds sigma^2 c^2."""
    sde = ReflectedVE(0.01, 2.0)
    n, t = 4000, time_of(0.2, sde)
    x0 = torch.rand(n, 1, dtype=F64, generator=torch.Generator().manual_seed(3))
    right = sf.ScoreModel.from_score(lambda x, t: torch.zeros_like(x), sde, shape=(1,))
    wrong = sf.ScoreModel.from_score(lambda x, t: torch.full_like(x, 1.5), sde, shape=(1,))
    gap = sf.dsm_loss(wrong, x0, seed=0, t=t) - sf.dsm_loss(right, x0, seed=0, t=t)
    assert abs(float(gap.mean()) - 0.04 * 1.5**2) < 4 * float(gap.std()) / math.sqrt(n)


def test_simplex_and_cube():
    p = torch.softmax(torch.randn(5, 4, dtype=F64, generator=torch.Generator().manual_seed(0)), 1)
    u, forward = simplex_to_cube(p)
    again, backward = cube_to_simplex(u)
    assert torch.allclose(again, p, atol=1e-14)
    assert torch.allclose(forward, -backward, atol=1e-12)
    jacobian = torch.func.jacrev(lambda v: cube_to_simplex(v[None])[0][0, :3])(u[0])
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(backward[0]), abs=1e-12)
    with pytest.raises(ValueError, match="sum to 1"):
        simplex_to_cube(2 * p)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="outside its box"):
        WIDE.perturb(torch.tensor([[1.2]]), 0.1, torch.zeros(1, 1))
    with pytest.raises(ValueError, match="outside its box"):
        WIDE.perturb(torch.tensor([[math.nan]]), 0.1, torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"walls at 1\.0 and 0\.0"):
        ReflectedVE(low=1.0, high=0.0)
    with pytest.raises(ValueError, match="both finite or both infinite"):
        ReflectedVE(low=0.0, high=math.inf)
    with pytest.raises(ValueError, match="walls for 2 entries"):
        ReflectedVE(low=(0.0, 0.0), high=(1.0, 1.0)).project(torch.zeros(2, 3))


@recorded
def test_scores_and_folds_of_the_recording():
    r = load_file(RECORDING)
    for k, sigma in enumerate(r["hk/sigma"].tolist()):
        x, x0 = r["hk/x"][k, :, None].to(F64), r["hk/x0"][k, :, None].to(F64)
        ours = WIDE.kernel_score(x, x0, time_of(sigma)).flatten()
        theirs = r["hk/score_images_f64" if sigma <= 0.5 else "hk/score_eigen20_f64"][k].to(F64)
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6), sigma
    assert torch.allclose(WIDE.project(r["reflect/in"][:, None])[:, 0], r["reflect/out"], atol=1e-6)


@recorded
def test_chain_of_the_recording():
    """N - 1 steps of length 1 / N on a grid of another spacing, as the authors' sampler takes them."""
    r, n = load_file(RECORDING), 20
    x = r["chain/none/draw001_rand"].to(F64)
    for i, t in enumerate(torch.linspace(1, 1e-3, n, dtype=F64)[:-1]):
        z = r[f"chain/none/draw{i + 2:03d}_randn_like"].to(F64)
        g2 = WIDE.g2(t)
        x = WIDE.project(x + g2 / n * SERIES.score(x, t) + torch.sqrt(g2 / n) * z)
    assert torch.allclose(x, r["chain/none/x"].to(F64), atol=5e-6)


@recorded
@pytest.mark.parametrize("weighting", ["noise", "likelihood"])
def test_losses_of_the_recording(weighting):
    """Half the sum over entries, and their mean, at recorded times and noise."""
    r = load_file(RECORDING)
    net = lambda x, t: (0.45 - x) * 3 / (1 + WIDE.sigma(t.double()).reshape(-1, 1, 1, 1)) + 0.2 * torch.sin(7 * x)  # noqa: E731
    theirs = sf.ScoreModel.from_score(net, WIDE, shape=(1, 4, 4))
    t = r["loss/u_for_t"].double() * (1 - 1e-5) + 1e-5
    found = sf.dsm_loss(theirs, r["loss/batch"].double(), weighting, t=t, noise=r["loss/z"].double())
    key = "loss/lw1" if weighting == "likelihood" else "loss/lw0"
    assert 0.5 * float(found.mean()) == pytest.approx(float(r[f"{key}_mean0"]), rel=2e-6)
    assert float(found.mean()) / 16 == pytest.approx(float(r[f"{key}_mean1"]), rel=2e-6)


@recorded
def test_chain_with_a_corrector_of_the_recording():
    """Corrector, then predictor, at each time; the step of the corrector by norms of the batch."""
    from scorefield.solve.integrate import Field

    r, n, sde = load_file(RECORDING), 20, ReflectedVE(0.01, 0.5)
    draws = iter(r[f"chain/langevin/draw{i:03d}_randn_like"].to(F64) for i in range(2, 40))
    x, field = r["chain/langevin/draw001_rand"].to(F64), Field(model(sde))
    corrector = sf.Langevin(0.05, norm="batch")
    for t in torch.linspace(1, 1e-3, n, dtype=F64)[:-1]:
        z, score, g2 = next(draws), field.score(x, t), sde.g2(t)
        one = torch.ones((), dtype=F64)
        x = sde.project(corrector.correct(x, score, z, one, corrector.ratio(field, score, z, t, t, 0)))
        x = sde.project(x + g2 / n * field.score(x, t) + torch.sqrt(g2 / n) * next(draws))
    assert torch.allclose(x, r["chain/langevin/x"].to(F64), atol=5e-6)


@recorded
def test_mollified_flow_of_the_recording():
    """Their sampler slows the flow down near the walls, which makes another flow of it, one without this likelihood."""
    r = load_file(RECORDING)

    def slowed(x, t):
        return SERIES.score(x, t) * torch.exp((4 - 1 / (0.25 - (0.5 - x) ** 2)) / 200)

    other = sf.ScoreModel.from_score(slowed, WIDE, shape=(1, 4, 4))
    z = r["ode/z"].to(F64)
    x = sf.sample(other, 2, sf.Dopri5(1e-8, 1e-8), x_init=z, t_min=1e-3, progress=False)
    assert torch.allclose(x, r["ode/x_moll200"].to(F64), atol=1e-4)
    flow = sf.sample(model(), 2, sf.Dopri5(1e-8, 1e-8), x_init=z, shape=(1, 4, 4), t_min=1e-3, progress=False)
    assert float((flow - x).abs().max()) > 1e-3
