"""Flow matching against closed forms and a recording of the authors' code (Lipman et al. 2023; Liu et al. 2023)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import scorefield as sf
from oracles import mixture, power, rotated
from scorefield.coefficients import expand
from scorefield.flow import flow_matching_loss, minibatch_ot, reflow, straightness
from scorefield.times import LogitNormalTimes, ShiftedGrid

F64 = torch.float64
FLOW = sf.RectifiedFlow()
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "41_cfm.safetensors"
STRAIGHT = RECORDING.with_name("58_dsbm.safetensors")
recorded = pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")


def narrow(s: float) -> sf.GaussianMixture:
    """N(0, s^2) on a line."""
    return sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), torch.full((1, 1), s**2, dtype=F64), [1.0], FLOW)


def test_views_of_the_straight_line():
    """f = -1 / (1 - t), g^2 = 2 t / (1 - t), and every view by the velocity v = E[eps - x_0 | x] on a rotated mixture."""
    t = torch.tensor([0.03, 0.3, 0.6, 0.97], dtype=F64)
    torch.testing.assert_close(FLOW.f(t), -1 / (1 - t), rtol=1e-14, atol=0)
    torch.testing.assert_close(FLOW.g2(t), 2 * t / (1 - t), rtol=1e-13, atol=0)
    gm = mixture(FLOW)
    x, u = gm.sample(4, 0.5, seed=0), t[:, None]
    v = gm.velocity(x, t)
    close = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(gm.noise(x, t) - gm.denoise(x, t), v, **close)
    torch.testing.assert_close(gm.denoise(x, t), x - u * v, **close)
    torch.testing.assert_close(gm.noise(x, t), x + (1 - u) * v, **close)
    torch.testing.assert_close(gm.score(x, t), -(x + (1 - u) * v) / u, **close)


def test_eulers_steps_are_those_of_ddim_also_of_vp():
    """DDIM under VP at equal sigma / alpha, in units of alpha + sigma, takes the steps of Euler on the straight line."""
    times = torch.tensor([0.95, 0.7, 0.4, 0.15, 0.02], dtype=F64)
    start = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    keys = {"seed": 0, "denoise": False}
    gm, vp = mixture(FLOW), sf.VP()
    ends = [
        sf.sample(gm, 5, solver, grid=times, x_init=start, t_start=0.95, **keys) for solver in (sf.Euler(), sf.DDIM())
    ]
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    own = vp.inverse_log_snr(FLOW.log_snr(times))
    scale = vp.alpha(own) + vp.sigma(own)
    torch.testing.assert_close(vp.sigma(own) / scale, times, rtol=1e-12, atol=1e-12)
    x = sf.sample(mixture(vp), 5, sf.DDIM(), grid=own, x_init=scale[0] * start, t_start=float(own[0]), **keys)
    torch.testing.assert_close(x / scale[-1], ends[0], rtol=1e-11, atol=1e-11)


def test_the_flow_takes_noise_to_a_gaussian_by_the_root_of_its_covariance():
    """x_0 = m + S^{1/2} z for a rotated S, to what the clipped end leaves."""
    mean, cov = rotated(3)
    gm = sf.GaussianMixture(mean[None], cov[None], None, FLOW)
    z = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = sf.sample(gm, 4, sf.Dopri5(1e-9, 1e-9), x_init=z, t_min=1e-6, denoise=False)
    torch.testing.assert_close(x, mean + z @ power(cov, 0.5), rtol=0, atol=5e-6)


@pytest.mark.parametrize("s", [0.5, 1.3])
def test_least_loss_and_straightness_of_a_gaussian(s):
    """Least loss int Var(eps - x_0 | x_t) dt = pi s / 2; int E|chord - velocity|^2 = (2 - pi / 2) s."""
    gm, n = narrow(s), 20_000
    x0 = gm.sample(n, seed=0)
    loss = sf.dsm_loss(gm, x0, "velocity", seed=1)
    assert abs(float(loss.mean()) - math.pi * s / 2) < 4 * float(loss.std()) / math.sqrt(n)
    found, stderr = straightness(gm, 4000, steps=60, seed=0, t_min=0.0)
    assert abs(found - (2 - math.pi / 2) * s) < 4 * stderr + 2e-3 * s  # the trapezoid at 60 points


@pytest.mark.parametrize("solver", [sf.Euler(), sf.DDIM()], ids=str)
def test_one_step_of_euler_is_the_mean(solver):
    gm = mixture(FLOW)
    x = sf.sample(gm, 6, solver, steps=1, t_min=0.0, seed=0, denoise=False)
    mean = (torch.tensor([0.3, 0.7], dtype=F64)[:, None] * gm.means).sum(0)
    torch.testing.assert_close(x, mean.expand(6, 3), rtol=1e-10, atol=1e-10)


def test_velocity_weighting_is_the_weighted_noise_loss_and_finite_at_the_end():
    """lambda = ((alpha sigma' - sigma alpha') / alpha)^2 of the noise loss (Lipman et al. 2023), here 1 / (1 - t)^2."""
    gm = mixture(FLOW)
    x0 = gm.sample(4, seed=0)
    noise = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=F64)
    ours = sf.dsm_loss(gm, x0, "velocity", t=t, noise=noise)
    theirs = sf.dsm_loss(gm, x0, "noise", t=t, noise=noise) / (1 - t) ** 2
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    direct = torch.square(gm.velocity((1 - t)[:, None] * x0 + t[:, None] * noise, t) - (noise - x0)).sum(1)
    torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-12)
    vp = mixture(sf.VP())
    d_alpha, d_sigma = sf.VP().derivatives(t)
    x = sf.VP().perturb(x0, t, noise)
    target = d_alpha[:, None] * x0 + d_sigma[:, None] * noise
    expected = torch.square(vp.velocity(x, t) - target).sum(1)
    torch.testing.assert_close(sf.dsm_loss(vp, x0, "velocity", t=t, noise=noise), expected, rtol=1e-12, atol=0)
    net = sf.ScoreModel(lambda x, t: 0.3 * x, FLOW, predict="velocity")
    at_end = sf.dsm_loss(net, x0, "velocity", t=1.0, noise=noise)
    torch.testing.assert_close(at_end, torch.square(0.3 * noise - (noise - x0)).sum(1), rtol=1e-12, atol=0)


def test_times_are_logit_normal_and_move_by_the_shift():
    u = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    for shift in (1.0, 3.0):
        t, weight = LogitNormalTimes(0.4, 0.8, shift)(u, FLOW)
        back = t / (shift - (shift - 1) * t)
        logit = torch.log(back / (1 - back))
        assert float(logit.mean()) == pytest.approx(0.4, abs=1e-6)
        assert float(logit.std()) == pytest.approx(0.8, rel=2e-3)  # the tails beyond 1 / 4000
        assert torch.equal(weight, torch.ones_like(u))
    grid = ShiftedGrid(3.0)(FLOW, 4, 1.0, 0.0)
    torch.testing.assert_close(grid, torch.tensor([1, 9 / 10, 3 / 4, 1 / 2, 0], dtype=F64))
    with pytest.raises(ValueError, match="std > 0"):
        LogitNormalTimes(std=0.0)
    with pytest.raises(ValueError, match="shift=-1"):
        ShiftedGrid(-1.0)


def test_its_own_grid_serves_solvers_that_would_step_in_log_snr():
    """Under the straight line they get the quadratic grid, unless told otherwise; elsewhere, and for Euler, nothing changes."""
    for solver in (sf.DDIM(), sf.DPMSolver()):
        own = solver.grid_for(FLOW, (1.0, 1e-3), 5)
        torch.testing.assert_close(own, solver.grid_for(FLOW, (1.0, 1e-3), 5, "quadratic"))
        named = solver.grid_for(FLOW, (1.0, 1e-3), 5, "log_snr")
        assert not torch.allclose(own, named)
        assert torch.equal(
            solver.grid_for(sf.VP(), (1.0, 1e-3), 5), solver.grid_for(sf.VP(), (1.0, 1e-3), 5, solver.grid)
        )
    assert torch.equal(sf.Euler().grid_for(FLOW, (1.0, 1e-3), 5), sf.Euler().grid_for(FLOW, (1.0, 1e-3), 5, "uniform"))


def test_pairs_are_the_cheapest_within_each_condition():
    """Against all 120 permutations; with labels, no pair crosses."""
    draws = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(5, 2, 2, dtype=F64, generator=draws) for _ in range(2))
    cost = torch.square(x0[:, None] - noise[None]).sum((2, 3))
    best = min(sum(float(cost[i, j]) for i, j in enumerate(p)) for p in itertools.permutations(range(5)))
    paired = minibatch_ot(x0, noise)
    assert float(torch.square(x0 - paired).sum()) == pytest.approx(best, rel=1e-12)
    assert sorted(paired.flatten(1)[:, 0].tolist()) == sorted(noise.flatten(1)[:, 0].tolist())
    label = torch.tensor([1, 0, 1, 0, 1])
    within = minibatch_ot(x0, noise, label)
    for value in (0, 1):
        rows = label == value
        assert sorted(within[rows].flatten(1)[:, 0].tolist()) == sorted(noise[rows].flatten(1)[:, 0].tolist())


def test_entropic_pairs_tend_to_the_assignment_and_to_independence():
    """Two points each: the plan puts 1 / (1 + e^{-gap / (2 reg)}) on the cheap pairing, gap that of the two sums of costs."""
    x0 = torch.tensor([[0.0], [1.0]], dtype=F64).repeat(120, 1, 1)
    noise = torch.tensor([[0.2], [0.9]], dtype=F64)
    gap = (0.9**2 + 0.8**2) - (0.2**2 + 0.1**2)
    kept = [
        float((minibatch_ot(pair, noise, regularisation=0.7, seed=k) == noise).double().mean())
        for k, pair in enumerate(x0[:120])
    ]
    share = 1 / (1 + math.exp(-gap / (2 * 0.7)))
    assert abs(sum(kept) / 120 - share) < 4 * math.sqrt(share * (1 - share) / 240)
    assert torch.equal(minibatch_ot(x0[0], noise.flip(0), regularisation=0.01, seed=0), noise)


def test_loss_with_pairs_is_that_of_the_paired_noise():
    gm, draws = mixture(FLOW), torch.Generator().manual_seed(2)
    x0, noise = gm.sample(6, seed=0), torch.randn(6, 3, dtype=F64, generator=draws)
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    ours = flow_matching_loss(gm, x0, t=t, noise=noise)
    expected = sf.dsm_loss(gm, x0, "velocity", t=t, noise=minibatch_ot(x0, noise))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    apart = flow_matching_loss(gm, x0, t=t, noise=noise, transport=False)
    assert not torch.allclose(ours, apart)
    with pytest.raises(ValueError, match="give noise like x0"):
        minibatch_ot(x0, noise[:3])
    with pytest.raises(ValueError, match="regularisation=-1"):
        minibatch_ot(x0, noise, regularisation=-1.0)


def test_reflow_of_a_gaussian_is_the_map_and_straight():
    """x_0 = s z; the flow of the pairs is x_t = (1 - t + t / s) x_0, whose velocity is a constant of each path."""
    s = 0.5
    x0, z = reflow(narrow(s), 50, seed=0)
    torch.testing.assert_close(x0, s * z, rtol=2e-3, atol=2e-3)  # the flow ends at t_min and is denoised from there
    straight = sf.ScoreModel(
        lambda x, t: x * (1 - s) / (s + t * (1 - s))[:, None], FLOW, "velocity", shape=(1,)
    ).double()
    value, _ = straightness(straight, 200, steps=20, seed=0)
    assert value < 1e-9
    loss = sf.dsm_loss(straight, x0, "velocity", noise=z, t=0.4)
    assert float(loss.max()) < 1e-4
    with pytest.raises(ValueError, match="a solver of the flow"):
        reflow(narrow(s), 3, sf.EulerMaruyama())
    with pytest.raises(ValueError, match="steps=101"):
        straightness(straight, steps=101)


class Schedule(sf.GaussianSDE):
    """A path of the recording, whose time runs the other way."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def alpha(self, t):
        u = 1 - t
        match self.kind:
            case "cond_ot":
                return u
            case "poly":
                return u**2
            case "cosine":
                return torch.sin(0.5 * math.pi * u)
            case "linear_vp":
                return u
        return torch.exp(-0.5 * self.rate(t))

    def sigma(self, t):
        u = 1 - t
        match self.kind:
            case "cond_ot":
                return t
            case "poly":
                return 1 - u**2
            case "cosine":
                return torch.cos(0.5 * math.pi * u)
            case "linear_vp":
                return torch.sqrt(1 - u**2)
        return torch.sqrt(-torch.expm1(-self.rate(t)))

    def rate(self, t):
        return 0.5 * t**2 * (20.0 - 0.1) + 0.1 * t


