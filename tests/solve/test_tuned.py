"""Solvers and grids fitted to a model, and the default, which is fitted where pilots are granted."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import scorefield as sf
from oracles import PAPER, flow_map, gaussian, mixture, name
from scorefield.solve import fitted, tuned
from scorefield.solve.tuned import fit_grid, pilot
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
    own = sf.sample(model, 64, steps=steps, x_init=x, full=True, pilots=512)
    assert (own.nfe == steps).all()
    general = sf.sample(model, 64, sf.UniPC(), steps=steps - 1, x_init=x)
    assert rmse(own.x, exact(model, x)) < rmse(general, exact(model, x)) / 5


def test_more_evaluations_less_error(gm):
    x = start(gm, 32)
    truth = sf.sample(gm, 32, sf.Dopri5(1e-8, 1e-8), x_init=x, denoise=True)
    errors = [rmse(sf.sample(gm, 32, steps=k, x_init=x, pilots=512), truth) for k in (3, 6, 24)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("pilots", [None, 32])
def test_samples_of_the_default_are_their_own(gm, pilots):
    both = sf.sample(gm, 3, steps=6, seed=[7, 8, 9], pilots=pilots)
    alone = torch.cat([sf.sample(gm, 1, steps=6, seed=s, pilots=pilots) for s in (7, 8, 9)])
    torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-12)
    many = sf.sample(gm, 40, steps=6, seed=3, pilots=pilots)
    torch.testing.assert_close(many[:2], sf.sample(gm, 2, steps=6, seed=3, pilots=pilots), rtol=1e-12, atol=1e-12)


def test_a_fit_does_not_depend_on_what_was_sampled_before():
    first, second = mixture(sf.VP()), mixture(sf.VP())
    sf.sample(second, 5, steps=4, seed=11, pilots=16)
    pair = [sf.sample(model, 2, steps=6, seed=0, pilots=16) for model in (first, second)]
    assert torch.equal(*pair)


class Counting(torch.nn.Module):
    """A linear denoiser with one weight, which counts the samples it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))
        self.scale = 1.0
        self.seen = 0

    def forward(self, x, t):
        self.seen += len(x)
        return torch.tanh(self.scale * self.weight * x)


def counted(model: sf.ScoreModel, net: Counting, **keywords: object) -> int:
    net.seen = 0
    sf.sample(model, 2, steps=4, seed=0, **keywords)
    return net.seen


def test_nothing_runs_before_sampling_unless_pilots_are_granted():
    net = Counting()
    model = sf.ScoreModel(net, sf.VP(), "data", shape=(3,))
    for solver in (None, sf.PC(), sf.solve.AnalyticAncestral()):
        # one evaluation a step, two with a correction, and one to denoise
        assert counted(model, net, solver=solver) <= 2 * (2 * 4 + 1)
        assert counted(model, net, solver=solver, pilots=8) > 2 * (2 * 4 + 1)


def change_in_place(model, net):
    with torch.no_grad():
        net.weight.mul_(0.5)


def change_data(model, net):
    net.weight.data.mul_(0.5)  # torch does not count this one


def change_by_assignment(model, net):
    net.weight = torch.nn.Parameter(torch.tensor(0.1))


def change_the_sde(model, net):
    model.sde = sf.VP(beta_max=12.0)


def change_what_is_no_weight(model, net):
    net.scale = 0.5


@pytest.mark.parametrize(
    "change",
    [change_in_place, change_data, change_by_assignment, change_the_sde, change_what_is_no_weight],
    ids=lambda f: f.__name__,
)
def test_the_fit_is_made_once_and_again_when_the_model_changes(change):
    net = Counting()
    model = sf.ScoreModel(net, sf.VP(), "data", shape=(3,))
    first, again = counted(model, net, pilots=16), counted(model, net, pilots=16)
    assert again == 2 * 4 + 8  # and eight points at which the model is asked whether it is the same
    change(model, net)
    assert counted(model, net, pilots=16) > first - 1 > again
    assert counted(model, net, pilots=16) == again


