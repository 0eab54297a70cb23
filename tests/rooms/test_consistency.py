"""Flow maps: boundary and exact maps, fixed points of training without training, and what is refused (Song et al. 2023)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import scorefield as sf
from map_oracles import EDM, Scalars, quadrature
from scorefield.consistency import Curriculum, Easy, Karras, consistency_loss, meanflow_loss, scm_loss
from scorefield.flowmap import FlowMap, Jump, exact_gaussian_map, fixed_point_bias

F64 = torch.float64


@pytest.mark.parametrize(
    ("n", "s", "bias"),
    [(18, 0.5, -0.15391), (40, 0.5, -0.07027), (151, 0.5, -0.01877), (18, 1.0, -0.14048), (40, 0.2, -0.07969)],
)
def test_fixed_point_in_closed_form(n, s, bias):
    assert fixed_point_bias(Karras(n).levels(EDM(), 0.002), s) == pytest.approx(bias, abs=1e-5)


@pytest.mark.parametrize("n", [18, 40])
@pytest.mark.parametrize("teach", [False, True])
def test_the_loss_is_stationary_at_the_fixed_point(n, teach):
    """The gradient of the library's loss by every level's slope vanishes there, for training and for distillation by Euler."""
    s, sde = 0.5, EDM()
    rho = Karras(n).levels(sde, 0.002)
    factors = (s**2 + rho[:-1] * rho[1:]) / (s**2 + rho[1:] ** 2)
    slopes = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(factors, 0)])
    net = Scalars(rho, slopes, 0.5)
    fm = FlowMap(net, sde, shape=(1,), sigma_data=0.5)
    teacher = sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), s**2, None, sde) if teach else None
    x, z, w = quadrature()
    total, free = 0.0, 0.0
    for i in range(n - 1):
        times = (float(rho[i]), float(rho[i + 1]))
        loss = consistency_loss(fm, s * x, teacher=teacher, solver="euler", distance="l2", t=times, noise=z, seed=0)
        (g,) = torch.autograd.grad((w * loss).sum(), net.slopes)
        total = max(total, float(g.abs().max()) / float(rho[i + 1]) ** 2)
        if not teach:
            late, early = s * x + rho[i + 1] * z, s * x + rho[i] * z
            both = (w * torch.square(fm.jump(late, times[1]) - fm.jump(early, times[0]))[:, 0]).sum()
            (g,) = torch.autograd.grad(both, net.slopes)
            free = max(free, float(g.abs().max()) / float(rho[i + 1]) ** 2)
    assert total < 1e-9
    if not teach:
        assert free > 1e-4  # without the stop-gradient it is no fixed point at all


@pytest.mark.parametrize(("n", "euler", "heun"), [(18, 9.32e-3, 3.35e-3), (40, 1.81e-3, 2.65e-4)])
def test_residual_of_the_exact_map(n, euler, heun):
    """Root mean square under distillation, over levels: what the exact map still pays for the teacher's step."""

    class Exact(FlowMap):
        def jump(self, x, t, s=None, **cond):
            return exact_gaussian_map(x, t, self.end if s is None else s, self.sde, 0.0, 0.25)

    sde, (x, z, w) = EDM(), quadrature()
    rho = Karras(n).levels(sde, 0.002)
    fm = Exact(nn.Identity(), sde, shape=(1,))
    teacher = sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), 0.25, None, sde)
    for solver, expected in (("euler", euler), ("heun", heun)):
        found = [
            float(
                (
                    w * consistency_loss(fm, 0.5 * x, teacher=teacher, solver=solver, distance="l2", t=pair, noise=z)
                ).sum()
            )
            for pair in zip(rho[:-1].tolist(), rho[1:].tolist(), strict=True)
        ]
        assert math.sqrt(sum(found) / len(found)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("sde", [sf.VP(), sf.VE(), sf.SubVP(), EDM()])
@pytest.mark.parametrize("kind", ["consistency", "trig", "average"])
def test_boundary_and_refusals(sde, kind):
    class Net(nn.Module):
        def forward(self, x, t, span=None):
            return torch.sin(x) + t[:, None]

    fm = FlowMap(Net(), sde, kind, shape=(3,))
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(fm.jump(x, fm.end), x, atol=1e-9)
    with pytest.raises(ValueError, match="no likelihood or code"):
        sf.log_prob(fm, x)
    with pytest.raises(ValueError, match="a flow map has no"):
        fm.score(x, 0.5)
    if kind != "average":
        with pytest.raises(ValueError, match="jumps to t="):
            fm.jump(x, 0.5, 0.3)
    with pytest.raises(ValueError, match="needs a FlowMap"):
        sf.sample(sf.GaussianMixture(torch.zeros(1, 2), 1.0, None, sde), 2, Jump(), seed=0)


@pytest.mark.parametrize("sde", [sf.VP(), sf.SubVP(), EDM()])
def test_exact_networks_of_a_gaussian_jump_exactly(sde):
    """TrigFlow and average velocity at their closed forms, for a standard deviation other than sigma_data."""
    s, sd = 1.0, 0.5

    class Trig(nn.Module):
        def forward(self, y, th):
            # f = s y / (cos^2 s^2 + sin^2 sd^2)^{1/2} = cos y - sin sd F(y / sd)
            c, v = torch.cos(th)[:, None], torch.sin(th)[:, None]
            x = y * sd
            return (c * x - s * x / torch.sqrt(c**2 * s**2 + v**2 * sd**2)) / (v * sd)

    class Average(nn.Module):
        def forward(self, z, t, span):
            def spread(u):
                return (1 - u) ** 2 * s**2 + u**2

            return (1 - torch.sqrt(spread(t - span) / spread(t)))[:, None] * z / span[:, None]

    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for net, kind in ((Trig(), "trig"), (Average(), "average")):
        fm = FlowMap(net, sde, kind, shape=(2,), sigma_data=sd)
        for t in (0.4 * sde.T, 0.9 * sde.T):
            expected = exact_gaussian_map(x, t, 0.0, sde, 0.0, s**2)
            assert torch.allclose(fm.jump(x, t), expected, atol=1e-9)
    trig = FlowMap(Trig(), sde, "trig", shape=(2,), sigma_data=sd)
    teacher = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), s**2, None, sde)
    t = torch.full((5,), 0.5 * sde.T, dtype=F64)
    assert float(scm_loss(trig, x, teacher=teacher, t=t, seed=0).max()) < 1e-12  # the tangent vanishes at the exact map
    average = FlowMap(Average(), sde, "average", shape=(2,), sigma_data=sd)
    nodes, e, w = quadrature(12)
    pair = (0.2, 0.8)
    loss = meanflow_loss(average, s * nodes, t=pair, noise=e, power=0.0)
    wrong = meanflow_loss(
        FlowMap(_Scaled(Average()), sde, "average", shape=(1,)), s * nodes, t=pair, noise=e, power=0.0
    )
    assert float((w * wrong).sum()) > float((w * loss).sum()) + 1e-3


