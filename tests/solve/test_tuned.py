"""Solvers and grids fitted to a model, and the default that fits itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import scorefield as sf
from oracles import PAPER, flow_map, gaussian, mixture, name
from scorefield.solve.fitted import _KEPT, fit_grid, pilot
from scorefield.times import FittedGrid, sampling_grid


@pytest.fixture(scope="module")
def gm() -> sf.GaussianMixture:
    return mixture(sf.VP())


def start(model: sf.ScoreModel, n: int = 64) -> Tensor:
    return model.sde.prior((n, *model.shape)).sample(seed=5, dtype=torch.float64)


def exact(model: sf.GaussianMixture, x: Tensor) -> Tensor:
    """Where the flow ends, with the last denoising."""
    sde = model.sde
    return model.denoise(flow_map(model, x, sde.T, sde.t_min), sde.t_min)


def rmse(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().mean().sqrt())


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("steps", [5, 12])
def test_the_default_has_a_fraction_of_the_error_of_a_general_solver(sde, steps):
    """Starts that the fit has not seen; as many evaluations for both."""
    model = gaussian(sde)
    x = start(model)
    own = sf.sample(model, 64, steps=steps, x_init=x, full=True)
    assert (own.nfe == steps).all()
    general = sf.sample(model, 64, sf.UniPC(), steps=steps - 1, x_init=x)
    assert rmse(own.x, exact(model, x)) < rmse(general, exact(model, x)) / 5


def test_more_evaluations_less_error(gm):
    x = start(gm, 32)
    truth = sf.sample(gm, 32, sf.Dopri5(1e-8, 1e-8), x_init=x, denoise=True)
    errors = [rmse(sf.sample(gm, 32, steps=k, x_init=x), truth) for k in (3, 6, 24)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_samples_of_the_default_are_their_own(gm):
    both = sf.sample(gm, 3, steps=6, seed=[7, 8, 9])
    alone = torch.cat([sf.sample(gm, 1, steps=6, seed=s) for s in (7, 8, 9)])
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-12)


def test_a_fit_does_not_depend_on_what_was_sampled_before():
    first, second = mixture(sf.VP()), mixture(sf.VP())
    sf.sample(second, 5, steps=4, seed=11)
    assert torch.equal(sf.sample(first, 2, steps=6, seed=0), sf.sample(second, 2, steps=6, seed=0))


class Counting(torch.nn.Module):
    """A linear denoiser with one weight, which counts the samples it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.seen = 0

    def forward(self, x, t):
        self.seen += len(x)
        return torch.tanh(self.weight * x)


def test_the_fit_is_made_once_and_again_when_a_weight_changes():
    net = Counting()
    model = sf.ScoreModel(net, sf.VP(), "data", shape=(3,))
    counts = []
    for change in (False, False, True, False):
        if change:
            with torch.no_grad():
                net.weight.mul_(0.5)
        net.seen = 0
        sf.sample(model, 2, steps=4, seed=0)
        counts.append(net.seen)
    assert counts[1] == counts[3] == 2 * 4
    assert counts[0] == counts[2] > 2 * 4


@pytest.mark.parametrize(
    "keywords",
    [
        {"grid": "karras"},
        {"t_min": 1e-2},
        {"denoise": False},
        {"grad": True},
        {"hooks": [lambda x, t, field, noise: x]},
    ],
    ids=lambda k: next(iter(k)),
)
def test_what_changes_the_way_gets_the_general_solver(keywords):
    net = Counting()
    model = sf.ScoreModel(net, sf.VP(), "data", shape=(3,))
    own = sf.sample(model, 2, steps=4, seed=0, **keywords)
    assert net.seen <= 2 * 5
    assert torch.equal(own, sf.sample(model, 2, sf.DPMSolver(), steps=4, seed=0, **keywords))


def test_guided_models_get_the_general_solver(gm):
    guided = gm | sf.ClassifierGuidance(lambda x, t: gm.posterior(x, t).log(), 0, 1.0)
    own, general = (sf.sample(guided, 2, s, steps=4, seed=0) for s in (None, sf.DPMSolver()))
    assert torch.equal(own, general)


def test_a_model_that_is_not_finite_gets_the_general_solver():
    model = sf.ScoreModel(lambda x, t: x / 0.0, sf.VP(), "data", shape=(3,))
    with pytest.warns(RuntimeWarning, match="left the finite numbers"):
        sf.sample(model, 2, steps=4, seed=0)
    assert all(kept[1] is None for kept in _KEPT[model].values())


def test_a_tuned_solver_survives_a_file(gm):
    solver = sf.solve.tune(gm, 4, pilots=64)
    again = sf.solve.Tuned.from_dict(json.loads(json.dumps(solver.to_dict())))
    assert again == solver
    assert torch.equal(sf.sample(gm, 2, solver, seed=0), sf.sample(gm, 2, again, seed=0))


def test_a_tuned_solver_keeps_to_its_grid(gm):
    solver = sf.solve.tune(gm, 4, pilots=64)
    with pytest.raises(ValueError, match="fitted for 4 steps"):
        sf.sample(gm, 2, solver, steps=5)
    with pytest.raises(ValueError, match="goes through its own grid"):
        sf.sample(gm, 2, solver, grid="uniform")
    with pytest.raises(ValueError, match="from 2 to 64"):
        sf.solve.tune(gm, 1)


def test_the_reference_is_the_exact_flow():
    """UniPC of order 3 on 128 times."""
    model = gaussian(sf.VP())
    path = pilot(model, pilots=32, dtype=torch.float64)
    for k in (40, 90, 127):
        expected = flow_map(model, path.states[0], 1.0, float(path.times[k]))
        assert rmse(path.states[k], expected) < 1e-3 * float(expected.std())


def test_a_fitted_grid_of_even_density_is_even():
    sde = sf.VP()
    times = sampling_grid(sde, 50, 1.0, 1e-3, "log_snr")
    fitted = FittedGrid.of_density(times, sde.log_snr(times), torch.ones(51))
    torch.testing.assert_close(fitted(sde, 50, 1.0, 1e-3), times)
    assert FittedGrid.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_a_fitted_grid_follows_its_density():
    """Twice the density, half the steps' length."""
    times = torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    fitted = FittedGrid.of_density(times, -times, torch.where(times > 0.5, 2.0, 1.0), floor=0.0)
    steps = -fitted(sf.VP(), 30, 1.0, 0.0).diff()
    assert abs(float(steps[5] / steps[25]) - 0.5) < 0.02


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_fitted_grid_beats_the_uniform_one(order):
    model = gaussian(sf.VP())
    x = start(model)
    fitted = fit_grid(pilot(model, pilots=64, dtype=torch.float64), order)
    errors = [
        rmse(sf.sample(model, 64, sf.DPMSolver(order), steps=16, grid=g, x_init=x), exact(model, x))
        for g in (fitted, "uniform")
    ]
    assert errors[0] < (1.0 if order == 1 else 0.5) * errors[1]
