"""Closed forms of flow maps without training: exact maps, multistep sampling, TrigFlow, average velocities, shortcuts, gaps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import scorefield as sf
from map_oracles import EDM, quadrature
from scorefield.consistency import Karras, consistency_loss, meanflow_loss, scm_loss, shortcut_loss
from scorefield.evaluation.distances import gaussian_w2
from scorefield.flowmap import FlowMap, exact_gaussian_map

F64 = torch.float64


class Exact(FlowMap):
    """The consistency map of N(0, 1/4)."""

    def jump(self, x, t, s=None, **cond):
        return exact_gaussian_map(x, t, self.end if s is None else s, self.sde, 0.0, 0.25)


def exact() -> Exact:
    return Exact(nn.Identity(), EDM(), shape=(1,))


def test_one_step_of_the_exact_map():
    one = torch.ones(1, 1, dtype=F64)
    found = float(exact().jump(one, 80.0))
    assert 80 * found == pytest.approx(0.49999423, abs=1e-8)
    assert math.sqrt(80**2 + 0.25) * found == pytest.approx(0.50000400, abs=1e-8)


@pytest.mark.parametrize(
    ("n", "euler", "heun", "training"),
    [(18, 9.32e-3, 3.35e-3, 4.826e-3), (40, 1.81e-3, 2.65e-4, 9.309e-4), (151, 1.23e-4, 4.49e-6, 6.314e-5)],
)
def test_what_the_exact_map_still_pays(n, euler, heun, training):
    """Root mean square under distillation, by the teacher's step; and the loss of training, which is not 0 there."""
    teacher = sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), 0.25, None, EDM())
    rho, (x, z, w) = Karras(n).levels(EDM(), 0.002), quadrature(2)
    rows = [v.repeat(n - 1, *[1] * (v.ndim - 1)) for v in (0.5 * x, z, w)]
    t = tuple(r.repeat_interleave(len(w)) for r in (rho[:-1], rho[1:]))

    def mean(**options) -> float:
        each = consistency_loss(exact(), rows[0], distance="l2", t=t, noise=rows[1], **options)
        return float((rows[2] * each).sum()) / (n - 1)

    assert math.sqrt(mean(teacher=teacher, solver="euler")) == pytest.approx(euler, rel=5e-3)
    assert math.sqrt(mean(teacher=teacher, solver="heun")) == pytest.approx(heun, rel=5e-3)
    assert mean() == pytest.approx(training, rel=5e-4)


