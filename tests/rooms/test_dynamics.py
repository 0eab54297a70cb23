"""The exact model of a data set, and dynamics learned from pairs of states (Liu et al. 2024)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.dynamics import StochasticMap, _labels, learn_flow_map, pairs_of
from scorefield.empirical import Empirical, neighbours, posterior_mean
from scorefield.errors import ScorefieldWarning

F64 = torch.float64
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "27_sdelearn_ode.safetensors"
SDES = [sf.VP(), sf.VE(), sf.SubVP()]


@pytest.mark.parametrize("sde", SDES)
def test_empirical_is_the_mixture_of_point_masses(sde):
    points = torch.randn(40, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    gm = sf.GaussianMixture(points, 0.0, None, sde)
    own = Empirical(points, sde)
    x = 2 * torch.randn(6, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.05, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=F64)
    for view in ("denoise", "score", "noise", "velocity"):
        a, b = getattr(own, view)(x, t), getattr(gm, view)(x, t)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), view
    assert torch.allclose(own.log_prob(x, t), gm.log_prob(x, t), atol=1e-9)
    near = own.denoise(points[:5] + 1e-6, 0.0)
    assert torch.allclose(near, points[:5], atol=1e-12)


def test_conditions_weigh_the_points():
    """One weighted mixture for each condition, all neighbours or the nearest."""
    g = torch.Generator().manual_seed(0)
    points, given = torch.randn(60, 2, dtype=F64, generator=g), torch.randn(60, 2, dtype=F64, generator=g)
    x, at = torch.randn(4, 2, dtype=F64, generator=g), torch.randn(4, 2, dtype=F64, generator=g)
    for count in (None, 25):
        own = Empirical(points, sf.VP(), given, (0.4, 0.7), count)
        for i in range(4):
            squared = torch.square((at[i] - given) / torch.tensor([0.4, 0.7])).sum(1)
            near = squared.argsort()[: count or 60]
            gm = sf.GaussianMixture(points[near], 0.0, torch.exp(-0.5 * squared[near]), sf.VP())
            found = own.score(x[i : i + 1], 0.4, given=at[i : i + 1])
            assert torch.allclose(found, gm.score(x[i : i + 1], 0.4), atol=1e-9)
    with pytest.raises(ValueError, match="takes given="):
        own.score(x, 0.4)
    with pytest.raises(ValueError, match="bandwidth=None"):
        Empirical(points, sf.VP(), given)
    with pytest.raises(ValueError, match="neighbours=61"):
        Empirical(points, sf.VP(), given, 1.0, 61)
    with pytest.raises(ValueError, match="points: 3 of 3 entries are NaN"):
        Empirical(torch.full((3, 1), math.nan), sf.VP())


def test_neighbours_on_a_line_are_those_of_all_distances():
    g = torch.Generator().manual_seed(0)
    known, wanted = torch.randn(300, 1, dtype=F64, generator=g), 2 * torch.randn(50, 1, dtype=F64, generator=g)
    index, squared = neighbours(known, wanted, torch.tensor([0.5]), 17)
    every = torch.square((wanted - known.T) / 0.5)
    expected = every.topk(17, largest=False)[0].sort(1)[0]
    assert torch.allclose(squared.sort(1)[0], expected, atol=1e-12)
    assert torch.allclose(every.gather(1, index), squared, atol=1e-12)


def test_labels_are_weighted_quantiles():
    """In one dimension the flow map is the quantile map of the weighted points, away from its jumps."""
    g = torch.Generator().manual_seed(0)
    states = torch.zeros(400, 1, dtype=F64)
    increments = torch.distributions.Exponential(1.0).icdf(torch.rand(400, 1, dtype=F64, generator=g))
    z = torch.linspace(-1.5, 1.5, 9, dtype=F64)[:, None]
    found = _labels(states, increments, torch.zeros(9, 1, dtype=F64), z, torch.ones(1, dtype=F64), 400, False)
    order = increments.flatten().sort()[0]
    expected = order[(torch.special.ndtr(z.flatten()) * 400).long()]
    assert float((found.flatten() - expected).abs().median()) < 5e-3


def ornstein_uhlenbeck(n: int, dt: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact pairs of dX = (1.2 - X) dt + 0.3 dW with states uniform on [0, 2.5]."""
    g = torch.Generator().manual_seed(seed)
    x = 2.5 * torch.rand(n, 1, dtype=F64, generator=g)
    decay = math.exp(-dt)
    std = 0.3 * math.sqrt((1 - decay**2) / 2)
    return x, 1.2 + decay * (x - 1.2) + std * torch.randn(n, 1, dtype=F64, generator=g)


