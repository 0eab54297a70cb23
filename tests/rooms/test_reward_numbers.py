"""Numbers of tilted chains in closed form: what a chain remembers, what a gradient costs, and the tilt of K steps."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from scorefield.randomness import FromGenerator
from scorefield.reward import Chain, PolicyGradient, Rollout, lean_adjoint
from scorefield.solve.integrate import Field

F64 = torch.float64


def normal(mean=1.0, variance=0.25, sde=None):
    return sf.GaussianMixture(torch.tensor([[mean]], dtype=F64), variance, None, sde or sf.VP())


def steps_of(chain, model):
    """Slopes, intercepts and standard deviations of the steps of a model of one dimension, (K,) each."""
    at, rows = torch.tensor([[0.0], [1.0]], dtype=F64), []
    with torch.no_grad():
        for k in range(chain.length):
            mean, std = chain.kernel(Field.of(model, {}, 2), at, k)
            rows.append(torch.stack([mean[1, 0] - mean[0, 0], mean[0, 0], std.squeeze()]))
    return torch.stack(rows).unbind(1)


def later(slopes):
    """Product of the slopes after each step, (K,)."""
    return torch.cat([slopes.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=F64)])


def straight(solver, steps):
    return Chain(solver, torch.linspace(1.0, 1e-3, steps + 1, dtype=F64))


# ------------------------------------------------------------------------------------------------ memory and the tilt


def spread(sde, variance, t):
    return sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2


def memory(sde, variance):
    """int_0^T g^2 / c dt by the midpoint rule, in a time that is fine near the data."""
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    t = sde.T * u**2
    return float((sde.g2(t) / spread(sde, variance, t) * 2 * u).mean()) * sde.T


MEMORY = [
    (1.0, 10.05000, {0.1: 0.095615, 0.2: 0.331019, 0.3: 0.595256, 0.5: 0.918935, 1.0: 0.999957}),
    (0.25, 11.43626, {0.1: 0.108066, 0.2: 0.367105, 0.3: 0.642730, 0.5: 0.942678, 1.0: 0.999989}),
    (4.0, 8.66384, {}),
]


@pytest.mark.parametrize(("variance", "known", "shares"), MEMORY)
def test_what_a_chain_forgets(variance, known, shares):
    """int g^2 / c = log(c_T / c_0) + B under VP, and the share 1 - exp(-eta^2 int g^2 / c) of a tilt by noise eta g."""
    found = memory(sf.VP(), variance)
    ends = spread(sf.VP(), variance, torch.tensor([0.0, 1.0], dtype=F64))
    assert found == pytest.approx(known, abs=1e-5)
    assert found == pytest.approx(float(torch.log(ends[1] / ends[0])) + 10.05, abs=1e-5)
    for eta, share in shares.items():
        assert -math.expm1(-(eta**2) * found) == pytest.approx(share, abs=1e-6)


def test_what_a_chain_of_ve_forgets():
    """int g^2 / c = log(c_T / c_0): nothing decays there but by the noise that is added."""
    sde = sf.VE(0.01, 10.0)
    ends = spread(sde, 0.25, torch.tensor([0.0, 1.0], dtype=F64))
    assert memory(sde, 0.25) == pytest.approx(float(torch.log(ends[1] / ends[0])), abs=1e-5)


@pytest.mark.parametrize(("variance", "temperature", "known"), [(1.0, 1.0, 2.159e-5), (0.25, 0.5, 5.398e-6)])
def test_the_kl_that_is_left_at_the_end_of_time(variance, temperature, known):
    """KL(p*_T | p_T): the path's share of KL(p* | p) = 1/2 is the rest (.499978 and .499995)."""
    base = normal(0.3, variance)
    tuned = base.tilted(torch.ones(1), temperature)
    a = sf.VP().alpha(torch.ones((), dtype=F64))
    x = (a * tuned.means).reshape(
        1, 1
    )  # the log-ratio of equal variances is linear, so that its mean is that at the mean
    assert float(tuned.log_prob(x, 1.0) - base.log_prob(x, 1.0)) == pytest.approx(known, rel=3e-4)


