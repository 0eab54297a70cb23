"""Processes and the views of a model, against matrices and the joint law of three positions of four states."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from jump_oracles import every_state, joint

J = joint()
RANDOM = torch.tensor([[0, 0.5, 0.2, 0.3], [0.1, 0, 0.9, 0.4], [1.1, 0.2, 0, 0.6], [0.3, 0.7, 0.05, 0]]).double()
RANDOM = RANDOM - torch.diag(RANDOM.sum(1))
PROCESSES = [
    sf.discrete.Uniform(4),
    sf.discrete.Uniform(4, sf.discrete.LogLinear()),
    sf.discrete.Absorbing(4),
    sf.discrete.Absorbing(4, sf.discrete.Cosine()),
    sf.discrete.RateMatrix(RANDOM),
    sf.discrete.Ordinal(4),
    sf.discrete.Ordinal(4, spread=1.0, reach=2.0, schedule=sf.discrete.Geometric(0.1, 30.0)),
]
SCHEDULES = [sf.discrete.Constant(0.7), sf.discrete.LogLinear(1e-3), sf.discrete.Cosine(), sf.discrete.Geometric()]


def name(value):
    return f"{type(value).__name__}-{type(value.schedule).__name__}"


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_transition_is_the_exponential_of_the_rates(process):
    t = torch.tensor([0.0, 1e-4, 0.3, 0.9]).double() * process.T
    matrix = process.transition(t)
    assert matrix.shape == (4, process.S, process.S)
    total = process.schedule.total(t)[:, None, None]
    torch.testing.assert_close(matrix, torch.linalg.matrix_exp(total * process.generator), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(process.transition(float(t[2])), matrix[2], rtol=1e-14, atol=0)
    torch.testing.assert_close(matrix[2] @ process.transition(t[3], t[2]), matrix[3], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        process.stationary @ process.generator, torch.zeros(process.S).double(), rtol=0, atol=1e-14
    )
    assert float((process.transition(process.T) - process.stationary).abs().max()) < 2e-2


def test_small_entries_keep_their_digits():
    """Entries by which others are divided: K[0, 5] of birth and death is B^5 / 5! to first order, not rounding of 1."""
    process = sf.discrete.Ordinal(6)
    entry = process.transition(1e-3)[0, 5]
    assert abs(float(entry) / (1e-15 / 120) - 1) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_closed_forms_of_a_schedule_are_the_derived_ones(schedule):
    t = torch.tensor([1e-3, 0.2, 0.7, 0.95]).double() * schedule.T
    base = sf.discrete.Schedule
    for quantity in ("rate", "alpha", "jumped", "hazard"):
        derived = getattr(base, quantity)(schedule, t)
        torch.testing.assert_close(getattr(schedule, quantity)(t), derived, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.time_of(schedule.jumped(t[:3])), t[:3], rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_products_are_those_with_the_matrices(process):
    g = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, process.S, generator=g, dtype=torch.float64)
    x = torch.randint(process.S, (2, 3), generator=g)
    t = torch.tensor([0.1, 0.4]).double() * process.T
    total, matrix = process.schedule.total(t), process.transition(t)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(process.push(p, total), torch.einsum("bli,bij->blj", p, matrix), **close)
    early = 0.1 * total  # later, little is left to be found again
    torch.testing.assert_close(process.unpush(process.push(p, early), early), p, **close)
    each = torch.stack([matrix[b][:, x[b]].T for b in range(2)])
    torch.testing.assert_close(process.column(x, total, torch.float64), each, **close)
    torch.testing.assert_close(
        process.row(x, total, torch.float64), torch.stack([matrix[b][x[b]] for b in range(2)]), **close
    )
    torch.testing.assert_close(process.into(x, torch.float64), process.generator.T[x], **close)
    torch.testing.assert_close(process.out(x, torch.float64), process.generator[x], **close)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_corrupted_states_have_the_law_of_the_transition(process):
    """One uniform number for each position decides its state: a fine grid of numbers gives the row of the matrix."""
    n = 40_000
    u = ((torch.arange(n) + 0.5) / n).double()
    t = 0.4 * process.T
    for start in range(4):
        x = process.corrupt(torch.full((n,), start), t, u)
        law = torch.bincount(x, minlength=process.S).double() / n
        assert (law - process.transition(t)[start]).abs().max() < 2 / n * process.S


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_views_of_the_exact_model(process):
    """Ratio, marginal and posterior from the definition: sums over the joint law of (x_0, x_t)."""
    t = 0.37 * process.T
    model, x = sf.discrete.Table(J, process), every_state(process.S, 3)
    x = x[model.law(t).flatten() > 0]
    p, matrix = model.law(t), process.transition(t)
    data = torch.nn.functional.pad(J, [0, process.S - 4] * 3)
    weight = torch.einsum("abc,na,nb,nc->nabc", data, *(matrix[:, x[:, d]].T for d in range(3)))
    weight = weight / weight.sum((1, 2, 3), keepdim=True)
    posterior = torch.stack([weight.sum([e for e in (1, 2, 3) if e != d + 1]) for d in range(3)], 1)
    torch.testing.assert_close(model.posterior(x, t), posterior, rtol=1e-10, atol=1e-13)
    ratio = torch.empty(len(x), 3, process.S, dtype=torch.float64)
    for d in range(3):
        for y in range(process.S):
            other = x.clone()
            other[:, d] = y
            ratio[:, d, y] = p[tuple(other.T)] / p[tuple(x.T)]
    torch.testing.assert_close(model.ratio(x, t), ratio, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(model.marginal(x, t), ratio / ratio.sum(-1, keepdim=True), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("predict", ["data", "ratio", "marginal", "hollow"])
@pytest.mark.parametrize("process", [PROCESSES[0], PROCESSES[4], PROCESSES[5]], ids=name)
def test_any_prediction_gives_all_three_views(process, predict):
    exact, t = sf.discrete.Table(J, process), 0.3
    x = every_state(4, 3)

    def net(x, clock):
        posterior = exact.posterior(x, t)
        if predict == "data":
            return torch.log(posterior)
        if predict == "hollow":
            return torch.log(posterior / process.column(x, process.schedule.total(t), torch.float64))
        return torch.log(exact.ratio(x, t) if predict == "ratio" else exact.marginal(x, t))

    model = sf.discrete.JumpModel(net, process, (3,), predict=predict)
    for view in ("ratio", "posterior", "marginal"):
        torch.testing.assert_close(getattr(model, view)(x, t), getattr(exact, view)(x, t), rtol=1e-9, atol=1e-12)
    before = model.staggered(x, t, 0.1), exact.staggered(x, t, 0.1)
    torch.testing.assert_close(*before, rtol=1e-9, atol=1e-12)


def test_a_masked_model_copies_what_is_not_masked_and_never_predicts_the_mask():
    process = sf.discrete.Absorbing(4)
    exact = sf.discrete.Table(J, process)
    model = sf.discrete.JumpModel(lambda x: torch.log(exact.posterior(x, 0.5))[..., :4], process, (3,), clock=None)
    x = every_state(5, 3)
    torch.testing.assert_close(model.posterior(x, 0.2), exact.posterior(x, 0.2), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(model.marginal(x, 0.2), exact.marginal(x, 0.2), rtol=1e-10, atol=1e-14)
    masked = x == 4
    torch.testing.assert_close(model.ratio(x, 0.2)[masked], exact.ratio(x, 0.2)[masked], rtol=1e-10, atol=1e-14)
    free = sf.discrete.JumpModel(lambda x: torch.zeros(*x.shape, 5), process, (3,), clock=None)
    own = free.posterior(x, 0.2)
    assert torch.equal(own[~masked], torch.nn.functional.one_hot(x, 5).float()[~masked])
    assert (own[masked][:, 4] == 0).all()


def test_what_the_network_receives():
    seen = []

    def net(x, t):
        seen.append((x.dtype, t.dtype, t.tolist()))
        return torch.zeros(*x.shape, 4)

    process = sf.discrete.Uniform(4, sf.discrete.Constant(2.0, T=3.0))
    x = torch.zeros(2, 3, dtype=torch.uint8)
    for clock in ("t", "total", lambda t: t + 1):
        sf.discrete.JumpModel(net, process, (3,), clock=clock).posterior(x, 0.5)
    assert [value for _, _, value in seen] == [[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]]
    assert {kinds[:2] for kinds in seen} == {(torch.int64, torch.float32)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.discrete.Uniform(1), "states=1"),
        (lambda: sf.discrete.RateMatrix(torch.tensor([[0.0, 1.0], [1.0, -1.0]])), "row 0 with sum 1"),
        (lambda: sf.discrete.RateMatrix([[1.0, -1.0], [1.0, -1.0]]), "negative rate -1 from 0 to 1"),
        (lambda: sf.discrete.RateMatrix([[0.0, 0.0], [0.0, 0.0]]), "row 0 with sum 0"),
        (lambda: sf.discrete.RateMatrix(torch.zeros(2, 3)), r"shape \(2, 3\)"),
        (lambda: sf.discrete.RateMatrix(torch.block_diag(*[RANDOM] * 2)), "several stationary laws"),
        (lambda: sf.discrete.RateMatrix([[float("nan"), 0.0], [1.0, -1.0]]), "not finite"),
        (lambda: sf.discrete.Ordinal(4, schedule=sf.discrete.LogLinear()), "infinite B"),
        (lambda: sf.discrete.Ordinal(4, spread=-1.0), "spread=-1"),
        (lambda: sf.discrete.Geometric(2.0, 1.0), "high=1.0"),
        (lambda: sf.discrete.LogLinear(1.0), "eps=1.0"),
        (lambda: sf.discrete.Table(J, sf.discrete.Uniform(5)), r"shape \(4, 4, 4\)"),
        (lambda: sf.discrete.Table(-J, sf.discrete.Uniform(4)), "no probabilities"),
        (lambda: sf.discrete.JumpModel(torch.nn.Identity(), sf.VP(), (3,)), "give a jump process"),
        (
            lambda: sf.discrete.JumpModel(torch.nn.Identity(), sf.discrete.Uniform(4), (3,), predict="x0"),
            "predict='x0'",
        ),
        (lambda: model().posterior(torch.rand(2, 3), 0.5), "dtype torch.float32"),
        (lambda: model().posterior(torch.full((2, 3), 4), 0.5), "state 4; expected states from 0 to 3"),
        (lambda: model().posterior(torch.full((2, 3), -1), 0.5), "state -1"),
        (lambda: model(5).posterior(torch.zeros(2, 3).long(), 0.5), r"shape \(2, 3, 5\); expected \(2, 3, 4\)"),
        (lambda: model().score(torch.zeros(2, 3).long(), 0.5), "has no score"),
        (lambda: sf.discrete.Uniform(4).transition(0.1, 0.2), "s must not exceed t"),
    ],
)
def test_a_wrong_argument_gets_one_line(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def model(outputs=4):
    return sf.discrete.JumpModel(lambda x, t: torch.zeros(*x.shape, outputs), sf.discrete.Uniform(4), (3,))
