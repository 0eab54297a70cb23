"""Bridges: both ends, the law in between, the Gaussian Schrodinger bridge, and recordings of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import scorefield as sf
from scorefield.bridge import (
    I2SB,
    Bridge,
    BridgeAncestral,
    BridgeModel,
    SchrodingerBridge,
    bridge_loss,
    gaussian_bridge,
    markovian_projection,
    schrodinger_bridge,
)
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field

F64 = torch.float64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
recorded = pytest.mark.skipif(not SHARED.exists(), reason="the recordings of the authors' code are not here")


def spd(seed: int, d: int = 3) -> Tensor:
    root = torch.randn(d, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(d, dtype=F64)


@pytest.mark.parametrize("bridge", [Bridge(0.7), Bridge(1.3, reversion=0.5), I2SB(steps=50)])
def test_posterior_and_kernel_agree(bridge):
    """p(x_s | x_0, x_1) is the mixture of p(x_s | x_0, x_t) over p(x_t | x_0, x_1): mean and variance."""
    x0, x1 = torch.tensor([[0.4, -1.0]], dtype=F64), torch.tensor([[1.5, 0.3]], dtype=F64)
    if isinstance(bridge, I2SB):  # whose table counts the variance of its own step on both sides
        bridge = Bridge(0.4)
    for s, t in ((0.2, 0.7), (0.5, 0.9), (0.0, 0.4)):
        mean_t, std_t = bridge.kernel(x0, x1, t)
        mean, std = bridge.posterior(mean_t, x0, s, t)
        slope = (bridge.posterior(mean_t + 1, x0, s, t)[0] - mean)[0, 0]
        expected_mean, expected_std = bridge.kernel(x0, x1, s)
        assert torch.allclose(mean, expected_mean, atol=1e-13)
        assert float(torch.sqrt(std**2 + (slope * std_t) ** 2)) == pytest.approx(float(expected_std), abs=1e-12)


@pytest.mark.parametrize("bridge", [Bridge(0.7), Bridge(1.3, reversion=0.5)])
def test_bridge_drift_carries_the_kernel(bridge):
    """d mean / dt = drift(mean) and d var / dt = 2 slope var + sigma^2, forward and backward."""
    x0, x1, h = torch.tensor([[0.4]], dtype=F64), torch.tensor([[1.5]], dtype=F64), 1e-5
    for t in (0.2, 0.6):
        (m0, s0), (m1, s1), (m2, s2) = (bridge.kernel(x0, x1, t + k * h) for k in (-1, 0, 1))
        drift = bridge.forward_drift(m1, x1, t)
        slope = bridge.forward_drift(m1 + 1, x1, t) - drift
        assert float((m2 - m0) / (2 * h) - drift) == pytest.approx(0, abs=1e-7)
        change = (s2**2 - s0**2) / (2 * h)
        assert float(change) == pytest.approx(float(2 * slope * s1**2 + bridge.sigma**2), abs=1e-6)
        back = bridge.backward_drift(m1, x0, t)
        assert float((m2 - m0) / (2 * h) + back) == pytest.approx(0, abs=1e-7)


def test_gaussian_bridge_solves_the_static_problem():
    """200 rounds of Sinkhorn on the Gaussian kernel of variance sigma^2, as moments; and the scalar numbers."""
    a, b, sigma = spd(0), spd(1), 0.8
    eye = torch.eye(3, dtype=F64) / sigma**2
    # The coupling is exp(-x^T F x / 2 - y^T G y / 2 - |x - y|^2 / (2 sigma^2)) with the right marginals.
    f, g = torch.eye(3, dtype=F64), torch.eye(3, dtype=F64)
    for _ in range(200):
        f = torch.linalg.inv(a) - eye + eye @ torch.linalg.inv(g + eye) @ eye
        g = torch.linalg.inv(b) - eye + eye @ torch.linalg.inv(f + eye) @ eye
    joint = torch.linalg.inv(torch.cat([torch.cat([f + eye, -eye], 1), torch.cat([-eye, g + eye], 1)]))
    assert torch.allclose(gaussian_bridge(a, b, sigma), joint[:3, 3:], rtol=0, atol=2e-14)
    assert float(gaussian_bridge(torch.tensor([[0.6]], dtype=F64), 1.7 * torch.eye(1))) == pytest.approx(
        0.6269427670, abs=1e-7
    )
    assert float(gaussian_bridge(torch.eye(1), torch.eye(1))) == pytest.approx(0.6180339887, abs=1e-10)


def test_markovian_fitting_converges_to_the_bridge_at_its_rate():
    c, seen = 0.0, []
    for _ in range(5):
        c = markovian_projection(0.6, 1.7, c)
        seen.append(c)
    assert seen == pytest.approx([0.55431, 0.619992, 0.626291, 0.626882, 0.626937], abs=2e-6)
    exact = 0.6269427670
    assert (exact - seen[4]) / (exact - seen[3]) == pytest.approx(0.0936, abs=2e-4)
    second = markovian_projection(0.6, 1.7, 0.6)
    assert second == pytest.approx(0.6244, abs=5e-5)
    assert markovian_projection(0.6, 1.7, second) == pytest.approx(0.626705, abs=1e-6)


class Exact(nn.Module):
    """The exact network for x_0 ~ N(0, 1), x_1 = x_0 + 0.5 n, with or without sight of x_1."""

    def __init__(self, bridge: Bridge, sees: bool, noisy: bool = True) -> None:
        super().__init__()
        self.bridge, self.sees, self.noisy = bridge, sees, noisy

    def forward(self, x, t, x1=None):
        forward, backward = self.bridge.clock(t)
        both = forward + backward
        mu0, mu1, var = (v[:, None] for v in (backward / both, forward / both, forward * backward / both))
        var = var if self.noisy else 0 * var
        if self.sees:
            # given x_1, x_0 ~ N(.8 x_1, .2), and x_t = mu0 x_0 + mu1 x_1 + noise
            data = 0.8 * x1 + 0.2 * mu0 / (0.2 * mu0**2 + var).clamp_min(1e-12) * (x - mu0 * 0.8 * x1 - mu1 * x1)
        else:
            data = (mu0 + mu1) / ((mu0 + mu1) ** 2 + 0.25 * mu1**2 + var) * x
        return (x - data) / torch.sqrt(forward)[:, None]


def chain(bridge: Bridge, grid: Tensor, sees: bool, deterministic: bool = False) -> tuple[float, float]:
    """(slope on x_1, variance) of the sampler, by the affine maps of its steps, all in one batch.

    Three rows for each step: x = 1, x_1 = 1 and unit noise, the other two being 0.
    """
    rows = torch.eye(3, dtype=F64).repeat(len(grid) - 1, 1)
    x, x1, unit = rows.split(1, 1)
    model = BridgeModel(Exact(bridge, sees, not deterministic), bridge, shape=(1,), sees_end=sees)
    field, noise = Field(model, {"x1": x1} if sees else {}, len(x)), FromFunction(len(x), lambda shape: unit)
    t, s = grid[:-1].repeat_interleave(3), grid[1:].repeat_interleave(3)
    out = BridgeAncestral(deterministic).step(field, x, t, s, None, noise)[0]
    slope, variance = 1.0, 0.0
    for kept, seen, spread in out.reshape(-1, 3).tolist():
        slope, variance = kept * slope + seen, kept**2 * variance + spread**2
    return slope, variance


def test_without_sight_of_the_end_the_posterior_is_wrong():
    """True (slope, variance) of x_0 given x_1 is (.8, .2); on the default table, whose entry 0 has a variance of its own."""
    bridge = I2SB()
    grid = torch.linspace(0, 999, 101, dtype=F64).round().flip(0) / 999
    assert chain(bridge, grid, True) == pytest.approx((0.8, 0.1909), abs=1e-3)
    assert chain(bridge, grid, False) == pytest.approx((0.8386, 0.1133), abs=1e-3)
    assert chain(bridge, grid, False, True) == pytest.approx((0.8935, 0.0), abs=1e-3)


def test_loss_is_least_at_the_exact_network_and_the_door_samples():
    bridge = Bridge(0.4)
    draws = torch.Generator().manual_seed(0)
    x0 = torch.randn(400, 1, dtype=F64, generator=draws)
    x1 = x0 + 0.5 * torch.randn(400, 1, dtype=F64, generator=draws)
    model = BridgeModel(Exact(bridge, True), bridge, shape=(1,))
    off = BridgeModel(lambda x, t, x1: Exact(bridge, True)(x, t, x1) + 0.3, bridge, shape=(1,))
    gap = bridge_loss(off, x0, x1, seed=1) - bridge_loss(model, x0, x1, seed=1)
    assert abs(float(gap.mean()) - 0.09) < 4 * float(gap.std()) / 20
    hole = torch.tensor([0.0])
    assert float(bridge_loss(model, x0, x1, mask=hole, seed=1).sum()) == 0
    x = sf.sample(model, 400, BridgeAncestral(), x_init=x1, steps=60, t_min=0.0, seed=0, x1=x1)
    rest = x - 0.8 * x1
    assert float(rest.var()) == pytest.approx(0.2, abs=4 * 0.2 * math.sqrt(2 / 400))
    again = sf.sample(model, 400, BridgeAncestral(), x_init=x1, steps=60, t_min=0.0, seed=0, x1=x1, batch_size=150)
    assert torch.allclose(x, again, atol=1e-12)
    with pytest.raises(ValueError, match="has no score"):
        model.score(x0, 0.5)
    with pytest.raises(ValueError, match="give x1="):
        model.denoise(x0, 0.5)
    with pytest.raises(ValueError, match=r"it is \(3, 1\) for states of shape \(400, 1\)"):
        model.denoise(x0, 0.5, x1=x1[:3])
    with pytest.raises(ValueError, match="the same shape"):
        bridge_loss(model, x0, x1[:3])
    with pytest.raises(ValueError, match="must be positive definite"):
        gaussian_bridge(torch.zeros(2, 2), torch.eye(2))


def test_schrodinger_bridge_of_two_gaussians_after_a_short_training():
    """In one dimension, affine drifts: after four rounds the covariance is that of the exact bridge, and both ends fit."""

    class Affine(nn.Module):
        """a(t) x + b(t) by a few cosines of t."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(6, 2))

        def forward(self, x, t):
            basis = torch.cos(math.pi * t[:, None] * torch.arange(6))
            slope, offset = (basis @ self.weights).unbind(1)
            return slope[:, None] * x + offset[:, None]

    def draw(mean: float):
        return lambda n, g: mean + torch.randn(n, 1, generator=g)

    done = schrodinger_bridge(
        draw(-0.5), draw(0.5), (Affine(), Affine()), rounds=4, train_steps=250, pairs=4000, batch=512, lr=0.05, steps=20
    )
    x0, x1 = done.pairs
    covariance = float(((x0 - x0.mean()) * (x1 - x1.mean())).mean())
    assert covariance == pytest.approx(0.618, abs=0.05)
    assert float(x1.mean()) == pytest.approx(0.5, abs=0.1)
    moved = done.transport(torch.full((2000, 1), -0.5), seed=0)
    assert float(moved.mean()) == pytest.approx(0.5, abs=0.12)