@pytest.mark.parametrize(("tau", "error"), [(None, -3.906e-5), (0.821, -1.057e-5), (5.8, -2.9e-7)])
def test_variance_of_multistep_sampling(tau, error):
    """v -> (s^2 + e^2) / (s^2 + tau^2) (v + tau^2 - e^2): the sampler is linear, so unit vectors give its variance."""
    times = torch.tensor([80.0, 0.002] if tau is None else [80.0, tau, 0.002], dtype=F64)
    start, noise = torch.tensor([[80.0], [0.0]], dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
    x = sf.sample(exact(), 2, sf.Jump(), grid=times, x_init=start, noise=lambda shape: noise)
    assert float(x.square().sum()) / (0.25 + 0.002**2) - 1 == pytest.approx(error, rel=0.02)


def test_two_jumps_do_not_repair_the_bias_of_a_map():
    """A map that is 5 % too wide gives 5 % in one jump and 6.4 % in two, by way of a noise of 0.821."""

    class Wide(Exact):
        def jump(self, x, t, s=None, **cond):
            return 1.05 * super().jump(x, t, s, **cond)

    start, noise = torch.tensor([[80.0], [0.0]], dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
    for times, width in (([80.0, 0.002], 1.05), ([80.0, 0.821, 0.002], 1.0645)):
        grid = torch.tensor(times, dtype=F64)
        x = sf.sample(
            Wide(nn.Identity(), EDM(), shape=(1,)), 2, sf.Jump(), grid=grid, x_init=start, noise=lambda shape: noise
        )
        assert float(x.square().sum()) ** 0.5 / 0.5 == pytest.approx(width, abs=1e-4)


def test_trig_networks_in_closed_form():
    """F of N(0, s^2) data, and its mean gradient of training, which is that of distillation: 0 at the exact network."""
    for s, at in ((0.5, -0.7648235), (1.0, -1.5306322)):
        net = Trig(s)
        assert float(net(torch.full((1, 1), 0.7 / 0.5, dtype=F64), torch.ones(1, dtype=F64))) == pytest.approx(
            at, abs=1e-7
        )
        fm = FlowMap(net, sf.VP(), "trig", shape=(1,), sigma_data=0.5)
        teacher = sf.GaussianMixture(torch.zeros(1, 1, dtype=F64), s**2, None, sf.VP())
        x, z, w = quadrature(3)
        for t in (0.2, 0.5, 0.8):

            def slope(teacher=None, t=t, fm=fm, net=net, x=s * x, z=2 * 0.5 * z, w=w):
                # A large c makes the normalised tangent linear in dx/dt, and with it the gradient.
                loss = scm_loss(fm, x, teacher=teacher, c=1e6, t=t, noise=z)
                return float(torch.autograd.grad((w * loss).sum(), net.gain)[0])

            right = abs(slope()), abs(slope(teacher))
            net.gain.data.fill_(1.05)
            assert slope() == pytest.approx(slope(teacher), rel=1e-3)
            assert max(right) < 1e-4 * abs(slope())
            net.gain.data.fill_(1.0)


class Trig(nn.Module):
    """f = s y / (cos^2 s^2 + sin^2 sd^2)^{1/2} = cos y - sin sd F(y / sd), times a gain that is 1 where it is exact."""

    def __init__(self, s: float, sd: float = 0.5) -> None:
        super().__init__()
        self.s, self.sd, self.gain = s, sd, nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, y, th):
        c, v = torch.cos(th)[:, None], torch.sin(th)[:, None]
        x = y * self.sd
        return self.gain * (c * x - self.s * x / torch.sqrt(c**2 * self.s**2 + v**2 * self.sd**2)) / (v * self.sd)


class Average(nn.Module):
    """u = (1 - (c_r / c_t)^{1/2}) z / (t - r) of N(0, s^2) data, c = (1 - t)^2 s^2 + t^2, times a gain; its limit at r = t."""

    def __init__(self, s: float = 0.5) -> None:
        super().__init__()
        self.s, self.gain = s, nn.Parameter(torch.ones((), dtype=F64))

    def spread(self, t):
        return (1 - t) ** 2 * self.s**2 + t**2

    def forward(self, z, t, span):
        wide = (1 - torch.sqrt(self.spread(t - span) / self.spread(t))) / torch.where(span == 0, 1.0, span)
        now = (t - (1 - t) * self.s**2) / self.spread(t)
        return self.gain * torch.where(span == 0, now, wide)[:, None] * z


def averages(**options) -> tuple[FlowMap, Average]:
    net = Average(**options)
    return FlowMap(net, sf.RectifiedFlow(), "average", shape=(1,)), net


def test_average_velocity_and_its_identity():
    """u(.9, 0, 1) = .45, and the gradient of MeanFlow's loss vanishes at the exact velocity alone."""
    fm, net = averages()
    one = torch.full((1, 1), 0.9, dtype=F64)
    assert float(net(one, torch.ones(1, dtype=F64), torch.ones(1, dtype=F64))) == pytest.approx(0.45, abs=1e-12)
    x, z, w = quadrature(3)
    for pair in ((0.0, 1.0), (0.2, 0.8), (0.5, 0.5)):
        gradients = []
        for gain in (1.0, 1.02):
            with torch.no_grad():
                net.gain.fill_(gain)
            loss = meanflow_loss(fm, 0.5 * x, t=pair, noise=z, power=0.0)
            gradients.append(float(torch.autograd.grad((w * loss).sum(), net.gain)[0]))
        assert abs(gradients[0]) < 1e-10
        assert gradients[1] > 1e-4 or pair == (0.0, 1.0)  # there u does not depend on the rate to first order
        net.gain.data.fill_(1.0)


def test_two_short_jumps_are_a_long_one():
    """The identity holds exactly for the exact velocity; the shortest jumps are plain flow matching."""
    fm, _ = averages()
    x, z, w = quadrature(3)
    for pair in ((0.0, 1.0), (0.25, 0.5), (0.5, 1.0)):
        assert float(shortcut_loss(fm, 0.5 * x, t=pair, noise=z, clip=math.inf).max()) < 1e-24
    wrong, _ = averages(s=0.8)
    assert float((w * shortcut_loss(wrong, 0.5 * x, t=(0.0, 1.0), noise=z, clip=math.inf, target=fm)).sum()) > 1e-3
    bounded = shortcut_loss(fm, 0.5 * x, t=(0.0, 1.0), noise=100 * z, clip=4.0)
    assert float(bounded.max()) > 1.0  # the state of 100 is cut to 4
    plain = shortcut_loss(fm, x.repeat(50, 1), share=0.0, seed=0, levels=4)
    assert plain.shape == (450,)
    assert bool(torch.isfinite(plain).all())
    with pytest.raises(ValueError, match="levels=100"):
        shortcut_loss(fm, x, levels=100)
    with pytest.raises(ValueError, match="kind='average'"):
        shortcut_loss(exact(), x)


def test_the_exact_velocity_is_a_fixed_point_of_shortcuts():
    """Two halves say of the exact average velocity that it is right, and of 1.02 times it that it is wrong."""
    fm, net = averages()
    x, z, w = quadrature(3)

    def slope(gain, **options):
        net.gain.data.fill_(gain)
        loss = shortcut_loss(fm, 0.5 * x, noise=z, clip=math.inf, **options)
        return float(torch.autograd.grad((w * loss).sum(), net.gain)[0])

    for pair in ((0.25, 0.5), (0.5, 1.0), (0.0, 0.5)):
        assert abs(slope(1.0, t=pair)) < 1e-12
        assert abs(slope(1.02, t=pair)) > 1e-5


def test_shortcuts_are_learned_from_flow_matching():
    """Lengths are powers of two, times multiples of them, one in eight is learned from two halves."""
    seen = []

    class Spy(nn.Module):
        def forward(self, z, t, span):
            seen.append((t, span))
            return torch.zeros_like(z)

    fm = FlowMap(Spy(), sf.RectifiedFlow(), "average", shape=(1,))
    x = torch.zeros(8000, 1, dtype=F64)
    loss = shortcut_loss(fm, x, seed=0, levels=16, noise=torch.full_like(x, 2.0))
    (halves, half), _, (t, span) = seen
    long = span > 1 / 16
    assert sorted(set(span.tolist())) == [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0]
    assert bool(((t / span) % 1 == 0).all())
    assert bool((t >= span).all())
    assert bool((t <= 1).all())
    assert abs(len(half) / 8000 - 0.125) < 4 * math.sqrt(0.125 * 0.875 / 8000)
    assert int(long.sum()) == len(half)
    assert torch.equal(halves, t[long])
    assert torch.equal(2 * half, span[long])
    assert torch.equal(
        loss, torch.where(long, 0.0, 4.0).double()
    )  # zeros teach zeros; flow matching learns e - x_0 = 2


MEANS, STDS, WEIGHTS = torch.tensor([-0.6, 0.4]), torch.tensor([0.15, 0.25]), [0.3, 0.7]
GRID = torch.linspace(-2.5, 2.5, 10_001, dtype=F64)


def below(points: torch.Tensor) -> torch.Tensor:
    """Share of the points (n,) that are at most each value of the grid."""
    return torch.searchsorted(points.double().sort().values, GRID, right=True) / len(points)


def test_a_map_of_known_points_is_as_far_from_the_truth_as_they_are():
    """W1(P_n, P) has the mean J / n^(1/2), J = (2 / pi)^(1/2) int (F (1 - F))^(1/2) = .568255; the exact map gives P_n back."""
    truth = sum(w * torch.special.ndtr((GRID - m) / s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))
    width = float(GRID[1] - GRID[0])
    j = math.sqrt(2 / math.pi) * float(torch.sqrt((truth * (1 - truth)).clamp_min(0)).sum()) * width
    assert j == pytest.approx(0.568255, abs=1e-6)
    law = sf.GaussianMixture(MEANS[:, None], STDS.square(), WEIGHTS, EDM())
    for n, repeats in ((100, 60), (1000, 30), (10_000, 15)):
        samples = law.sample(n * repeats, seed=torch.Generator().manual_seed(n)).reshape(repeats, n)
        far = torch.stack([(below(x) - truth).abs().sum() * width for x in samples])
        assert abs(float(far.mean()) - j / math.sqrt(n)) < 4 * float(far.std()) / math.sqrt(repeats)
    points = law.sample(100, seed=0)
    z = torch.special.ndtri((torch.arange(200, dtype=F64) + 0.5) / 200)[:, None]
    known = float((below(points[:, 0]) - truth).abs().sum()) * width
    model = sf.Empirical(points.double(), EDM())
    jumped = sf.sample(model, 200, sf.Dopri5(1e-4, 1e-4), x_init=80 * z, denoise=False)[:, 0]
    assert (
        float((below(jumped) - below(points[:, 0])).abs().sum()) * width < 0.01
    )  # blurred by .002, and one point in 100
    assert float((below(jumped) - truth).abs().sum()) * width == pytest.approx(known, abs=0.01)


def test_pairs_of_training_and_of_distillation():
    """Early points coupled by the late one differ by 2 - 2^{1/2} a dimension (t = 1 to 0 on N(0, 1)), optimally by .404135.

    On the grids of consistency models the gap vanishes with N, in units of the standard deviation at the noisier level.
    """
    x, z, w = quadrature(2)
    sde = EDM()
    late = sde.perturb(x, 1.0, z)
    flow = exact_gaussian_map(late, 1.0, 0.0, sde, 0.0, 1.0)
    assert float((w * torch.square(flow - x)[:, 0]).sum()) == pytest.approx(2 - math.sqrt(2), abs=1e-12)

    def joint(a, b):
        m = torch.cat([a, b], 1)
        return (w[:, None] * m).T @ m

    zero = torch.zeros(2, dtype=F64)
    assert gaussian_w2(zero, joint(late, x), zero, joint(late, flow)) ** 2 == pytest.approx(0.404135, abs=1e-5)
    for n, gap in ((18, 0.198), (40, 0.096), (151, 0.026)):
        rho, worst = Karras(n).levels(sde, 0.002), 0.0
        for a, b in zip(rho[:-1].tolist(), rho[1:].tolist(), strict=True):
            late = sde.perturb(0.5 * x, b, z)
            early, flow = sde.perturb(0.5 * x, a, z), exact_gaussian_map(late, b, a, sde, 0.0, 0.25)
            worst = max(worst, gaussian_w2(zero, joint(late, early), zero, joint(late, flow)) / math.sqrt(0.25 + b * b))
        assert worst == pytest.approx(gap, abs=6e-4)


def test_inpainting_by_jumps_is_what_the_algorithm_says():
    """x <- (1 - m) f(x) + m y, then noise (Song et al. 2023, Alg. 4), on the same draws; the hook noises y afterwards."""
    sde, mask = EDM(), torch.tensor([True, False, False])
    fm = Exact(nn.Identity(), sde, shape=(3,))
    y, times = torch.tensor([[0.7, 0.0, 0.0]], dtype=F64), torch.tensor([80.0, 5.0, 0.8, 0.002], dtype=F64)
    z = torch.randn(4, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = torch.where(mask, y + 80 * z[0], 80 * z[0])
    draws = [z[0]]
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True), 1):
        x = torch.where(mask, y, exact_gaussian_map(x, t, 0.002, sde, 0.0, 0.25))
        x = x + torch.sqrt(s**2 - 0.002**2) * z[i] if float(s) > 0.002 else x
        kept = torch.sqrt(1 - (0.002 / s) ** 2)
        draws += [z[i], kept * z[i]] if float(s) > 0.002 else [z[i]]
    given = iter(draws)
    options = {"grid": times, "noise": lambda shape: next(given), "hooks": [sf.Replace(sf.Mask(mask), y)]}
    found = sf.sample(fm, 2, sf.Jump(), x_init=80 * z[0], full=True, **options)
    assert torch.allclose(found.x, x, atol=1e-12)
    assert torch.equal(found.x[:, 0], torch.full((2,), 0.7, dtype=F64))  # exactly, at the end
    assert torch.equal(found.path[-1], found.x)