def test_an_ornstein_uhlenbeck_process_is_learned():
    x, after = ornstein_uhlenbeck(8000, 0.05)
    fm = learn_flow_map(x, after, 0.05, neighbours=600, labels=1000, steps=250, seed=0, progress=False)
    found = fm.moments(torch.tensor([[0.5], [1.2], [2.0]]))
    exact = 0.3 * math.sqrt((1 - math.exp(-0.1)) / 0.1)
    assert found.diffusion.flatten().tolist() == pytest.approx([exact] * 3, rel=0.05)
    drift = (1 - math.exp(-0.05)) / 0.05 * (1.2 - torch.tensor([0.5, 1.2, 2.0], dtype=F64))
    assert bool(((found.drift.flatten() - drift).abs() < 4 * found.stderr.flatten()).all())
    path = fm.rollout(torch.full((400, 1), 0.3), 120, seed=1)
    assert path.shape == (121, 400, 1)
    assert float(path[-1].mean()) == pytest.approx(1.2, abs=0.06)
    assert float(path[-1].std()) == pytest.approx(0.2121, rel=0.15)
    again = fm.rollout(torch.full((400, 1), 0.3), 120, seed=1)
    assert torch.equal(path, again)


def test_series_become_pairs():
    series = torch.arange(6.0)
    x, after = pairs_of(series, 1.0)
    assert torch.equal(after - x, torch.ones(5, 1))
    for arguments, match in (
        ((torch.tensor([1.0]), 1.0), "at least 2"),
        ((torch.tensor([1.0, math.nan]), 1.0), "NaN or infinite"),
        ((series, 0.0), "dt=0"),
        ((series, 1.0, torch.tensor([0.0, 1, 1, 2, 3, 4])), "without duplicates"),
        ((series, 0.3, torch.arange(6.0)), "is not the time between"),
    ):
        with pytest.raises(ValueError, match=match):
            pairs_of(*arguments)
    with pytest.raises(ValueError, match="5 pairs"):
        learn_flow_map(series[:5], series[1:], 1.0)
    with pytest.raises(ValueError, match="entries are NaN or infinite; remove these pairs"):
        learn_flow_map(torch.full((20, 1), math.nan), torch.zeros(20, 1), 1.0)


def test_gaps_and_paths_leave_pairs_out():
    series, time = torch.arange(6.0), torch.tensor([0.0, 1, 2, 5, 6, 7])
    x, after = pairs_of(series, 1.0, path=torch.tensor([0, 0, 0, 1, 1, 1]))
    assert x.flatten().tolist() == [0, 1, 3, 4]
    with pytest.warns(ScorefieldWarning, match="1 of 5 steps do not take dt=1: these gaps are left out"):
        x, after = pairs_of(series, 1.0, time)
    assert (x.flatten().tolist(), after.flatten().tolist()) == ([0, 1, 3, 4], [1, 2, 4, 5])
    restarted = torch.tensor([0.0, 1, 2, 0, 1, 2])
    x, _ = pairs_of(series, 1.0, restarted, torch.tensor([0, 0, 0, 1, 1, 1]))  # time begins anew with a path
    assert x.flatten().tolist() == [0, 1, 3, 4]
    for path, match in ((torch.arange(6), "no two states follow"), (torch.arange(5), "for 6 states")):
        with pytest.raises(ValueError, match=match):
            pairs_of(series, 1.0, path=path)