def test_the_angle_is_a_better_grid_than_the_time():
    """DDIM(1), 40 steps, N(0, 1/4): 75 % of the variance on a grid uniform in t, 87 % on one uniform in the angle to .01."""
    sde = sf.VP()
    ends = torch.tensor([1.0, 0.01], dtype=F64)
    high, low = torch.atan2(sde.sigma(ends), sde.alpha(ends)).tolist()
    times = sde.inverse_log_snr(-2 * torch.log(torch.tan(torch.linspace(high, low, 41, dtype=F64))))
    for chain, share, kl in ((straight(sf.DDIM(1.0), 40), 0.753, 0.018), (Chain(sf.DDIM(1.0), times), 0.866, 0.0049)):
        slopes, _, std = steps_of(chain, normal(0.0))
        found = float((std * later(slopes)).square().sum()) / 0.25
        assert found == pytest.approx(share, abs=1e-3)
        assert 0.5 * (found - 1 - math.log(found)) == pytest.approx(kl, rel=0.03)  # nats to the data


CHAINS = [
    (sf.DDIM(1.0), 10, 0.11119, 0.5615),
    (sf.DDIM(1.0), 20, 0.15342, 0.7543),
    (sf.DDIM(1.0), 40, 0.18827, 0.8716),
    (sf.DDIM(1.0), 100, 0.21944, 0.9479),
    (sf.DDIM(1.0), 400, 0.24106, 0.9870),
    (sf.EulerMaruyama(), 10, 0.32731, 0.4454),
    (sf.EulerMaruyama(), 20, 0.27528, 0.7369),
    (sf.EulerMaruyama(), 40, 0.26065, 0.8701),
    (sf.EulerMaruyama(), 100, 0.25390, 0.9483),
    (sf.EulerMaruyama(), 400, 0.25099, 0.9871),
]


@pytest.mark.parametrize(("solver", "steps", "known", "before"), CHAINS, ids=lambda v: getattr(type(v), "__name__", ""))
def test_the_tilt_of_a_chain_by_the_adjoint_after_the_step(solver, steps, known, before):
    """Controls -s_k a_{k+1} shift the mean by the chain's own variance times b; a_k, as published, by this share of it."""
    chain, base = straight(solver, steps), normal(0.0)
    slopes, _, std = steps_of(chain, base)
    states = [torch.zeros(1, 1, dtype=F64)] * (steps + 1)
    adjoint = torch.cat(lean_adjoint(chain, Field.of(base, {}, 1), states, -torch.ones(1, 1, dtype=F64))).flatten()
    gain = std**2 * later(slopes)
    shift, early = float(-(gain * adjoint[1:]).sum()), float(-(gain * adjoint[:-1]).sum())
    assert shift == pytest.approx(known, abs=6e-6)
    assert shift == pytest.approx(float((std * later(slopes)).square().sum()), rel=1e-12)
    assert early / shift == pytest.approx(before, abs=6e-5)


# ------------------------------------------------------------------------------------------------ policy gradients


class Shifted(sf.ScoreModel):
    """The base's score + theta, one theta for each sample, so that gradients come one by one."""

    def __init__(self, base, n, theta=0.0):
        super().__init__(torch.nn.Identity(), base.sde, "score", shape=(1,))
        self.base, self.theta = base, torch.nn.Parameter(torch.full((n, 1), theta, dtype=F64))

    def view(self, name, x, t, cond):
        assert name == "score"
        return self.base.score(x, t) + self.theta


CHAIN = straight(sf.EulerMaruyama(), 20)
"""From N(0, 1) towards N(1, 1/4)."""


def moments(theta=0.0):
    """Mean and variance of the end of the chain, and the sum of h g^2, what a unit of theta adds to the score function."""
    slopes, shifts, std = steps_of(CHAIN, normal())
    size = (std**2).sum()
    mean = ((shifts + theta * std**2) * later(slopes)).sum()
    variance = (std * later(slopes)).square().sum() + slopes.prod() ** 2
    return float(mean), float(variance), float((std**2 * later(slopes)).sum()), float(size)


