"""A new solver: one class, and one line in `scorefield.solve` to have it everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import scorefield as sf
from oracles import flow_map, gaussian


@dataclass(frozen=True)
class Midpoint(sf.Solver):
    """Explicit midpoint rule on the probability flow."""

    order = 2
    denoises = False
    flow = True

    def step(self, field, x, t, s, state, noise):
        middle = 0.5 * (t + s)
        return x + (s - t) * field.velocity(x + (middle - t) * field.velocity(x, t), middle), None


def test_a_solver_of_ones_own_samples_and_encodes():
    gm, solver = gaussian(sf.VP(), low=0.5), Midpoint()
    x = gm.sample(4, 0.9, seed=0)
    keywords = {"x_init": x, "t_start": 0.9, "t_min": 0.05, "grid": "log_snr"}
    errors = [
        float((sf.sample(gm, 4, solver, steps=k, **keywords) - flow_map(gm, x, 0.9, 0.05)).abs().max())
        for k in (40, 80)
    ]
    assert errors[1] < errors[0] / 3  # second order
    codes = sf.encode(gm, x, solver, steps=400, t_min=0.9)
    torch.testing.assert_close(sf.decode(gm, codes, solver, steps=400, t_min=0.9), x, rtol=1e-3, atol=1e-3)
    seeds = [3, 4]
    pair = sf.sample(gm, 2, solver, steps=5, seed=seeds)
    assert torch.equal(pair[:1], sf.sample(gm, 1, solver, steps=5, seed=seeds[:1]))


def test_one_line_makes_it_one_of_the_solvers(monkeypatch):
    assert "Midpoint" not in sf.solve.solvers()
    monkeypatch.setattr(sf.solve, "Midpoint", Midpoint, raising=False)
    monkeypatch.setattr(sf.solve, "__all__", [*sf.solve.__all__, "Midpoint"])
    assert sf.solve.solvers()["Midpoint"] is Midpoint


def test_the_list_has_every_solver_of_the_library():
    """None is forgotten: all public subclasses, but those whose steps take more than a model."""

    def below(kind):
        return {kind} | {deeper for child in kind.__subclasses__() for deeper in below(child)}

    found = {
        kind.__name__
        for kind in below(sf.Solver)
        if kind.__module__.startswith("scorefield.solve.") and not kind.__name__.startswith("_")
    }
    bases = {"Solver", "RungeKutta", "EmbeddedRungeKutta"}
    listed = set(sf.solve.solvers())
    assert found - bases == {
        name for name in listed if sf.solve.solvers()[name].__module__.startswith("scorefield.solve.")
    }


@pytest.mark.parametrize("kind", sf.solve.solvers().values(), ids=lambda k: k.__name__)
def test_every_solver_says_what_it_is(kind):
    assert kind.__doc__
    assert isinstance(kind.__module__, str)
    assert hasattr(kind, "order")