@recorded
def test_recording_of_paired_restoration():
    r = load_file(SHARED / "58_i2sb.safetensors")
    bridge = I2SB(steps=100)
    assert torch.allclose(bridge.betas(), r["betas"], atol=1e-15)
    every = torch.arange(100, dtype=F64) / 99
    forward, backward = bridge.clock(every)
    assert torch.allclose(forward.sqrt().float(), r["std_fwd"], atol=1e-7)
    assert torch.allclose(backward.sqrt().float(), r["std_bwd"], atol=1e-7)
    t = r["step"].to(F64) / 99
    mean, std = bridge.kernel(r["x0"], r["x1"], t)
    assert torch.allclose(mean + std * r["q_noise"], r["q_sample"], atol=4e-7)
    assert torch.allclose(mean, r["q_sample_ot_ode"], atol=4e-7)
    scale = torch.sqrt(bridge.passed(t)).float()[:, None, None]
    assert torch.allclose((r["q_sample"] - r["x0"]) / scale, r["label"], rtol=1e-5, atol=1e-5)
    steps = r["steps"].tolist()

    def estimate(x, t, x1=None):
        forward, backward = bridge.clock(t.double())
        both = forward + backward
        mu0, mu1, var = (v[:, None, None] for v in (backward / both, forward / both, forward * backward / both))
        data = (mu0 + mu1) / ((mu0 + mu1) ** 2 + 0.25 * mu1**2 + var) * x.double()
        return ((x.double() - data) / forward.sqrt()[:, None, None]).to(x)

    model = BridgeModel(estimate, bridge, shape=(2, 3), sees_end=False)
    for ode in (0, 1):
        x, field = r["x1"], Field(model, {}, 4)
        draws = iter([r[k] for k in sorted(r) if k.startswith(f"chain_ode{ode}/draw")])
        noise = FromFunction(4, lambda shape, draws=draws: next(draws))
        states = []
        pairs = list(zip(steps[::-1][:-1], steps[::-1][1:], strict=True))
        for late, early in pairs:
            at = torch.tensor(late / 99, dtype=F64), torch.tensor(early / 99, dtype=F64)
            last = early == steps[0]
            x = BridgeAncestral(bool(ode) or last).step(field, x, *at, None, noise)[0]
            states.append(x)
        theirs = r[f"chain_ode{ode}/xs"]
        assert torch.allclose(torch.stack(states[::-1], 1), theirs, atol=2e-6)