@recorded
@pytest.mark.parametrize("kind", ["cond_ot", "poly", "vp", "linear_vp", "cosine"])
def test_recording_of_schedules_and_conversions(kind):
    """alpha, sigma and slopes at 1 - t, x_t and its derivative, and every view from every other."""
    r = load_file(RECORDING)
    sde: sf.GaussianSDE = FLOW if kind == "cond_ot" else sf.VP() if kind == "vp" else Schedule(kind)
    t = 1 - r["t"]
    d_alpha, d_sigma = sde.derivatives(t)
    for ours, key in ((sde.alpha(t), "alpha"), (sde.sigma(t), "sigma"), (-d_alpha, "d_alpha"), (-d_sigma, "d_sigma")):
        torch.testing.assert_close(ours, r[f"{kind}/{key}"], rtol=1e-9, atol=1e-9)
    noise, x0 = r["noise_x_0"], r["data_x_1"]
    torch.testing.assert_close(sde.perturb(x0, t, noise), r[f"{kind}/x_t"], rtol=1e-9, atol=1e-9)
    slope = expand(d_alpha, x0) * x0 + expand(d_sigma, x0) * noise
    torch.testing.assert_close(-slope, r[f"{kind}/dx_t"], rtol=1e-8, atol=1e-8)
    snr = sde.alpha(t) / sde.sigma(t)
    torch.testing.assert_close(1 - sde.inverse_log_snr(2 * torch.log(snr)), r["t"], rtol=1e-8, atol=1e-8)
    vec, x_t = r[f"{kind}/vec"], r[f"{kind}/x_t"]
    names = {"target": "data", "epsilon": "noise", "velocity": "velocity"}
    for source, target in itertools.permutations(names, 2):
        sign = -1 if source == "velocity" else 1
        model = sf.ScoreModel(lambda x, t, s=sign: s * vec, sde, names[source])
        view = {"target": model.denoise, "epsilon": model.noise, "velocity": model.velocity}[target]
        ours = view(x_t, t) * (-1 if target == "velocity" else 1)
        torch.testing.assert_close(ours, r[f"{kind}/{source}_to_{target}"], rtol=1e-7, atol=1e-7)