class Line(sf.GaussianSDE):
    """alpha = 1 - t, sigma^2 = t: the process of the paper."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return torch.sqrt(t)


def normal(mean, std, sde):
    return sf.GaussianMixture(torch.tensor([[mean]], dtype=F64), std**2, None, sde)


def test_the_rates_of_the_process():
    t = torch.linspace(0.01, 0.99, 20, dtype=F64)
    assert torch.allclose(Line().f(t), -1 / (1 - t), rtol=1e-12)
    assert torch.allclose(Line().g2(t), (1 + t) / (1 - t), rtol=1e-12)


class Held(sf.GaussianSDE):
    """One alpha and one variance at all times."""

    def __init__(self, alpha, variance):
        self.a, self.v = alpha, variance

    def alpha(self, t):
        return self.a + 0 * t

    def sigma(self, t):
        return self.v.sqrt() + 0 * t


NARROWED = [
    (0.3, 50, "uniform", 0.8722),
    (1.0, 50, "uniform", 0.9681),
    (0.3, 100, "uniform", 0.9252),
    (1.0, 100, "uniform", 0.9831),
    (0.3, 50, "geometric", 0.9650),
    (1.0, 50, "geometric", 0.9226),
    (0.3, 100, "geometric", 0.9822),
    (1.0, 100, "geometric", 0.9610),
]


@pytest.mark.parametrize(("std", "steps", "grid", "known"), NARROWED)
def test_a_first_order_solver_narrows_the_labels(std, steps, grid, known):
    """The flow map of N(m, s^2) is m + s z; DDIM has its mean and this share of its deviation, geometric to 1e-4."""
    z, last = torch.tensor([[-1.0], [1.0]], dtype=F64), torch.zeros(1, dtype=F64)
    times = torch.linspace(1 - 1e-9, 0.0, steps + 1, dtype=F64)
    if grid == "geometric":
        times = torch.cat([torch.logspace(math.log10(1 - 1e-9), -4, steps, dtype=F64), last])
    y = sf.sample(normal(0.5, std, Line()), 2, sf.DDIM(), grid=times, x_init=z)
    assert float((y[1] - y[0]) / (2 * std)) == pytest.approx(known, abs=6e-5)
    assert float(y.mean()) == pytest.approx(0.5, abs=1e-8)


@pytest.mark.parametrize(
    ("std", "steps", "known", "off"), [(0.3, 100, 1.0292, 6.9e-3), (1.0, 100, 1.0143, None), (0.3, 1000, 1.0029, 7e-4)]
)
def test_the_official_discretisation_is_regular_by_its_step(std, steps, known, off):
    """Explicit Euler of alpha = 1 - t + h, sigma^2 = t + h read at the end of each step: too wide, and its mean is off."""
    h, x = 1 / steps, torch.tensor([[-1.0], [1.0]], dtype=F64)
    for j in range(steps):
        v = torch.tensor(1 - j * h, dtype=F64)  # t + h at the end of the step; alpha = 1 - v + 2 h there
        alpha = 1 - (v - h) + h
        score = normal(0.5, std, Held(alpha, v)).score(x, 0.5)
        x = x - h * (-x / alpha - 0.5 * (1 + 2 * v / alpha) * score)
    assert float((x[1] - x[0]) / (2 * std)) == pytest.approx(known, abs=6e-5)
    if off is not None:
        assert float(x.mean()) - 0.5 == pytest.approx(off, rel=0.01)


@pytest.mark.parametrize("std", [0.3, 1.0])
def test_labels_of_a_normal_law_are_exact_by_the_adaptive_solver_and_in_the_angle(std):
    z = torch.tensor([[-1.0], [1.0]], dtype=F64)
    exact = sf.sample(normal(0.5, std, Line()), 2, sf.Dopri5(1e-8, 1e-8), x_init=z, t_start=1 - 1e-9, t_min=0.0)
    assert torch.allclose(exact, 0.5 + std * z, atol=1e-8)
    unmoved = sf.sample(normal(0.0, 1.0, sf.VP()), 2, sf.Heun(), x_init=z, steps=4)  # standardised: the state stays
    assert torch.allclose(unmoved, z, atol=1e-12)


def test_labels_of_weighted_points_are_their_quantiles():
    """200 exponential points weighted by a kernel: the data point of the weighted quantile, but next to a jump of it."""
    g = torch.Generator().manual_seed(0)
    points, states = (torch.rand(200, 1, generator=g, dtype=F64) for _ in range(2))
    points = -torch.log1p(-points)
    model, at = Empirical(points, Line(), states, 0.3), torch.full((40, 1), 0.4, dtype=F64)
    share = (torch.arange(40, dtype=F64) + 0.5) / 40
    weights = torch.softmax(-0.5 * torch.square((states[:, 0] - 0.4) / 0.3), 0)
    order = points[:, 0].argsort()
    edges = weights[order].cumsum(0)
    exact = points[order, 0][torch.searchsorted(edges, share)]
    z = torch.special.ndtri(share)[:, None]
    y = sf.sample(model, 40, sf.Dopri5(1e-6, 1e-6), x_init=z, t_start=1 - 1e-9, t_min=1e-6, denoise=True, given=at)[
        :, 0
    ]
    gap = (y - exact).abs()
    assert float(gap.median()) < 1e-9
    inside = (share[:, None] - edges).abs().amin(1) > 1e-4
    assert int(inside.sum()) > 35
    assert float(gap[inside].max()) < 2e-3


def test_the_flow_map_of_a_mixture_is_its_quantile_map():
    """.3 N(-1.2, .09) + .7 N(.8, .25), standardised: F^-1(Phi(z)) under plain VP, also at the labels' loose tolerance."""
    m, v, w = (torch.tensor(a, dtype=F64) for a in ([-1.2, 0.8], [0.09, 0.25], [0.3, 0.7]))
    centre = w @ m
    scale = torch.sqrt(w @ (v + m**2) - centre**2)
    m, v = (m - centre) / scale, v / scale**2
    model = sf.GaussianMixture(m[:, None], v, w.tolist(), sf.VP())
    z = torch.linspace(-2.5, 2.5, 41, dtype=F64)[:, None]
    low, high = torch.full_like(z, -6), torch.full_like(z, 6)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle - m) / v.sqrt()) @ w < torch.special.ndtr(z[:, 0])
        low, high = torch.where(below[:, None], middle, low), torch.where(below[:, None], high, middle)
    for tolerance, bar in ((1e-9, 3e-7), (1e-3, 5e-3)):
        solution = sf.sample(model, len(z), sf.Dopri5(tolerance, tolerance), x_init=z, t_min=1e-9, full=True)
        assert float((solution.x - low).abs().max()) < bar
        assert tolerance < 1e-6 or abs(float(solution.x.std() / low.std()) - 1) < 5e-4