@recorded
def test_recording_of_bridge_matching():
    r = load_file(SHARED / "58_dsbm.safetensors")
    bridge = Bridge(1.0)
    for way in ("f", "b"):
        t = r[f"dsbm/{way}/t"].flatten().to(F64)
        mean, std = bridge.kernel(r["z0"], r["z1"], t)
        z = mean + std * r[f"dsbm/{way}/draw001_randn_like"]
        assert torch.allclose(z, r[f"dsbm/{way}/z_t"], atol=1e-6)
        ours = bridge.forward_drift(z, r["z1"], t) if way == "f" else bridge.backward_drift(z, r["z0"], t)
        assert torch.allclose(ours, r[f"dsbm/{way}/target"], rtol=1e-3, atol=1e-4)
    for kind, reference in (("ve", Bridge(1.0)), ("vp", Bridge(1.0, reversion=0.5))):
        t, x = r[f"drift/{kind}/t"].to(F64), r[f"drift/{kind}/x"]
        start, final = r[f"drift/{kind}/init"], r[f"drift/{kind}/final"]
        forward = reference.forward_drift(x, final, t)
        backward = reference.backward_drift(x, start, t)
        assert torch.allclose(forward, r[f"drift/{kind}/f"], rtol=1e-4, atol=1e-5)
        assert torch.allclose(backward, r[f"drift/{kind}/b"], rtol=1e-4, atol=1e-5)


