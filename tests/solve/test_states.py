"""What solvers remember comes back from the loop, and survives what it should."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import gaussian
from scorefield.randomness import NoNoise, source
from scorefield.solve.integrate import Field, integrate
from scorefield.times import Restart


class Steps(sf.Euler):
    """Euler that writes down where it has been."""

    def step(self, field, x, t, s, state, noise):
        x, _ = super().step(field, x, t, s, None, noise)
        return x, [*(state or []), float(t)]


class Lasting(Steps):
    def risen(self, state):
        return state


def states_of(solver: sf.Solver, grid: list[float]) -> dict:
    gm = gaussian(sf.VP())
    times, x = torch.tensor(grid, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    return integrate(solver, Field(gm, {}, 2), x, times, source(0, 2))[1]


def test_the_loop_returns_what_the_solver_remembers():
    assert states_of(Steps(), [1.0, 0.6, 0.3]) == {0: [1.0, 0.6]}
    gm, x = gaussian(sf.VP()), torch.zeros(1, 3, dtype=torch.float64)
    grid = torch.tensor([1.0, 0.6, 0.3], dtype=torch.float64)
    _, states = integrate(sf.DPMSolver(3), Field(gm, {}, 1), x, grid, NoNoise(1))
    assert [at for at, _ in states[0]] == [0.5 * float(gm.sde.log_snr(t)) for t in (0.6, 1.0)]


def test_each_stage_has_its_own_state():
    assert states_of(sf.PC(Steps(), sf.solve.Identity()), [1.0, 0.6, 0.3]) == {0: [1.0, 0.6], 1: None}


def test_fresh_noise_starts_a_method_anew_unless_it_says_otherwise():
    grid = [1.0, 0.3, 0.6, 0.3, 0.1]
    assert states_of(Steps(), grid) == {0: [0.6, 0.3]}
    assert states_of(Lasting(), grid) == {0: [1.0, 0.6, 0.3]}


@pytest.mark.parametrize("solver", [sf.PC(), sf.PC(correct_first=True), sf.solve.AnalyticAncestral()], ids=repr)
def test_what_is_measured_on_a_pilot_outlives_a_rise_of_the_grid(solver):
    plan = Restart(low=0.2, high=0.5, repeats=2, steps=3, base="uniform")
    x = sf.sample(gaussian(sf.VP()), 2, solver, steps=6, grid=plan, seed=0, pilots=16)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("covariance", ["mean", "full"])
def test_analytic_ancestral_keeps_the_gradient_of_its_network(covariance):
    """The samples of N(mean, 0.3 I) move with the mean one for one."""
    sde, mean = sf.VP(), torch.tensor([0.5, -0.2], dtype=torch.float64, requires_grad=True)

    def net(x, t):
        a, s = sde.alpha(t).unsqueeze(1), sde.sigma(t).unsqueeze(1)
        return s * (x - a * mean) / (0.3 * a**2 + s**2)

    model, start = sf.ScoreModel(net, sde, shape=(2,)), torch.zeros(4, 2, dtype=torch.float64)
    x = sf.sample(model, 4, sf.solve.AnalyticAncestral(covariance), steps=20, seed=0, grad=True, x_init=start)
    x.sum().backward()
    torch.testing.assert_close(mean.grad, torch.full((2,), 4.0, dtype=torch.float64), rtol=1e-3, atol=0)