def test_restore_takes_replacement_alone():
    fm = Exact(nn.Identity(), EDM(), shape=(4,))
    y = torch.tensor([0.2, -0.1], dtype=torch.float32)
    found = sf.inverse.restore(fm, sf.Downsample(2, dims=1), y, 0.0, n=500, method="replace", steps=4)
    assert found.nfe == 4
    assert torch.allclose(found.samples[0].reshape(500, 2, 2).mean(2), y.expand(500, 2), atol=1e-6)
    with pytest.raises(ValueError, match="needs a score, and a flow map has none"):
        sf.inverse.restore(fm, sf.Downsample(2, dims=1), y)


def test_both_passes_of_every_loss_see_one_dropout_mask():
    seen = []

    class Drop(nn.Module):
        def forward(self, x, t, span=None):
            mask = nn.functional.dropout(torch.ones_like(x), 0.5)
            seen.append(mask.detach().clone())
            return mask * x

    x = torch.ones(3, 40)
    losses = (
        (meanflow_loss, "average"),
        (shortcut_loss, "average"),
        (scm_loss, "trig"),
        (consistency_loss, "consistency"),
    )
    for loss, kind in losses:
        seen.clear()
        options = {"t": (0.25, 0.5)} if loss is shortcut_loss else {}
        state = torch.get_rng_state()
        loss(FlowMap(Drop(), sf.VP(), kind, shape=(40,)), x, seed=0, **options)
        assert len(seen) >= 2
        assert 0.2 < float((seen[0] == 0).float().mean()) < 0.8
        assert all(torch.equal(mask, seen[0]) for mask in seen)
        assert torch.equal(torch.get_rng_state(), state)


def test_jumps_are_cut_to_a_range():
    fm = FlowMap(lambda x, t: 100 * torch.ones_like(x), EDM(), shape=(2,))
    assert float(sf.sample(fm, 4, sf.Jump(low=-1.0, high=0.5), steps=2, seed=0).max()) == 0.5
    with pytest.raises(ValueError, match="low must be below high"):
        sf.Jump(low=1.0, high=0.0)