class _Scaled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z, t, span):
        return 1.1 * self.net(z, t, span)


def test_multistep_sampling_follows_its_variance_recursion():
    """v -> (s^2 + e^2) / (s^2 + tau^2) (v + tau^2 - e^2), by the affine map of the sampler."""

    class Exact(FlowMap):
        def jump(self, x, t, s=None, **cond):
            return exact_gaussian_map(x, t, self.end if s is None else s, self.sde, 0.3, 0.25)

    sde = EDM()
    fm = Exact(nn.Identity(), sde, shape=(1,))
    n = 20_000
    x = sf.sample(fm, n, Jump(), grid=torch.tensor([80.0, 0.821, 0.002]), seed=0)
    assert x.shape == (n, 1)
    v = 0.25 * 1.0
    assert abs(float(x.mean()) - 0.3) < 4 * 0.5 / math.sqrt(n)
    assert abs(float(x.var()) - v) < 4 * v * math.sqrt(2 / n)
    one = sf.sample(fm, 5, Jump(), steps=1, seed=0, full=True)
    assert one.nfe.tolist() == [1] * 5
    two = sf.sample(fm, 5, Jump(), seed=0, full=True)
    assert two.nfe.tolist() == [2] * 5


def test_a_warm_start_is_the_teachers_denoiser():
    gm = sf.GaussianMixture(torch.tensor([[0.5, -0.2]]).double(), 0.3, None, sf.VP())
    fm = FlowMap.from_model(gm)
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for t in (0.3, 0.9):
        gap = fm.jump(x, t) - gm.denoise(x, t)
        assert float(gap.abs().max()) < 0.05  # they differ by the noise at the end alone
    net = sf.nn.MLP(2, width=16)
    model = sf.ScoreModel(net, sf.VP(), "edm", shape=(2,))
    started = FlowMap.from_model(model)
    y = x.float()
    assert torch.allclose(started.jump(y, 0.8), model.denoise(y, 0.8), atol=0.05)
    loss = consistency_loss(started, y, teacher=model, seed=0).sum()
    loss.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in started.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.parameters())


def test_both_passes_see_one_dropout_mask_and_the_teacher_none():
    class Drop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.seen = nn.Dropout(0.5), []

        def forward(self, x, t):
            mask = self.drop(torch.ones_like(x))
            self.seen.append(mask.detach().clone())
            return mask * x

    net, teacher = Drop(), sf.ScoreModel(Drop(), sf.VP(), "noise", shape=(40,))
    fm = FlowMap(net, sf.VP(), shape=(40,)).train()
    teacher.train()
    x0 = torch.randn(2, 40)
    state = torch.get_rng_state()
    consistency_loss(fm, x0, teacher=teacher, seed=0)
    assert torch.equal(net.seen[0], net.seen[1])
    assert 0.2 < float((net.seen[0] == 0).float().mean()) < 0.8
    assert all(bool((mask == 1).all()) for mask in teacher.net.seen)
    assert teacher.training
    assert torch.equal(torch.get_rng_state(), state)


def test_curricula():
    rho = Karras(11).levels(EDM(), 0.002)
    weights = [0.062633, 0.181737, 0.245501, 0.213494, 0.142446, 0.080605, 0.041080, 0.019580, 0.008944, 0.003980]
    assert Curriculum().probabilities(rho).tolist() == pytest.approx(weights, abs=1e-6)
    assert [Curriculum().count(k) for k in (0, 49_999, 50_000, 399_999)] == [11, 11, 21, 1281]
    u = torch.linspace(0.01, 0.99, 50, dtype=F64)
    for pairs in (Karras(18), Curriculum(total=100), Easy()):
        for step in (0, 60):
            early, late, weight = pairs(u, EDM(), 0.002, step)
            assert bool((late > early).all())
            assert float(early.min()) >= 0.002 * (1 - 1e-12)
            assert float(late.max()) <= 80 * (1 + 1e-12)
            assert bool((weight > 0).all())
    with pytest.raises(ValueError, match="n=1"):
        Karras(1)
    with pytest.raises(ValueError, match="kind='trig'"):
        scm_loss(FlowMap(nn.Identity(), EDM()), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="kind='x'"):
        FlowMap(nn.Identity(), EDM(), "x")