@pytest.mark.parametrize(("x", "nu", "known"), [(0.7, 0.1, -0.01743), (1.2, 0.1, 0.00365), (0.7, 0.05, -0.00441)])
def test_a_kernel_biases_the_drift_by_its_formula(x, nu, known):
    """nu^2 (b'' / 2 + b' p' / p) for the double well over states of density p = N(0, 1), here quantiles of it."""
    states = torch.special.ndtri((torch.arange(20_000, dtype=F64) + 0.5) / 20_000)[:, None]
    drift = states - states**3
    own = Empirical(drift, Line(), states, nu)
    found = float(own.denoise(torch.zeros(1, 1, dtype=F64), 1.0, given=torch.tensor([[x]], dtype=F64)))
    assert found - (x - x**3) == pytest.approx(known, abs=2e-5)
    assert known == pytest.approx(nu**2 * (-3 * x - x * (1 - 3 * x**2)), abs=3e-4)


def test_a_kernel_biases_the_diffusion_by_its_formula():
    """Variance of the increments near x = 1.2, nu = .1: sigma^2 + dt nu^2 b'^2, a diffusion of .50108."""
    dt, states = 0.01, torch.special.ndtri((torch.arange(20_000, dtype=F64) + 0.5) / 20_000)[:, None]
    noise = 0.5 * math.sqrt(dt)
    steps = torch.cat([(states - states**3) * dt + noise, (states - states**3) * dt - noise])
    own = Empirical(torch.cat([steps, steps**2], 1), Line(), torch.cat([states, states]), 0.1)
    first, second = own.denoise(torch.zeros(1, 2, dtype=F64), 1.0, given=torch.tensor([[1.2]], dtype=F64))[0]
    assert float(torch.sqrt((second - first**2) / dt)) == pytest.approx(0.50108, abs=2e-5)


