"""NaN and infinity in what the rooms take: refused by name or carried to a status and a warning, never ignored."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from scorefield import bridge, consistency, discrete, dynamics, flow
from scorefield.solve.integrate import NOT_FINITE, SUCCESS

NAN, INF = math.nan, math.inf
X = torch.linspace(-1, 1, 40).reshape(20, 2)
BAD = X.clone().index_fill_(0, torch.tensor([7]), NAN)
STATES = torch.tensor([[0, 1], [2, 2], [1, 0]])
JOINT = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))


def sampler(x):
    return lambda n, g: x


def net(x, t, span=None):
    return -x


AVERAGE = sf.FlowMap(net, sf.VP(), "average", shape=(2,))
REFUSED = {
    "points": (lambda: sf.Empirical(BAD, sf.VP()), "points: 2 of 40 entries"),
    "given": (lambda: sf.Empirical(X, sf.VP(), given=BAD, bandwidth=0.2, neighbours=5), "given: 2 of 40 entries"),
    "bandwidth": (lambda: sf.Empirical(X, sf.VP(), given=X, bandwidth=INF), "bandwidth: 1 of 1 entries"),
    "widths": (lambda: sf.Empirical(X, sf.VP(), given=X, bandwidth=[1, 1, 1]), "3 numbers for 2 columns"),
    "pairs": (lambda: dynamics.learn_flow_map(X, BAD, 0.1), "x_next: 2 of 40 entries"),
    "kernel": (lambda: dynamics.learn_flow_map(X, X, 0.1, bandwidth=NAN), "bandwidth=nan is impossible"),
    "no kernel": (lambda: dynamics.learn_flow_map(X, X, 0.1, bandwidth=0.0), "bandwidth=0.0 is impossible"),
    "path": (lambda: dynamics.pairs_of(X, 0.1, path=BAD[:, 0]), "path: 1 of 20 entries"),
    "time": (lambda: dynamics.pairs_of(X, 0.1, time=BAD[:, 0]), "time: 1 of 20 entries"),
    "transport": (lambda: flow.minibatch_ot(BAD, X, regularisation=0.1), "x0 holds NaN or infinity in 1 of 20"),
    "its noise": (lambda: flow.minibatch_ot(X, BAD), "noise holds NaN or infinity in 1 of 20"),
    "its labels": (lambda: flow.minibatch_ot(X, X, BAD[:, 0]), "label: 1 of 20 entries"),
    "an end": (
        lambda: bridge.schrodinger_bridge(sampler(BAD), sampler(X), (torch.nn.Identity(),) * 2),
        "sample0 holds NaN or infinity in 1 of 20",
    ),
    "covariance": (lambda: bridge.gaussian_bridge(torch.eye(2), torch.full((2, 2), NAN)), "b: 4 of 4 entries"),
    "reference": (lambda: bridge.gaussian_bridge(torch.eye(2), torch.eye(2), NAN), "sigma=nan is impossible"),
    "spread": (lambda: sf.ScoreModel(net, sf.VP(), sigma_data=NAN), "sigma_data=nan is impossible"),
    "no spread": (lambda: sf.FlowMap(net, sf.VP(), sigma_data=0), "sigma_data=0 is impossible"),
    "clock": (lambda: sf.ScoreModel(net, sf.VP(), "noise", clock=INF), "clock=inf is unknown"),
    "end of a map": (lambda: sf.FlowMap(net, sf.VP(), end=NAN), "end=nan: a map ends"),
    "levels": (lambda: consistency.Karras(n=NAN), "n=nan: give the number of noise levels"),
    "exponent": (lambda: consistency.Karras(exponent=NAN), "exponent=nan is impossible"),
    "mean": (lambda: consistency.Curriculum(mean=NAN), "mean=nan is impossible"),
    "factor": (lambda: consistency.Easy(q=NAN), "q=nan is impossible"),
    "share": (lambda: consistency.meanflow_loss(AVERAGE, X, share=NAN), "share=nan is impossible"),
    "clip": (lambda: consistency.shortcut_loss(AVERAGE, X, clip=NAN), "clip=nan: give a positive bound"),
    "rate": (lambda: sf.CLD(beta=INF), "beta=inf"),
    "states": (lambda: discrete.Uniform(NAN), "states=nan: give the number of states"),
    "half a state": (lambda: discrete.Absorbing(2.5), "states=2.5: give the number of states"),
    "time of a jump": (lambda: discrete.Table(JOINT, discrete.Uniform(3)).law(NAN), "a time is NaN"),
    "no end": (lambda: discrete.Table(JOINT, discrete.Ordinal(3)).ratio(STATES, INF), "give times in"),
    "noise of a jump": (
        lambda: discrete.score_entropy(discrete.Table(JOINT, discrete.Uniform(3)), STATES, noise=STATES / 0.0),
        "noise holds NaN or infinity in 3 of 3",
    ),
    "value": (
        lambda: sf.as_distribution(sf.Empirical(X, sf.VP()), validate_args=True).log_prob(BAD),
        "value holds NaN or infinity in 1 of 20",
    ),
    "temperature": (
        lambda: sf.reward.measure(*[sf.Empirical(X, sf.VP())] * 2, lambda x: x[:, 0], temperature=NAN),
        "temperature=nan",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name_in_one_line(case):
    door, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as told:
        door()
    assert "\n" not in str(told.value)


def test_a_polynomial_score_carries_a_time_that_is_no_number():
    model = sf.polynomial_score(X + torch.sin(9 * X.flip(1)), sf.VP())
    assert model.score(X, NAN).isnan().all()


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (discrete.Absorbing(3), discrete.Tweedie()),
        (discrete.Absorbing(3), discrete.Ancestral()),
        (discrete.Absorbing(3), discrete.FirstHitting()),
        (discrete.Absorbing(3), discrete.FlowMatching()),
        (discrete.Uniform(3), discrete.Euler()),
        (discrete.Ordinal(3), discrete.TauLeaping()),
        (discrete.Uniform(3), sf.solve.PC(discrete.Euler(), discrete.Gibbs())),
        (discrete.Uniform(3), sf.solve.PC(discrete.Euler(), discrete.RateCorrector())),
    ],
    ids=lambda v: type(getattr(v, "corrector", v)).__name__,
)
def test_states_say_that_the_network_had_no_answer_for_them(process, solver):
    """Integers cannot be NaN: the status of these samples says it, and no other's."""

    def logits(x, t, wrong):
        return torch.zeros(*x.shape, 3) + wrong[:, None, None]

    wrong = torch.tensor([0.0, NAN, 0.0, INF])
    model = discrete.JumpModel(logits, process, (2,))
    with pytest.warns(RuntimeWarning, match="2 of 4 samples left the finite numbers"):
        found = sf.sample(model, 4, solver, steps=3, seed=0, full=True, wrong=wrong)
    assert found.status.tolist() == [SUCCESS, NOT_FINITE, SUCCESS, NOT_FINITE]
    alone = sf.sample(model, 4, solver, steps=3, seed=0, wrong=torch.zeros(4))
    assert torch.equal(found.x[::2], alone[::2])


def test_a_bound_says_that_the_network_had_no_answer():
    model = discrete.JumpModel(lambda x, t: torch.full((*x.shape, 3), NAN), discrete.Absorbing(3), (2,))
    found = discrete.bound(model, STATES, 2, seed=0)
    assert found.nats.isnan().all()
    assert (found.status == NOT_FINITE).all()