@recorded
def test_recording_of_a_network_under_another_schedule():
    """The velocity of `under`, as their transformation of schedules has it, with the sign and time of the recording."""
    r = load_file(RECORDING)
    weights: Tensor = r["net_W"]
    net = sf.ScoreModel(lambda x, t: -(x @ weights + 0.3 * (1 - t)[:, None]), FLOW, "velocity")
    for t in (0.2, 0.6, 0.9):
        ours = -net.under(sf.VP()).velocity(r["transform/x"], 1 - t)
        torch.testing.assert_close(ours, r[f"transform/condot_to_vp_{t}"], rtol=1e-7, atol=1e-7)


@pytest.mark.skipif(not STRAIGHT.exists(), reason="the recordings of the authors' code are not here")
def test_recording_of_a_rectified_flow():
    """Pairs, states and targets of the straight line, and Euler's steps on one network in both directions."""
    r = load_file(STRAIGHT)
    t, noise, data = 1 - r["rf/t"].flatten().to(F64), r["z0"], r["z1"]
    torch.testing.assert_close(FLOW.perturb(data, t, noise), r["rf/z_t"], rtol=0, atol=2e-7)
    net = sf.ScoreModel(lambda x, t: -(x @ r["Wf"] + 0.5 * (1 - t)[:, None] - 0.2), FLOW, "velocity", shape=(3,))
    target = -r["rf/target"]
    expected = torch.square(net.velocity(r["rf/z_t"], t) - target).sum(1)
    torch.testing.assert_close(sf.dsm_loss(net, data, "velocity", t=t, noise=noise), expected, rtol=1e-5, atol=1e-5)
    keys = {"steps": 12, "t_min": 0.0}
    there = sf.sample(net, 5, sf.Euler(), x_init=noise, grid="uniform", denoise=False, full=True, **keys)
    torch.testing.assert_close(there.path, r["rf/traj_f"], rtol=0, atol=1e-6)
    back = sf.encode(net, data, sf.Euler(), grid="uniform", **keys)
    torch.testing.assert_close(back, r["rf/traj_b"][-1], rtol=0, atol=1e-6)
