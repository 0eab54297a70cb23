"""Losses and bounds against entropies: expectations by enumeration and quadrature, exact models."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from jump_oracles import entropy, every_state, joint, nodes, noise_to, product_of_marginals

J = joint()
RANDOM = torch.tensor([[0, 0.5, 0.2, 0.3], [0.1, 0, 0.9, 0.4], [1.1, 0.2, 0, 0.6], [0.3, 0.7, 0.05, 0]]).double()
RANDOM = RANDOM - torch.diag(RANDOM.sum(1))
PROCESSES = [
    sf.discrete.Absorbing(4),
    sf.discrete.Absorbing(4, sf.discrete.Cosine()),
    sf.discrete.Uniform(4),
    sf.discrete.RateMatrix(RANDOM),
    sf.discrete.Ordinal(4, spread=1.0),
]


def name(value):
    return type(value).__name__


def masked_bound(model, schedule, count):
    """The mean of `masked_loss` over the joint law, over every pattern of masks and over time: three nested exact sums."""
    process = sf.discrete.Absorbing(4, schedule)
    table = sf.discrete.Table(model, process)
    x0 = every_state(4, 3)
    total = 0.0
    for t, w in zip(*nodes(count, 0.0, 1.0), strict=True):
        a, m = float(schedule.alpha(t)), float(schedule.jumped(t))
        for pattern in every_state(2, 3):
            chance = a ** int((pattern == 0).sum()) * m ** int((pattern == 1).sum())
            noise = torch.where(pattern == 1, -30.0, 8.0).double().expand(64, 3)
            each = sf.discrete.masked_loss(table, x0, t=float(t), noise=noise)
            total += float(w) * chance * float((J.flatten() * each).sum())
    return total


@pytest.mark.parametrize(
    ("schedule", "count", "error"), [(sf.discrete.LogLinear(), 4, 1e-13), (sf.discrete.Cosine(), 24, 1e-12)]
)
def test_masked_bound_with_exact_conditionals_is_the_entropy(schedule, count, error):
    assert abs(masked_bound(J, schedule, count) - entropy(J)) < error
    if count == 4:
        alone = product_of_marginals(J)
        assert abs(masked_bound(alone, schedule, count) - entropy(alone)) < error


def random_model(process, seed=0):
    g = torch.Generator().manual_seed(seed)
    data = process.S - (process.mask is not None)
    w = torch.randn(3, process.S, 3, data, generator=g, dtype=torch.float64)

    def net(x, t):
        one = torch.nn.functional.one_hot(x, process.S).double()
        return torch.einsum("bls,lsmd->bmd", one, w) - t[:, None, None] * w[0, 0]

    return sf.discrete.JumpModel(net, process, (3,))


@pytest.mark.parametrize("process", PROCESSES[:2], ids=lambda p: type(p.schedule).__name__)
def test_score_entropy_of_a_masked_model_is_the_masked_loss(process):
    model, x0 = random_model(process), every_state(4, 3)
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    one = sf.discrete.masked_loss(model, x0, t=t, noise=noise)
    other = sf.discrete.score_entropy(model, x0, t=t, noise=noise)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert float(one.min()) >= 0


@pytest.mark.parametrize(("eps", "expected"), [(1e-9, 1.3923212366), (1e-3, 1.3851814600)])
def test_score_entropy_with_exact_ratios_is_the_entropy(eps, expected):
    """One position of five states, T = 8: the integral and KL(p_T|0 || p_T) make H = 1.3923212548 but for H(x_0 | x_eps)."""
    q = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15], dtype=torch.float64)
    process = sf.discrete.Uniform(5)
    model = sf.discrete.Table(q, process)
    x0, x = (v.reshape(-1, 1) for v in every_state(5, 2).T)
    total = 0.0
    for u, w in zip(*nodes(60, math.log(eps), math.log(8.0)), strict=True):
        t = torch.exp(u).expand(25)
        each = sf.discrete.score_entropy(model, x0, t=t, noise=noise_to(process, x0, x, t)) / 8.0
        weight = q[x0[:, 0]] * process.transition(float(t[0]))[x0[:, 0], x[:, 0]]
        total += float(w * t[0]) * float((weight * each).sum())
    late = process.transition(8.0)
    kl = float((q[:, None] * late * (late / model.law(8.0)).log()).sum())
    assert abs(total + kl - expected) < 2e-9


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_the_bound_is_the_entropy_within_its_error(process):
    """One position, whose estimates scatter little; then the seed and the batch size on three."""
    q = torch.tensor([0.05, 0.4, 0.25, 0.3], dtype=torch.float64)
    x = torch.arange(4).repeat(400).reshape(-1, 1)
    found = sf.discrete.bound(sf.discrete.Table(q, process), x, samples=4, seed=0)
    weight = q[x.squeeze(1)] / 400
    error = float((weight * found.draws.std(1)).square().sum().sqrt()) / 2
    entropy = float(torch.special.entr(q).sum())
    assert abs(float((weight * -found.nats).sum()) - entropy) < 4 * error + 1e-3  # the prior is e^-8 off
    assert error < 0.1
    torch.testing.assert_close(found.bits_per_dim(), -found.nats / math.log(2))
    model, x = sf.discrete.Table(J, process), every_state(4, 3)[:5]
    found = sf.discrete.bound(model, x, samples=3, seed=0)
    again = sf.discrete.bound(model, x, samples=3, seed=0, batch_size=2)
    torch.testing.assert_close(again.nats, found.nats, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_the_bound_with_a_drawn_jump_has_the_mean_of_score_entropy(process):
    """Every x_t and every jump from it, with their probabilities, for a model that is not exact."""
    model, x0, t = random_model(process), torch.tensor([[2, 0, 3]]), 0.2 * process.T
    matrix, states = process.transition(t), every_state(process.S, 3)
    p = torch.stack([matrix[x0[0, d], states[:, d]] for d in range(3)]).prod(0)
    x, p = states[p > 0], p[p > 0]
    times, x0 = torch.full((len(x),), t, dtype=torch.float64), x0.expand(len(x), 3)
    same = {"t": times, "noise": noise_to(process, x0, x, times)}
    whole = float((p * sf.discrete.score_entropy(model, x0, **same)).sum())
    rates = process.out(x, torch.float64).scatter(-1, x.unsqueeze(-1), 0.0)
    chance = rates / rates.sum((1, 2), keepdim=True)
    stuck = rates.sum((1, 2)) == 0  # all are masked: no jump leads out
    chance[stuck] = 0.0
    chance[stuck, 0, 0] = 1.0
    total = 0.0
    for d in range(3):
        for y in range(process.S):
            after = x.clone()
            after[:, d] = torch.where(stuck, x[:, d], y)
            each = sf.discrete.continuous_elbo(model, x0, jumped=after, **same)
            total += float((p * chance[:, d, y] * torch.where(chance[:, d, y] > 0, each, 0.0)).sum())
    assert total == pytest.approx(whole, rel=1e-9)
    drawn = sf.discrete.continuous_elbo(model, x0, **same)
    assert torch.isfinite(drawn).all()
    assert torch.equal(drawn, sf.discrete.continuous_elbo(model, x0, **same))


def test_ratio_matching_is_least_at_the_marginals():
    process = sf.discrete.Uniform(4)
    exact = sf.discrete.Table(J, process)
    x0, t = every_state(4, 3), torch.full((64,), 0.3, dtype=torch.float64)
    x = exact.sample(64, 0.3, seed=0)
    noise = noise_to(process, x0, x, t)

    def loss(bend):
        net = lambda x, t: torch.log(exact.marginal(x, 0.3)) + bend * torch.arange(4)  # noqa: E731
        return sf.discrete.ratio_matching(
            sf.discrete.JumpModel(net, process, (3,), predict="marginal"), x0, t=t, noise=noise
        )

    torch.testing.assert_close(loss(0.0), -torch.log(exact.marginal(x, 0.3)).gather(-1, x.unsqueeze(-1)).sum((1, 2)))
    with pytest.raises(ValueError, match="would copy it"):
        sf.discrete.ratio_matching(exact, x0, seed=0)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_training_times_keep_the_mean(process):
    """Weights undo the proposal: the mean of any function of time is that of uniform times."""
    u = ((torch.arange(4000) + 0.5) / 4000).double()
    t, w = sf.discrete.JumpTimes(1e-4)(u, process)
    assert float(t.min()) >= 1e-4 * process.T
    assert float(t.max()) < process.T
    for f in (lambda t: t / process.T, lambda t: (1 - t / process.T) ** 2):
        uniform = 1e-4 + u * (1 - 1e-4)
        assert float((w * f(t)).mean()) == pytest.approx(float(f(uniform * process.T).mean()), rel=2e-2)


@pytest.mark.parametrize("loss", ["masked_loss", "score_entropy", "continuous_elbo"])
def test_a_loss_is_a_function_of_its_seed(loss):
    process = PROCESSES[0] if loss == "masked_loss" else PROCESSES[2]
    model, x0 = random_model(process), every_state(4, 3)
    one = getattr(sf.discrete, loss)(model, x0, seed=3)
    assert torch.equal(one, getattr(sf.discrete, loss)(model, x0, seed=3))
    assert not torch.equal(one, getattr(sf.discrete, loss)(model, x0, seed=4))
    assert torch.isfinite(one).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: sf.discrete.masked_loss(m, torch.rand(2, 3)), "x0 has dtype torch.float32"),
        (lambda m: sf.discrete.masked_loss(m, torch.full((2, 3), 5)), "x0 has state 5"),
        (lambda m: sf.discrete.masked_loss(m, torch.full((2, 3), 4)), "state 4, the mask"),
        (lambda m: sf.discrete.masked_loss(m, torch.zeros(2, 3).long(), noise=torch.zeros(2, 2)), "noise has shape"),
        (lambda m: sf.discrete.bound(m, torch.zeros(2, 3).long(), samples=0), "samples=0"),
        (lambda m: sf.discrete.masked_loss(random_model(PROCESSES[2]), torch.zeros(2, 3).long()), "use score_entropy"),
        (lambda m: sf.discrete.bound(random_model(leaky()), torch.zeros(2, 3).long()), "bound is infinite"),
        (lambda m: sf.discrete.JumpTimes(0.0), "earliest=0.0"),
    ],
)
def test_a_wrong_argument_gets_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call(random_model(PROCESSES[0]))


def leaky():
    return sf.discrete.Absorbing(4, sf.discrete.LogLinear(1e-3))


@pytest.mark.parametrize(("earliest", "n"), [(1e-5, 60_000), (0.3, 20_000)])
def test_the_ends_of_the_bound_belong_to_it(earliest, n):
    """Little time: -bound is the entropy and KL(p_T || prior). What the integral leaves out, the first term has."""
    process = sf.discrete.Uniform(4, sf.discrete.Constant(T=0.5))
    q = torch.tensor([0.05, 0.4, 0.25, 0.3], dtype=torch.float64)
    model = sf.discrete.Table(q, process)
    x = torch.arange(4).repeat(n).reshape(-1, 1)
    found = sf.discrete.bound(model, x, samples=4, seed=torch.Generator().manual_seed(0), earliest=earliest)
    weight = q[x.squeeze(1)] / n
    error = float((weight * found.draws.std(1)).square().sum().sqrt()) / 2
    late = model.law(0.5)
    expected = float(torch.special.entr(q).sum() + (late * (4 * late).log()).sum())
    assert abs(float((weight * -found.nats).sum()) - expected) < 4 * error
    assert error < 0.01
    assert abs(expected - float(torch.special.entr(q).sum())) > 4 * error