def test_effective_pairs_have_a_formula():
    """n = 2 pi^(1/2) nu M p erf(R / 2^(1/2) nu)^2 / erf(R / nu), R = K / (2 M p): 1,949 for 40,000 states on [0, 2.5]."""
    M, K, nu, p = 40_000, 2048, 0.05, 0.4
    states = 2.5 * (torch.arange(M, dtype=F64)[:, None] + 0.5) / M
    reach = K / (2 * M * p)
    exact = 2 * math.sqrt(math.pi) * nu * M * p * math.erf(reach / (math.sqrt(2) * nu)) ** 2 / math.erf(reach / nu)
    assert exact == pytest.approx(1949, abs=1)
    fm = StochasticMap(states, 0.03 * torch.randn_like(states), 0.01, torch.tensor([nu], dtype=F64), K)
    assert float(fm.effective_pairs(torch.tensor([[1.2]], dtype=F64))) == pytest.approx(exact, rel=2e-3)
    found = fm.double().moments(torch.tensor([[1.2]]))
    assert torch.allclose(found.stderr, found.diffusion / torch.sqrt(0.01 * found.pairs)[:, None])
    assert 0.3 / math.sqrt(0.01 * exact) == pytest.approx(0.068, abs=1e-4)  # a drift off by .1 is no fault


class Exact(StochasticMap):
    """The map of dX = (1.2 - X) dt + 0.3 dW."""

    def __init__(self, dt):
        states = torch.linspace(0, 2.5, 400, dtype=F64)[:, None]
        super().__init__(states, torch.ones_like(states), dt, torch.ones(1, dtype=F64), 40)

    def increment(self, x, z):
        return -(1.2 - x) * math.expm1(-self.dt) + 0.3 * math.sqrt(-math.expm1(-2 * self.dt) / 2) * z


def test_exact_maps_compose_to_the_process():
    """n steps are one of n dt: mean and variance, linear in the noise, to rounding; diffusion .298506 and std .212132."""
    fm, n = Exact(0.01), 30
    path = fm.rollout(torch.tensor([[0.3], [2.0]], dtype=F64), n, seed=4)
    g, x = torch.Generator().manual_seed(4), torch.tensor([[0.3], [2.0]], dtype=F64)
    noise = [torch.randn(2, 1, generator=g, dtype=F64) for _ in range(n)]
    decay, one = math.exp(-0.01), 0.3 * math.sqrt(-math.expm1(-0.02) / 2)
    added = sum(one * decay ** (n - 1 - k) * z for k, z in enumerate(noise))
    assert torch.allclose(path[-1], 1.2 + decay**n * (x - 1.2) + added, atol=1e-12)
    variance = sum(one**2 * decay ** (2 * k) for k in range(n))
    assert variance == pytest.approx(0.09 * -math.expm1(-2 * n * 0.01) / 2, abs=1e-15)
    found = fm.moments(torch.tensor([[1.2]], dtype=F64), draws=200_000)
    assert float(found.diffusion) == pytest.approx(0.298506, rel=4 * math.sqrt(1 / 2 / 200_000))
    assert float(found.drift.abs()) < 1e-12  # opposite noises


def test_a_long_run_forgets_its_start_or_says_that_it_does_not():
    found = Exact(0.1).stationary(seed=0)
    assert found.settled
    assert float(found.samples.std()) == pytest.approx(0.212132, rel=4 / math.sqrt(2 * 4000) + 0.01)
    assert float(found.samples.mean()) == pytest.approx(1.2, abs=4 * 0.212 / math.sqrt(4000) + 0.01)
    early = Exact(0.001).stationary(most=100, seed=0)  # a tenth of the time that it takes
    assert not early.settled
    assert early.steps == 100
    with pytest.raises(ValueError, match="walkers=2"):
        Exact(0.1).stationary(2)