def test_moments_of_a_chain_and_their_gradients():
    mean, variance, slope, size = moments()
    assert (mean, variance, slope) == pytest.approx((1.029138, 0.275281, 0.704868), abs=1e-6)
    assert size == pytest.approx(10.5464, abs=5e-5)
    assert 2 * (2 - mean) * slope == pytest.approx(1.368658, abs=1e-6)
    assert 0.5 * 0.1**2 * size == pytest.approx(0.052732, abs=1e-6)  # KL of theta = .1, step by step


def test_the_limit_of_many_steps():
    """dE[x_0] / dtheta -> int g^2 alpha l_0 / c dt = .757060, by quadrature and by chains of 200 and 400 steps."""
    sde = sf.VP()
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    exact = sde.g2(u**2) * sde.alpha(u**2) * 0.25 / spread(sde, 0.25, u**2)
    assert float((2 * u * exact).mean()) == pytest.approx(0.757060, abs=1e-6)
    found = []
    for steps in (200, 400):
        chain = Chain(sf.EulerMaruyama(), torch.linspace(1.0, 0.0, steps + 1, dtype=F64)[:-1])
        slopes, _, std = steps_of(chain, normal())
        found.append(float((std**2 * later(slopes)).sum()))
    assert 2 * found[1] - found[0] == pytest.approx(0.757060, rel=2e-3)


def gradients(how, n, theta=0.0, move=0.0, reward=lambda x: x[:, 0], seed=0):
    """Gradient of the expected reward by theta, one estimate a sample; after `move`, on the same paths again."""
    draws = torch.Generator().manual_seed(seed)
    start, tuned = torch.randn(n, 1, dtype=F64, generator=draws), Shifted(normal(), n, theta)
    fields = (Field.of(m, {}, n) for m in (tuned, normal()))
    rollout = Rollout(CHAIN, *fields, reward, 1.0, start, FromGenerator(n, draws), draws)
    each, _, _ = how.loss(rollout)
    if move:
        with torch.no_grad():
            tuned.theta += move
        each, _, _ = how.loss(rollout)
    return -torch.autograd.grad(each.sum(), tuned.theta)[0][:, 0]


@pytest.mark.parametrize(("baseline", "known"), [(False, 14.5), (True, 3.4)])
def test_a_baseline_saves_variance(baseline, known):
    """Var of x_0 S, S ~ N(0, 10.5464) the score function: (m^2 + v) 10.5464 + cov^2, without m^2 with a baseline (Isserlis)."""
    mean, variance, slope, size = moments()
    exact = ((0.0 if baseline else mean**2) + variance) * size + slope**2
    assert exact == pytest.approx(known, rel=0.01)
    n = 10_000
    each = gradients(PolicyGradient(kl=False, baseline=baseline), n)
    assert abs(float(each.mean()) - slope) < 4 * math.sqrt(exact / n)
    quartic = float(((each - each.mean()) ** 4).mean())
    assert abs(float(each.var()) - exact) < 4 * math.sqrt((quartic - exact**2) / n)
    assert math.sqrt(exact / 2e5) == pytest.approx(0.0041 if baseline else 0.0085, abs=6e-5)


def test_ratios_of_single_steps_are_biased():
    """theta moved by .1 after the draw, r = -(x - 2)^2: the gradient there is 1.2693, ratios taken one by one say 1.368."""
    mean, _, slope, _ = moments(0.1)
    exact, n = 2 * (2 - mean) * slope, 50_000
    assert exact == pytest.approx(1.2693, abs=1e-4)
    how = PolicyGradient(kl=False, inner=2, clip=1e9)
    each = gradients(how, n, move=0.1, reward=lambda x: -((x[:, 0] - 2) ** 2))
    stderr = float(each.std()) / math.sqrt(n)
    assert abs(float(each.mean()) - 1.3680) < 4 * stderr + 0.013
    assert float(each.mean()) > exact + 4 * stderr
