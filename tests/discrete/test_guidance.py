"""Guidance and known positions on the joint of three positions: exact conditional laws."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from jump_oracles import every_state, joint

J = joint()
CLASS = torch.softmax(torch.randn(4, 4, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2, -1)
PROCESSES = [sf.discrete.Uniform(4), sf.discrete.Absorbing(4), sf.discrete.Ordinal(4, spread=1.0)]


def name(value):
    return type(value).__name__


def given(c):
    return J * CLASS[..., c] / (J * CLASS[..., c]).sum()


def classifier(process):
    """The exact p(class | x_t), from the laws of the classes at time t."""
    tables = [sf.discrete.Table(given(c), process) for c in range(2)]
    weight = torch.stack([(J * CLASS[..., c]).sum() for c in range(2)])

    def clf(x, t):
        time = float(t[0]) if process.mask is None else 0.5  # what is masked says nothing, at any time
        p = torch.stack([torch.exp(table.log_prob(x, time)) for table in tables], 1) * weight
        return torch.log(p / p.sum(1, keepdim=True))

    return clf


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_an_exact_classifier_gives_the_conditional_model(process):
    t, c = 0.3 * process.T, 1
    x = every_state(process.S, 3)
    guided = sf.discrete.Table(J, process) | sf.ClassifierGuidance(classifier(process), c)
    exact = sf.discrete.Table(given(c), process)
    x = x if process.mask is None else x[(x == 4).any(1)]
    torch.testing.assert_close(guided.posterior(x, t), exact.posterior(x, t), rtol=1e-8, atol=1e-12)
    if process.mask is None:
        torch.testing.assert_close(guided.ratio(x, t), exact.ratio(x, t), rtol=1e-9, atol=1e-12)
    one = sf.sample(guided, 6, sf.discrete.Tweedie(), steps=5, seed=0)
    assert torch.equal(one, sf.sample(exact, 6, sf.discrete.Tweedie(), steps=5, seed=0))
    assert torch.equal(one, sf.sample(guided, 6, sf.discrete.Tweedie(), steps=5, seed=0, batch_size=4))


class Both(sf.discrete.Table):
    """Unconditional, or of a class."""

    def posterior(self, x, t, label=None):
        chosen = sf.discrete.Table(J if label is None else given(int(label[0])), self.process)
        return chosen.posterior(x, t)

    def ratio(self, x, t, label=None):
        return sf.discrete.Table(J if label is None else given(int(label[0])), self.process).ratio(x, t)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_ratios_multiply_without_a_classifier(process):
    t, x = 0.3 * process.T, every_state(4, 3)
    label = torch.ones(64, dtype=torch.int64)
    model = Both(J, process)
    plain, conditional = model.ratio(x, t), model.ratio(x, t, label=label)
    if process.mask is not None:
        x = torch.full((64, 3), 4)
        p, q = model.posterior(x, t), model.posterior(x, t, label=label)
        found = (model | sf.ClassifierFree(scale=2.5)).posterior(x, t, label=label)[..., :4]
        expected = (q**2.5 / p**1.5)[..., :4]
        torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), rtol=1e-9, atol=0)
        return
    for scale in (0.0, 1.0, 2.5):
        found = (model | sf.ClassifierFree(scale=scale)).ratio(x, t, label=label)
        torch.testing.assert_close(found, plain * (conditional / plain) ** scale, rtol=1e-9, atol=0)
    out = (model | sf.ClassifierFree(scale=2.5, interval=(0.0, 0.1))).ratio(x, t, label=label)
    torch.testing.assert_close(out, conditional)
    with pytest.raises(ValueError, match="label= was not given"):
        (model | sf.ClassifierFree()).ratio(x, t)


def test_guidance_of_scores_is_refused():
    class Shift:
        per_sample = ()

        def __call__(self, model):
            from scorefield.model import Guided

            return Guided(model, self)

    with pytest.raises(ValueError, match="Shift changes a score"):
        sf.discrete.Table(J, PROCESSES[0]) | Shift()


@pytest.mark.parametrize("door", ["posterior", "restore", "smc", "replace"])
def test_measurements_of_states_are_refused(door):
    process = sf.discrete.Absorbing(3)
    model = sf.discrete.JumpModel(lambda x, t: torch.zeros(*x.shape, 3), process, shape=(2,))
    y, known = torch.zeros(1, 2), sf.Mask(torch.tensor([True, False]))
    doors = {
        "posterior": lambda: model | sf.Posterior(known, y),
        "restore": lambda: sf.inverse.restore(model, known, y, noise=0.1),
        "smc": lambda: sf.inverse.twisted_smc(model, known, y, noise=0.1),
        "replace": lambda: sf.sample(model, 1, hooks=[sf.Replace(known, y)]),
    }
    with pytest.raises(ValueError, match="model of states"):
        doors[door]()


def test_known_positions_condition_a_masked_model_exactly():
    """First hitting given the second position: the conditional law of the two others."""
    model, n = sf.discrete.Table(J, sf.discrete.Absorbing(4)), 8000
    hook = sf.discrete.Infill(torch.tensor([0, 2, 0]), torch.tensor([False, True, False]))
    x = sf.sample(model, n, sf.discrete.FirstHitting(), hooks=[hook], seed=0)
    assert (x[:, 1] == 2).all()
    found = torch.zeros(4, 4, dtype=torch.float64)
    found.index_put_((x[:, 0], x[:, 2]), torch.full((n,), 1 / n, dtype=torch.float64), accumulate=True)
    law = J[:, 2] / J[:, 2].sum()
    assert n * float((torch.square(found - law) / law).sum()) < 15 + 4 * 30**0.5
    own = sf.discrete.Infill(torch.tensor([[1, 0, 0], [3, 0, 0]]), torch.tensor([[True, False, False]] * 2))
    x = sf.sample(model, 2, hooks=[own], seed=0, steps=4)
    assert x[:, 0].tolist() == [1, 3]
    assert torch.equal(x, sf.sample(model, 2, hooks=[own], seed=0, steps=4, batch_size=1))


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_a_prompt_stays(process):
    model = sf.discrete.Table(J, process)
    hook = sf.discrete.Infill.prompt(torch.tensor([3, 1]), 3)
    x = sf.sample(model, 5, hooks=[hook], seed=0, steps=6)
    assert (x[:, :2] == torch.tensor([3, 1])).all()
    assert int(x.max()) < 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sf.discrete.Infill(torch.zeros(3), torch.ones(3).bool()), "y has dtype"),
        (lambda: sf.discrete.Infill(torch.zeros(3).long(), torch.ones(3)), "known has shape"),
        (lambda: sf.discrete.Infill.prompt(torch.zeros(4).long(), 3), "the prompt has 4 states"),
        (lambda: infilled(torch.zeros(4).long()), "y has shape"),
        (lambda: infilled(torch.full((3,), 9)), "y has state 9"),
    ],
)
def test_a_wrong_condition_gets_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def infilled(y):
    hook = sf.discrete.Infill(y, torch.ones(y.shape).bool())
    return sf.sample(sf.discrete.Table(J, PROCESSES[0]), 2, hooks=[hook], steps=2, seed=0)