class Linear(StochasticMap):
    """The exact map of dX = -rate X dt + s dW, learned from a path of its own; beyond `wall` it is driven outwards."""

    def __init__(self, rate, rows=4000, dt=0.05, seed=0, wall=math.inf):
        z = torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=F64).tolist()
        self.decay, self.wall = math.exp(-rate * dt), wall
        self.noise = 0.4 * math.sqrt(-math.expm1(-2 * rate * dt) / (2 * rate) if rate else dt)
        x = [0.0]
        for v in z:
            x.append(self.decay * x[-1] + self.noise * v)
        states = torch.tensor(x, dtype=F64)[:, None]
        super().__init__(states[:-1], states.diff(dim=0), dt, torch.ones(1, dtype=F64), 40)

    def increment(self, x, z):
        out = (self.decay - 1) * x + self.noise * z
        return torch.where(x.abs() > self.wall, 0.1 * x, out)


@pytest.mark.parametrize("seed", range(4))
def test_a_stationary_law_is_told_though_a_few_paths_are_beyond_the_data(seed):
    """Of 50 independent states the largest is exceeded by 1 in 51, at either end: 4 %, and by chance more."""
    found = Linear(1.0, rows=1000, seed=seed).stationary(seed=seed)
    assert found.settled
    exact = 0.4 / math.sqrt(2)
    assert float(found.samples.std()) == pytest.approx(exact, rel=4 / math.sqrt(2 * 4000) + 0.01)


@pytest.mark.parametrize("seed", range(2))
def test_what_has_no_stationary_law_is_given_none(seed):
    """Brownian motion, growth, and a well whose rim is crossed for good."""
    brown, grows = Linear(0.0, seed=seed).stationary(seed=seed), Linear(-0.2, 400, seed=seed).stationary(seed=seed)
    assert not brown.settled
    assert not brown.escaping  # as far as 500 steps say
    assert brown.steps == 500
    assert not grows.settled
    leaks = Linear(1.0, seed=seed, wall=0.95).stationary(seed=seed)
    assert leaks.gap < leaks.chance
    assert leaks.outside < 0.25
    assert leaks.escaping
    assert not leaks.settled


def test_states_outside_of_the_data_are_warned_of():
    with pytest.warns(ScorefieldWarning, match="1 of 2 states lie outside of the data"):
        Exact(0.1).moments(torch.tensor([[1.0], [3.0]]))


@pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")
def test_recorded_labels_by_the_official_discretisation():
    """Explicit Euler of the flow of alpha = 1 - t + h, sigma^2 = t + h, every coefficient read one step too early in time.

    The score is that of the weighted points, here under a process that has this alpha and sigma.
    """
    r, steps = load_file(RECORDING), 200
    h = 1 / steps

    class Shifted(sf.GaussianSDE):
        def alpha(self, t):
            return 1 - t + h

        def sigma(self, t):
            return torch.sqrt(t + h)

    squared = torch.square(r["x_query"].unsqueeze(1) - r["x_samples"]).sum(2)
    z = r["z"]
    for j in range(steps):
        t = 1 - (j + 1) * h  # the end of the step
        alpha, variance = 1 - t + h, t + h
        time = torch.full((), t, dtype=F64)
        data = posterior_mean(z, r["increments"], -0.5 * squared, Shifted(), time)
        score = (alpha * data - z) / variance
        f, g2 = -1 / alpha, 1 + 2 / alpha * variance
        z = z - h * (f * z - 0.5 * g2 * score)
        if j + 1 == steps // 2:
            assert torch.allclose(z, r["state_half"], atol=1e-10)
    assert torch.allclose(z, r["y"], atol=1e-9)


def test_an_exact_posterior_is_sampled_by_the_door():
    """Pairs (theta, y) of a Gaussian: E[theta | y] = 0.5 y; a kernel of width 0.1 in y adds its own."""
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(4000, 1, generator=g)
    y = theta + torch.randn(4000, 1, generator=g)
    exact = sf.Empirical(theta, sf.VP(), given=y, bandwidth=0.1)
    x = sf.sample(exact, 400, sf.DDIM(eta=1.0), steps=20, seed=0, given=torch.tensor([[1.0]]).expand(400, 1))
    assert abs(float(x.mean()) - 0.5) < 4 * 0.71 * (1 / 400 + 1 / 350) ** 0.5  # 400 draws, and about 350 pairs near y
    with pytest.raises(ValueError, match=r"gven= is no argument here.*did you mean given"):
        sf.sample(exact, 2, steps=2, gven=torch.zeros(2, 1))
