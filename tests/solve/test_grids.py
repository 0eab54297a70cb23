"""Every kind of grid means one thing, for every solver; schedules that end in a numerical zero are no special case."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import gaussian, name

WANTS_MORE = ("Fitted", "Identity", "Langevin", "AnnealedLangevin", "Tuned")
SOLVERS = [kind() for word, kind in sf.solve.solvers().items() if word not in WANTS_MORE]
EXACT_IN_THE_LIMIT = [s for s in SOLVERS if s.flow]


def gm() -> sf.GaussianMixture:
    return gaussian(sf.VP())


def run(solver: sf.Solver, grid: object, **keywords: object) -> torch.Tensor:
    return sf.sample(gm(), 2, solver, grid=grid, seed=0, **keywords)


GOOD = torch.linspace(1.0, 1e-3, 6, dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_grid_is_its_times_however_they_are_written(solver):
    right = run(solver, GOOD)
    assert torch.isfinite(right).all()
    for same in (GOOD.tolist(), tuple(GOOD.tolist()), GOOD.numpy(), lambda sde, steps, a, b: GOOD):
        assert torch.equal(run(solver, same), right)
    single = run(solver, GOOD.float())
    torch.testing.assert_close(single, right, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(run(solver, torch.tensor([1.0, 0.5]))).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1.0, 0.5, 0.5, 0.1], "equal or nearly so, number 1 and 2"),
        ([1.0, 0.5, 0.5 - 1e-15, 0.1], "equal or nearly so"),
        ([0.1, 0.5, 1.0], "sampling goes down in time"),
        ([1.0], "at least two times"),
        ([], "at least two times"),
        ([[1.0, 0.1]], "at least two times"),
        ([1.0, math.nan, 0.1], "NaN or infinity"),
        ([math.inf, 0.1], "NaN or infinity"),
        ([1.5, 0.5], "leaves the interval"),
        ([1.0, -0.1], "leaves the interval"),
        ([0.7, 0.1], "before T"),
    ],
    ids=["equal", "nearly-equal", "rising", "single", "empty", "square", "nan", "inf", "beyond", "negative", "late"],
)
def test_what_is_no_grid_is_refused(solver, grid, words):
    with pytest.raises(ValueError, match=words):
        run(solver, torch.tensor(grid))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_short_steps_are_steps(solver):
    """Neighbours a millionth apart leave the sample as it is, to the noise of so short a step."""
    near = torch.tensor([1.0, 0.6, 0.3, 0.3 - 1e-6, 0.1, 1e-3], dtype=torch.float64)
    x, y = run(solver, near), run(solver, torch.tensor([1.0, 0.6, 0.3, 0.1, 1e-3], dtype=torch.float64))
    assert torch.isfinite(x).all()
    if solver.flow:
        torch.testing.assert_close(x, y, rtol=0.3, atol=0.3)  # a multistep method has a point more to lean on


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_rise_in_between_adds_noise(solver):
    x = run(solver, torch.tensor([1.0, 0.5, 0.1, 0.4, 0.1, 1e-3], dtype=torch.float64))
    assert torch.isfinite(x).all()


def test_codes_need_times_that_go_one_way():
    x = gm().sample(2, seed=0)
    up = torch.linspace(1e-3, 1.0, 200, dtype=torch.float64)
    codes = sf.encode(gm(), x, sf.solve.RK4(), grid=up)
    torch.testing.assert_close(codes, sf.encode(gm(), x, t_min=1e-3), rtol=1e-2, atol=1e-2)
    assert torch.equal(codes, sf.encode(gm(), x, sf.solve.RK4(), grid=up.flip(0)))
    for call in (sf.encode, sf.decode):
        with pytest.raises(ValueError, match="turns round"):
            call(gm(), x, sf.solve.RK4(), grid=[1e-3, 0.5, 0.3, 1.0])


def test_the_grid_says_where_states_start():
    gaussian_, x = gm(), gm().sample(2, 0.6, seed=0)
    a = sf.sample(gaussian_, 2, sf.Heun(), grid=[0.6, 0.3, 1e-3], x_init=x)
    assert torch.equal(a, sf.sample(gaussian_, 2, sf.Heun(), grid=[0.6, 0.3, 1e-3], x_init=x, t_start=0.6))
    with pytest.raises(ValueError, match=r"grid starts at 0.6, not at t_start=0.8"):
        sf.sample(gaussian_, 2, sf.Heun(), grid=[0.6, 0.3, 1e-3], x_init=x, t_start=0.8)


class Cosine(sf.GaussianSDE):
    """alpha(T) = 6e-17 by rounding, where it is 0."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)


class Shifted(sf.GaussianSDE):
    """Nichol & Dhariwal 2021, eq. 17, with s = 0.008."""

    def alpha(self, t):
        return torch.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008)

    def sigma(self, t):
        return torch.sqrt((1 - self.alpha(t) ** 2).clamp_min(0.0))


class Sigmoid(sf.GaussianSDE):
    """Jabri et al. 2023, Alg. 1: alpha^2 falls along a sigmoid, rescaled to end at 0."""

    def alpha(self, t):
        ends = [1 / (1 + math.exp(-v)) for v in (-3.0, 3.0)]
        return torch.sqrt(((ends[1] - torch.sigmoid(6 * t - 3)) / (ends[1] - ends[0])).clamp_min(0.0))

    def sigma(self, t):
        return torch.sqrt((1 - self.alpha(t) ** 2).clamp_min(0.0))


class Polynomial(sf.GaussianSDE):
    def alpha(self, t):
        return 1 - t**2

    def sigma(self, t):
        return torch.sqrt((1 - self.alpha(t) ** 2).clamp_min(0.0))


SCHEDULES = [Cosine(), Shifted(), Sigmoid(), Polynomial()]
NEEDS_ALPHA = ("ProbabilityFlow",)  # says so in its docstring


@pytest.mark.parametrize("sde", SCHEDULES, ids=name)
@pytest.mark.parametrize("solver", [s for s in SOLVERS if name(s) not in NEEDS_ALPHA], ids=name)
def test_a_numerical_zero_at_an_end_is_zero(solver, sde):
    """Samples of N(1, 0.3^2): finite, and near it, from the very first step at alpha(T) = 0."""
    model = sf.GaussianMixture(torch.ones(1, 2, dtype=torch.float64), 0.09, None, sde)
    steps = None if solver.adapts else 30
    if solver.adapts:  # a tolerance that suits the bars
        solver = type(solver)(*([0.1] * 2 if isinstance(solver, sf.solve.AdaptiveSDE) else [1e-3] * 2))
    x = sf.sample(model, 32, solver, steps=steps, seed=0, t_min=2e-3)
    assert torch.isfinite(x).all()
    assert x.mean() == pytest.approx(1.0, abs=0.15)  # four standard errors
    assert x.std() == pytest.approx(0.3, abs=0.12)


@pytest.mark.parametrize(("pilots", "bar"), [(None, 0.1), (256, 0.005)])
@pytest.mark.parametrize("sde", SCHEDULES, ids=name)
def test_the_default_is_near_the_exact_flow_on_such_schedules(sde, pilots, bar):
    model = gaussian(sde)
    x = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = sf.sample(model, 16, sf.Dopri5(1e-6, 1e-6), x_init=x, denoise=True)
    own = sf.sample(model, 16, x_init=x, steps=20, pilots=pilots)
    assert float((own - exact).square().mean().sqrt()) < bar
