"""Conditions: what belongs to single samples follows them, what is shared stays whole, and what nobody takes is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scorefield as sf
from oracles import name
from scorefield.conditions import with_rows

SDE = sf.VP()


def noise_of(x, t, mean):
    """The exact noise prediction of N(mean, 0.1^2); mean broadcasts with x."""
    a, s = SDE.alpha(t)[:, None].to(x), SDE.sigma(t)[:, None].to(x)
    return s * (x - a * mean) / (a**2 * 0.01 + s**2)


def shared_table(x, t, table):
    return noise_of(x, t, table.sum() / 3)


def rows_nested(x, t, extra):
    return noise_of(x, t, extra["deep"][0]["m"][:, None])


MODEL = sf.ScoreModel(shared_table, SDE, "noise", shape=(2,))


@pytest.mark.parametrize(
    "solver",
    [sf.DDIM(), sf.Dopri5(1e-3, 1e-3), sf.solve.AdaptiveSDE(0.1, 0.1), sf.PC(), sf.solve.AnalyticAncestral()],
    ids=name,
)
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("n", [5, 6, 7])
def test_a_shared_condition_is_never_split_by_chance(n, batch_size, solver):
    """Six sensors, for whatever number of samples: the mean is 1."""
    table = torch.linspace(0, 1, 6)[:, None]
    steps = None if solver.adapts else 20
    x = sf.sample(MODEL, n, solver, steps=steps, seed=0, table=table, batch_size=batch_size)
    assert x.mean() == pytest.approx(1.0, abs=0.2)


def test_likelihoods_of_a_shared_condition_do_not_depend_on_the_parts():
    x, table = torch.ones(6, 2), torch.linspace(0, 1, 6)[:, None]
    whole, parts = (sf.log_prob(MODEL, x, "exact", table=table, batch_size=b).nats for b in (None, 2))
    torch.testing.assert_close(whole, parts)
    assert whole[0] == pytest.approx(-np.log(2 * np.pi * 0.01), abs=0.02)
    torch.testing.assert_close(sf.encode(MODEL, x, table=table)[0], sf.encode(MODEL, x[:1], table=table)[0])


@pytest.mark.parametrize(
    "make",
    [lambda m: {"deep": [{"m": m}]}, lambda m: {"deep": ({"m": m},)}],
    ids=["list", "tuple"],
)
@pytest.mark.parametrize("solver", [sf.Dopri5(), sf.solve.AdaptiveSDE(), sf.DDIM()], ids=repr)
def test_rows_inside_nested_conditions_follow_their_samples(solver, make):
    means = torch.tensor([-5.0, 0.0, 0.01, 40.0])
    model = sf.ScoreModel(rows_nested, SDE, shape=(2,))
    steps = None if solver.adapts else 30
    x = sf.sample(model, 4, solver, steps=steps, seed=0, extra=make(means), batch_size=3)
    assert ((x.mean(1) - means).abs() < 0.6).all()


def test_arrays_and_lists_of_words_follow_too():
    words = {"low": -3.0, "high": 3.0}

    def net(x, t, text, shift):
        assert isinstance(shift, np.ndarray)
        mean = torch.tensor([words[w] for w in text]) + torch.from_numpy(shift)
        return noise_of(x, t, mean.float()[:, None])

    model = sf.ScoreModel(net, SDE, shape=(2,))
    x = sf.sample(model, 3, sf.DDIM(), steps=30, seed=0, text=["low", "high", "low"], shift=np.zeros(3), batch_size=1)
    assert ((x.mean(1) - torch.tensor([-3.0, 3.0, -3.0])).abs() < 0.5).all()


def test_places_of_rows_are_found_in_any_nest():
    cond = {"a": torch.zeros(4), "b": {"c": [torch.zeros(3, 4), (np.zeros((4, 1)), 2.0)]}, "d": "four", "e": None}
    assert with_rows(cond, 4) == {("a",), ("b", "c", 1, 0)}


def labelled() -> sf.ScoreModel:
    torch.manual_seed(0)
    net = sf.nn.UNet(1, 8, (1,), 1, attn=(), dropout=0.0, init_scale=1.0, num_classes=3).eval()
    return sf.ScoreModel(net, SDE, "noise", shape=(1, 4, 4))


def test_one_class_number_is_that_of_all_samples():
    model = labelled()
    whole = sf.sample(model, 3, sf.DDIM(), steps=3, seed=0, label=torch.full((3,), 2))
    assert torch.equal(sf.sample(model, 3, sf.DDIM(), steps=3, seed=0, label=2), whole)
    guided = model | sf.ClassifierFree(scale=2.0)
    assert sf.sample(guided, 3, sf.DDIM(), steps=3, seed=0, label=np.int64(2)).shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("model", "keywords", "words"),
    [
        (MODEL, {"num_steps": 10}, "num_steps= .* did you mean steps"),
        (MODEL, {"batchsize": 10}, "did you mean batch_size"),
        (MODEL, {"tabel": torch.zeros(1)}, "did you mean table"),
        (labelled(), {"labels": torch.zeros(2)}, "did you mean label"),
        (labelled() | sf.ClassifierFree(scale=2.0), {"lable": 1}, "did you mean label"),
        (sf.GaussianMixture(torch.zeros(1, 2), 1.0, None, SDE), {"num_inference_steps": 1}, "did you mean steps"),
    ],
    ids=["steps", "batch_size", "table", "labels", "guided", "mixture"],
)
def test_keywords_that_nobody_takes_are_refused(model, keywords, words):
    calls = [lambda: sf.sample(model, 2, sf.DDIM(), seed=0, **keywords)]
    x = torch.zeros(2, *model.shape)
    calls += [lambda: sf.encode(model, x, **keywords), lambda: sf.log_prob(model, x, **keywords)]
    for call in calls:
        with pytest.raises(ValueError, match=words):
            call()


def test_a_network_that_takes_anything_gets_it():
    seen = {}
    model = sf.ScoreModel(lambda x, t, **rest: (seen.update(rest), 0.1 * x)[1], SDE, shape=(2,))
    sf.sample(model, 2, sf.DDIM(), steps=2, seed=0, whatever=7)
    assert seen == {"whatever": 7}


def test_running_out_of_memory_is_not_taken_for_a_refusal():
    """The trial whether a condition goes in whole has seen nothing of it then; without the error it would be split."""

    def net(x, t, table):
        if len(table) > len(x):
            raise torch.OutOfMemoryError("out of memory")
        return noise_of(x, t, table)

    with pytest.raises(torch.OutOfMemoryError):
        sf.sample(sf.ScoreModel(net, SDE, "noise", shape=(2,)), 6, steps=2, table=torch.ones(6, 1), batch_size=2)
