"""Draws of the discrete solvers: seeds, rare jumps, calls of the network, and laws where a sampler is exact."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from jump_oracles import joint, tv
from scorefield.discrete.solve import add_jumps, draw, poisson
from scorefield.randomness import FromFunction, source

J = joint()
SOLVERS = [
    sf.discrete.Euler(),
    sf.discrete.Tweedie(),
    sf.discrete.TauLeaping(),
    sf.discrete.Ancestral(),
    sf.discrete.FirstHitting(),
    sf.discrete.FlowMatching(0.5),
    sf.PC(sf.discrete.Tweedie(), sf.discrete.Gibbs(2)),
    sf.PC(sf.discrete.Euler(), sf.discrete.RateCorrector("both", 0.5)),
]
PROCESSES = [sf.discrete.Uniform(4), sf.discrete.Absorbing(4), sf.discrete.Ordinal(4, spread=1.0)]


def name(value):
    parts = (value.predictor, value.corrector) if isinstance(value, sf.PC) else (value,)
    return "-".join(type(part).__name__ for part in parts)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_sample_depends_on_its_seed_alone(solver, process):
    model = sf.discrete.Table(J, process)
    if isinstance(process, sf.discrete.Ordinal) and name(solver) == "FlowMatching":
        with pytest.raises(ValueError, match="follows a process that redraws, Uniform or Absorbing, not Ordinal"):
            sf.sample(model, 2, solver, steps=3)
        return
    if process.mask is None and name(solver) in ("Ancestral", "FirstHitting"):
        with pytest.raises(ValueError, match="has no mask"):
            sf.sample(model, 2, solver, steps=3)
        return
    x = sf.sample(model, 7, solver, steps=9, seed=3)
    assert x.dtype == torch.int64
    assert x.shape == (7, 3)
    assert set(x.unique().tolist()) <= {0, 1, 2, 3}  # also where there is a mask, which is number 4
    assert torch.equal(x, sf.sample(model, 7, solver, steps=9, seed=3, batch_size=2))
    assert torch.equal(x[:3], sf.sample(model, 3, solver, steps=9, seed=3))
    own = sf.sample(model, 2, solver, steps=9, seed=[5, 8])
    assert torch.equal(own[1:], sf.sample(model, 1, solver, steps=9, seed=[8]))


@pytest.mark.parametrize("steps", [1, 4])
def test_first_hitting_is_exact_on_any_grid(steps):
    model = sf.discrete.Table(J, sf.discrete.Absorbing(4, sf.discrete.Cosine()))
    n = 10_000
    x = sf.sample(model, n, sf.discrete.FirstHitting(), steps=steps, seed=1)
    found = torch.zeros(4, 4, 4, dtype=torch.float64)
    found.index_put_(tuple(x.T), torch.full((n,), 1 / n, dtype=torch.float64), accumulate=True)
    chi = n * float((torch.square(found - J) / J).sum())
    assert chi < 63 + 4 * (2 * 63) ** 0.5  # 4 standard deviations of chi-square with 63 degrees of freedom
    assert tv(found, J) < 0.45 / 10


def test_first_hitting_asks_the_network_at_the_time_of_each_hit():
    """A network that takes time gets times that fall, of which 1 - alpha is uniform below that of the start."""
    times = []

    def net(x, t):
        times.append(t)
        return torch.zeros(*x.shape, 4)

    model = sf.discrete.JumpModel(net, sf.discrete.Absorbing(4), (50,))
    sf.sample(model, 40, sf.discrete.FirstHitting(), steps=1, seed=0)
    seen = torch.stack(times)  # (50, 40): the largest of 50 uniform numbers first
    assert (seen.diff(dim=0) <= 0).all()
    expected = torch.arange(50, 0, -1) / 51
    assert (seen.mean(1) - expected).abs().max() < 4 * 0.5 / 51**0.5 / 40**0.5


def test_rare_jumps_are_not_lost_among_many_states():
    """50,000 flat tokens and a step of 1e-3: single-precision races unmask 1.6e-4 of the positions instead of 1e-3."""
    n, states = 16, 50_000
    process = sf.discrete.Absorbing(states)
    flat = torch.zeros(1, 1, states)
    model = sf.discrete.JumpModel(lambda x: flat.expand(*x.shape, -1), process, (n,), clock=None)
    field_law = sf.discrete.Tweedie()
    from scorefield.solve.integrate import Field

    half = torch.tensor(0.5, dtype=torch.float64)
    x = torch.full((1, 4), states)
    law = field_law.law(Field(model), x, half, half - 1e-3 * half)
    u = torch.tensor([[9.99e-4, 1.001e-3, 1e-12, 0.5]], dtype=torch.float64)
    new = draw(law, x, FromFunction(1, lambda: torch.special.ndtri(u)))
    assert (new[0] < states).tolist() == [True, False, True, False]
    x = sf.sample(model, 4_000, sf.discrete.Ancestral(), grid=torch.tensor([1.0, 0.999]), seed=0, batch_size=250)
    rate = float((x < states).double().mean())
    assert abs(rate - 1e-3) < 4 * (1e-3 / x.numel()) ** 0.5


def test_the_network_is_called_only_where_something_changes():
    """Of N steps, L positions change in sum over steps of 1 - (1 - 1/N)^L: 40.6 of 64, 50.5 of 128, 62.1 of 1024."""
    process = sf.discrete.Absorbing(3)
    for steps, expected in ((64, 40.6), (128, 50.5), (1024, 62.1)):
        calls = []

        def net(x, calls=calls):
            calls.append(len(x))
            return torch.zeros(*x.shape, 3)

        model = sf.discrete.JumpModel(net, process, (64,), clock=None)
        sf.sample(model, 8, sf.discrete.Ancestral(), steps=steps, seed=0)
        assert abs(sum(calls) / 8 - expected) < 4 * 3 / 8**0.5  # a sample's number varies by less than 3


def test_poisson_numbers_have_their_law():
    u = ((torch.arange(100_000) + 0.5) / 100_000).double()
    for mean in (0.01, 1.0, 30.0):
        k = poisson(torch.full_like(u, mean), u)
        assert float(k.mean()) == pytest.approx(mean, rel=1e-3)
        assert float(k.var()) == pytest.approx(mean, rel=1e-2)


def test_ordinal_jumps_add_up_within_the_range():
    counts = torch.tensor([[[2, 0, 0, 1]], [[0, 0, 0, 5]]]).double()
    assert add_jumps(counts, torch.tensor([[1], [2]])).tolist() == [[1], [3]]


def test_a_solver_of_the_other_kind_is_refused():
    model = sf.discrete.Table(J, sf.discrete.Uniform(4))
    with pytest.raises(ValueError, match="has no velocity"):
        sf.sample(model, 2, sf.Heun(), steps=3)
    score = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP(), shape=(3,))
    with pytest.raises(ValueError, match="this model has a score"):
        sf.sample(score, 2, sf.discrete.Tweedie(), steps=3, grid="uniform")
    masked = sf.discrete.Table(J, sf.discrete.Absorbing(4))
    with pytest.raises(ValueError, match="which a mask hides"):
        sf.sample(masked, 2, sf.PC(sf.discrete.Euler(), sf.discrete.RateCorrector("barker")), steps=3)


def test_the_prior_is_the_stationary_law():
    prior = sf.discrete.Ordinal(4, spread=1.0).prior((4_000, 2))
    x = prior.sample(seed=0)
    law = torch.bincount(x.flatten(), minlength=4) / x.numel()
    assert (law - prior.process.stationary).abs().max() < 4 * 0.5 / x.numel() ** 0.5
    torch.testing.assert_close(prior.log_prob(x[:1]), torch.log(prior.process.stationary)[x[0]].sum()[None])
    assert source(0, 1).uniform((1, 3)).dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "words"),
    [(torch.zeros(2, 3), "x_init has dtype torch.float32"), (torch.full((2, 3), 4), "x_init has state 4")],
)
def test_a_start_that_is_no_state_is_refused(x, words):
    model = sf.discrete.Table(J, sf.discrete.Uniform(4))
    with pytest.raises(ValueError, match=words):
        sf.sample(model, 2, sf.discrete.Tweedie(), x_init=x, steps=2)


def test_the_default_solver_and_a_corrector_on_the_grid_of_its_predictor():
    for process, solver in zip(PROCESSES, ("Tweedie", "Ancestral", "Tweedie"), strict=True):
        model = sf.discrete.Table(J, process)
        own = getattr(sf.discrete, solver)()
        assert torch.equal(sf.sample(model, 3, seed=1, steps=8), sf.sample(model, 3, own, seed=1, steps=8))
    pc = sf.PC(sf.discrete.Tweedie(), sf.discrete.Gibbs())
    times = pc.grid_for(PROCESSES[0], (8.0, 0.0), 10)
    assert torch.equal(times, sf.discrete.Tweedie().grid_for(PROCESSES[0], (8.0, 0.0), 10))
    assert float(times[-2]) == pytest.approx(3e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_grid_that_rises_noises_by_the_transition(process):
    """From exact x_s up to x_t: states of the first position have the law of the transition."""
    model, n = sf.discrete.Table(J, process), 6000
    s, t = 0.2 * process.T, 0.5 * process.T
    x = torch.zeros(n, 3, dtype=torch.int64)
    up = process.noised(x, s, t, source(0, n))
    law = torch.bincount(up.flatten(), minlength=process.S) / up.numel()
    assert (law - process.transition(t, s)[0]).abs().max() < 4 * 0.5 / up.numel() ** 0.5
    grid = torch.tensor([t, s, t, s, 0.0], dtype=torch.float64)
    again = sf.sample(model, 5, sf.discrete.Tweedie(), x_init=up[:5], t_start=t, grid=grid, seed=0)
    assert int(again.max()) < 4