def test_the_grid_is_fitted_once_for_each_order(monkeypatch):
    calls = []
    real = tuned.fit_grid
    monkeypatch.setattr(tuned, "fit_grid", lambda path, order: (calls.append(order), real(path, order))[1])
    sf.solve.tune(mixture(sf.VP()), 6, pilots=16)
    assert calls == [1, 2, 3]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"grid": "karras"}, "chooses its own times"),
        ({"t_min": 1e-2}, "chooses its own times"),
        ({"denoise": False}, "without hooks, denoise= and grad="),
        ({"grad": True}, "without hooks, denoise= and grad="),
        ({"hooks": [lambda x, t, field, noise: x]}, "without hooks, denoise= and grad="),
        ({"steps": 1}, "2 to 64 steps"),
        ({"pilots": 2}, "at least 4"),
    ],
    ids=lambda k: next(iter(k)) if isinstance(k, dict) else "",
)
def test_what_changes_the_way_gets_the_general_solver_and_no_pilots(keywords, words):
    model = sf.ScoreModel(Counting(), sf.VP(), "data", shape=(3,))
    keywords = {"steps": 4, "pilots": 16, **keywords}
    with pytest.raises(ValueError, match=words):
        sf.sample(model, 2, seed=0, **keywords)
    keywords["pilots"] = None
    own = sf.sample(model, 2, seed=0, **keywords)
    assert torch.equal(own, sf.sample(model, 2, sf.UniPC(), seed=0, **keywords))


def test_guided_models_get_the_general_solver_for_stiff_fields(gm):
    guided = gm | sf.ClassifierGuidance(lambda x, t: gm.posterior(x, t).log(), 0, 1.0)
    own, general = (sf.sample(guided, 2, s, steps=4, seed=0) for s in (None, sf.solve.DEIS()))
    assert torch.equal(own, general)
    with pytest.raises(ValueError, match="too stiff"):
        sf.sample(guided, 2, seed=0, pilots=8)


@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_the_default_of_guided_models_is_nearer_than_second_order(scale):
    """Two modes in the plane; the exact guided flow by tight adaptive steps."""
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.3]]).double()
    gm = sf.GaussianMixture(means, torch.tensor([0.05, 0.1]), [0.4, 0.6], sf.VP())
    guided = gm | sf.ClassifierGuidance(lambda x, t: torch.log(gm.posterior(x, t)), 0, scale=scale)
    x = start(guided, 32)
    truth = sf.sample(guided, 32, sf.Dopri5(1e-7, 1e-7), x_init=x, denoise=True)
    own = rmse(sf.sample(guided, 32, steps=20, x_init=x), truth)
    assert own < 0.25 * rmse(sf.sample(guided, 32, sf.DPMSolver(2), steps=20, x_init=x), truth)


def test_a_model_that_is_not_finite_gets_the_general_solver():
    model = sf.ScoreModel(lambda x, t: x / 0.0, sf.VP(), "data", shape=(3,))
    with pytest.warns(RuntimeWarning, match="left the finite numbers: the network"):
        sf.sample(model, 2, steps=4, seed=0, pilots=8)
    assert all(kept.solver is None for kept in fitted._KEPT[model].values())


def test_pilots_for_a_solver_that_measures_nothing_are_refused(gm):
    for solver in (sf.Heun(), sf.Dopri5(), sf.PC(corrector=sf.solve.AnnealedLangevin())):
        with pytest.raises(ValueError, match="measures nothing before sampling"):
            sf.sample(gm, 2, solver, seed=0, pilots=8)


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
    even = FittedGrid.of_density(times, sde.log_snr(times), torch.ones(51))
    torch.testing.assert_close(even(sde, 50, 1.0, 1e-3), times)
    assert FittedGrid.from_dict(json.loads(json.dumps(even.to_dict()))) == even


def test_a_fitted_grid_follows_its_density():
    """Twice the density, half the steps' length."""
    times = torch.linspace(1.0, 0.0, 101, dtype=torch.float64)
    doubled = FittedGrid.of_density(times, -times, torch.where(times > 0.5, 2.0, 1.0), floor=0.0)
    steps = -doubled(sf.VP(), 30, 1.0, 0.0).diff()
    assert abs(float(steps[5] / steps[25]) - 0.5) < 0.02


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_fitted_grid_beats_the_uniform_one(order):
    model = gaussian(sf.VP())
    x = start(model)
    own = fit_grid(pilot(model, pilots=64, dtype=torch.float64), order)
    errors = [
        rmse(sf.sample(model, 64, sf.DPMSolver(order), steps=16, grid=g, x_init=x), exact(model, x))
        for g in (own, "uniform")
    ]
    assert errors[0] < (1.0 if order == 1 else 0.5) * errors[1]