TOTAL = 0.1410272507825739
"""Variance that the default table of paired restoration passes in all."""


def test_variance_of_the_default_table():
    betas = I2SB().betas()
    assert float(betas.sum()) == pytest.approx(TOTAL, abs=1e-12)
    assert math.sqrt(TOTAL) == pytest.approx(0.3755, abs=5e-5)
    zero = torch.zeros(1, 1, dtype=F64)
    assert float(Bridge(math.sqrt(TOTAL)).kernel(zero, zero, 0.5)[1]) == pytest.approx(0.1878, abs=5e-5)
    assert float(I2SB().kernel(zero, zero, 0.5)[1]) == pytest.approx(0.1878, abs=1e-4)  # its middle step counts twice


class Recorded(nn.Module):
    """x W + 0.5 t - 0.2."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x, t):
        return x @ self.weights + 0.5 * t[:, None] - 0.2


@recorded
def test_recording_of_chains_between_two_samples():
    """Euler-Maruyama both ways with the recorded draws, and the same networks as a flow, which has none."""
    r = load_file(SHARED / "58_dsbm.safetensors")
    nets = Recorded(r["Wf"]), Recorded(r["Wb"])
    bridge = SchrodingerBridge(*nets, Bridge(1.0), (r["z0"], r["z1"]))
    for way, direction, start in (("f", "forward", r["z0"]), ("b", "backward", r["z1"])):
        draws = iter([r[f"dsbm/{way}/sde/draw{k:03d}_randn_like"] for k in range(12)])
        path = bridge.transport(start, direction, 12, noise=lambda draws=draws: next(draws), path=True)
        torch.testing.assert_close(path, r[f"dsbm/{way}/traj"], rtol=0, atol=1e-6)
        again = bridge.transport(start, direction, 12, seed=3)
        torch.testing.assert_close(bridge.transport(start[:2], direction, 12, seed=3), again[:2], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="direction='up', steps=30"):
        bridge.transport(r["z0"], "up")


@pytest.mark.parametrize(
    ("steps", "blind", "seeing", "ode"),
    [
        (1, (0.8, 0.0), 0.0, 0.8),
        (2, (0.8199, 0.0293), 0.0485, 0.8471),
        (5, (0.8314, 0.0638), 0.1100, 0.8753),
        (10, (0.8352, 0.0834), 0.1439, 0.8848),
        (100, (0.8386, 0.1133), 0.1909, 0.8935),
        (1000, (0.83896, 0.11911), 0.19877, 0.8943),
    ],
)
def test_steps_of_paired_restoration(steps, blind, seeing, ode):
    """One step is the posterior mean in every mode; even steps of the variance that is passed."""
    bridge, grid = Bridge(math.sqrt(TOTAL)), torch.linspace(1, 0, steps + 1, dtype=F64)
    last = 6e-6 if steps == 1000 else 6e-5
    assert chain(bridge, grid, False) == pytest.approx(blind, abs=last)
    assert chain(bridge, grid, True) == pytest.approx((0.8, seeing), abs=last)
    assert chain(bridge, grid, False, True) == pytest.approx((ode, 0.0), abs=6e-5)


@pytest.mark.parametrize(("noisy", "limit"), [(True, (0.838995, 0.120108)), (False, (0.894427, 0.0))])
def test_limit_of_blind_restoration(noisy, limit):
    """The linear SDE of small steps, from the bridge's own drift at E[x_0 | x_t]: slope e^{K(1)}, variance int e^{2 K} sigma^2.

    Without noise the slope is 1.25^{-1/2}: the law of x_0 is right (variance 0.8 * 1.25 = 1), given x_1 it is not.
    """
    bridge, t = Bridge(math.sqrt(TOTAL)), torch.linspace(0, 1, 4001, dtype=F64)[1:]
    one = torch.ones(len(t), 1, dtype=F64)
    net = Exact(bridge, False, noisy)
    data = one - torch.sqrt(bridge.passed(t))[:, None] * net(one, t)
    rate = bridge.backward_drift(one, data, t)[:, 0]
    rate = torch.cat([2 * rate[:1] - rate[1:2], rate])  # straight on to t = 0
    grown = torch.cat([torch.zeros(1, dtype=F64), torch.cumulative_trapezoid(rate, dx=1 / 4000)])
    assert float(torch.exp(grown[-1])) == pytest.approx(limit[0], abs=1e-6)
    spread = TOTAL * float(torch.trapezoid(torch.exp(2 * grown), dx=1 / 4000)) if noisy else 0.0
    assert spread == pytest.approx(limit[1], abs=1e-6)


def one_way(bridge: Bridge, ends: tuple[float, float, float], start: float, back: bool) -> tuple[float, float]:
    """(covariance of the ends, variance of the far one) of the projected process with a variance at its start, exactly.

    `ends` are the variances of x_0 and x_1 and their covariance before. The drift is the bridge's at the expected other end,
    linear in x, so that RK4 on the logarithm of the slope and on the variance is enough.
    """
    a, b, c = ends
    steps = 400
    u = torch.linspace(0, 1, 2 * steps + 1, dtype=F64)[:-1]
    t = 1 - u if back else u
    one = torch.ones(len(t), 1, dtype=F64)
    zero, std = torch.zeros_like(one), bridge.kernel(0 * one, 0 * one, t)[1]
    w0, w1 = bridge.kernel(one, zero, t)[0], bridge.kernel(zero, one, t)[0]
    spread = w0**2 * a + w1**2 * b + 2 * w0 * w1 * c + std**2
    if back:
        rate = bridge.backward_drift(one, (w0 * a + w1 * c) / spread, t)[:, 0]
    else:
        rate = bridge.forward_drift(one, (w0 * c + w1 * b) / spread, t)[:, 0]
    rate = torch.cat([rate, 2 * rate[-1:] - rate[-2:-1]]).tolist()
    log, variance, h = 0.0, start, 1 / steps
    for k in range(0, 2 * steps, 2):
        early, middle, late = rate[k : k + 3]
        log += h / 6 * (early + 4 * middle + late)
        noise = bridge.sigma**2
        k1 = 2 * early * variance + noise
        k2 = 2 * middle * (variance + h / 2 * k1) + noise
        k3 = 2 * middle * (variance + h / 2 * k2) + noise
        variance += h / 6 * (k1 + 2 * k2 + 2 * k3 + 2 * late * (variance + h * k3) + noise)
    return start * math.exp(log), variance


def test_rounds_from_the_reference_are_proportional_fitting():
    """Variances 0.6 and 1.7, sigma = 1: a forward and a backward projection a round, each from the exact law of its start.

    Covariance and terminal variance of each forward one; both errors fall by 0.149 a round, Markovian fitting.s by 0.094.
    """
    bridge, a, b = Bridge(1.0), 0.6, 1.7
    exact = float(gaussian_bridge(a * torch.eye(1, dtype=F64), b * torch.eye(1, dtype=F64)))
    forward, seen = (a, a + 1), []  # covariance and variance of x_1 = x_0 + z
    for _ in range(5):
        seen.append(forward)
        backward = one_way(bridge, (a, forward[1], forward[0]), b, True)
        forward = one_way(bridge, (backward[1], b, backward[0]), a, False)
    assert [c for c, _ in seen] == pytest.approx([0.6, 0.622901, 0.626342, 0.626853, 0.62693], abs=2e-6)
    assert [v for _, v in seen[:4]] == pytest.approx([1.6, 1.684844, 1.697742, 1.699665], abs=2e-6)
    assert (exact - seen[4][0]) / (exact - seen[3][0]) == pytest.approx(0.149, abs=1e-3)
    assert (b - seen[4][1]) / (b - seen[3][1]) == pytest.approx(0.149, abs=1e-3)


def test_marginal_of_the_gaussian_bridge_in_the_middle():
    a, b = torch.tensor([[0.6]], dtype=F64), torch.tensor([[1.7]], dtype=F64)
    c = float(gaussian_bridge(a, b))
    assert 0.25 * (0.6 + 1.7 + 2 * c + 1) == pytest.approx(1.1384713834, abs=1e-9)


def test_projected_drifts_of_any_coupling_share_the_marginals():
    """k_f + k_b = -sigma^2 / Sigma_t at any covariance of the ends: it says nothing about optimality."""
    bridge = Bridge(0.9)
    for c in (0.0, 0.5):
        for t in (0.2, 0.7):
            spread = (1 - t) ** 2 * 0.6 + t**2 * 1.7 + 2 * t * (1 - t) * c + 0.81 * t * (1 - t)
            one = torch.ones(1, 1, dtype=F64)
            end = ((1 - t) * c + t * 1.7) / spread * one
            start = ((1 - t) * 0.6 + t * c) / spread * one
            both = bridge.forward_drift(one, end, t) + bridge.backward_drift(one, start, t)
            assert float(both) == pytest.approx(-0.81 / spread, abs=1e-12)
