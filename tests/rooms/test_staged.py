"""Curricula through the ordinary loop: the step that a loss is told, the target that follows, and a run that goes on."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield.consistency import (
    Curriculum,
    Easy,
    Karras,
    Progressive,
    Staged,
    consistency_loss,
    meanflow_loss,
    scm_loss,
    shortcut_loss,
)
from scorefield.errors import InputError
from scorefield.training.checkpoint import newest_checkpoint

DATA = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 0.3])
OPTIONS = {
    "batch_size": 16,
    "lr": 0.01,
    "warmup": 0,
    "report": False,
    "trackers": (),
    "progress": False,
    "keep_best": False,
    "keep": 10,
}


class Net(torch.nn.Module):
    """One layer, whose start does not depend on other tests."""

    def __init__(self):
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(0.3 * torch.randn(4, 2, generator=draws))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, t, span=None):
        clocks = [t, t if span is None else span]
        return torch.cat([x, *(c.to(x)[:, None] for c in clocks)], 1) @ self.weight


def fresh(kind="consistency"):
    return sf.FlowMap(Net(), sf.VP(), kind, shape=(2,))


class Spy:
    """Pairs that write down the steps they are told."""

    def __init__(self, pairs, seen):
        self.pairs, self.seen = pairs, seen

    def __getattr__(self, name):
        return getattr(self.__dict__["pairs"], name)

    def __call__(self, u, sde, end, step):
        self.seen.append(step)
        return self.pairs(u, sde, end, step)


@pytest.mark.parametrize(
    ("pairs", "steps"), [(Curriculum(total=400), [0, 66, 133, 200, 266, 333]), (Easy(stage=2), [0, 1, 2, 3, 4, 5])]
)
def test_a_curriculum_is_stretched_over_the_run(pairs, steps, tmp_path):
    seen, fm = [], fresh()
    sf.train(fm, DATA, out=tmp_path, steps=6, loss=Staged(consistency_loss, fm, pairs=Spy(pairs, seen)), **OPTIONS)
    assert seen == steps
    half, fm = [], fresh()
    short = {"steps": 4, "out": tmp_path / "b"}
    sf.train(fm, DATA, loss=Staged(consistency_loss, fm, pairs=Spy(Easy(stage=2), half)), **short, **OPTIONS)
    sf.train(
        fm, DATA, loss=Staged(consistency_loss, fm, pairs=Spy(Easy(stage=2), half)), **(short | OPTIONS | {"steps": 6})
    )
    assert half == [0, 1, 2, 3, 4, 5]  # a run that goes on knows where it is


def test_the_target_follows_as_published(tmp_path):
    """theta- <- mu(k) theta- + (1 - mu(k)) theta after step k (Song et al. 2023, Alg. 3), with the run's checkpoints."""
    pairs, weights, fm = Progressive(stop=8, total=40, decay=0.3), [], fresh()
    loss = Staged(consistency_loss, fm, pairs=pairs, distance="l2")
    expected = fm.net.weight.detach().clone()
    sf.train(
        fm,
        DATA,
        out=tmp_path,
        steps=4,
        loss=loss,
        callbacks=[lambda m: weights.append(m.model.net.weight.detach().clone())],
        **OPTIONS,
    )
    for k in range(3):  # after the last step nothing is left to be targeted
        mu = pairs.target_decay(10 * k)
        expected = mu * expected + (1 - mu) * weights[k]
    assert 0.1 < pairs.target_decay(10) < 0.95
    assert torch.allclose(loss.target.net.weight, expected, atol=1e-7)
    assert float((expected - weights[2]).abs().max()) > 1e-3
    kept = newest_checkpoint(tmp_path, ("loss",)).tensors["loss"]
    assert torch.equal(kept["target.net.weight"], loss.target.net.weight)


@pytest.mark.parametrize("follow", [None, 0.9])
def test_a_run_goes_on_with_its_target(follow, tmp_path):
    def run(name, *callbacks):
        fm = fresh()
        loss = Staged(
            consistency_loss, fm, pairs=Progressive(stop=8, total=40, decay=0.3), follow=follow, distance="l2"
        )
        found = sf.train(fm, DATA, out=tmp_path / name, steps=6, loss=loss, callbacks=callbacks, **OPTIONS)
        return found.model.net.weight, loss.target.net.weight

    whole, stopped, rest = run("a"), run("b", lambda moment: moment.step == 3), run("b")
    for one, other in zip(rest, whole, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(stopped[0], whole[0])


@pytest.mark.parametrize(
    ("loss", "kind", "options"),
    [
        (consistency_loss, "consistency", {"pairs": Karras(10)}),
        (scm_loss, "trig", {"warmup": 4}),
        (meanflow_loss, "average", {}),
        (shortcut_loss, "average", {"follow": 0.9, "levels": 8}),
    ],
)
def test_every_loss_goes_through_the_loop(loss, kind, options, tmp_path):
    fm = fresh(kind)
    before = fm.net.weight.detach().clone()
    found = sf.train(fm, DATA, out=tmp_path, steps=4, loss=Staged(loss, fm, **options), **OPTIONS)
    assert found.finished
    assert not torch.equal(fm.net.weight, before)


def test_the_warmup_of_the_tangent_rises():
    seen, fm = [], fresh("trig")

    def told(model, x0, *, warmup=1.0, seed=None, noise=None):
        seen.append(warmup)
        return x0[:, 0]

    loss = Staged(told, fm, warmup=4)
    for step in (0, 1, 3, 9):
        loss.before(step, 10, fm)
        loss(fm, DATA, noise=DATA)
    assert seen == [0.0, 0.25, 0.75, 1.0]


def test_what_means_nothing_is_refused(tmp_path):
    fm = fresh()
    for arguments, told in (
        ({"loss": scm_loss, "follow": 0.9}, "follow=0.9: give scm_loss a target"),
        ({"loss": consistency_loss, "follow": 1.0}, "a decay from 0 up to 1"),
        ({"loss": consistency_loss, "warmup": 3}, "consistency_loss takes no such"),
    ):
        with pytest.raises(ValueError, match=told):
            Staged(fm=fm, **arguments)
    with pytest.raises(InputError, match="give steps="):
        sf.train(fm, DATA, out=tmp_path, minutes=1.0, loss=Staged(consistency_loss, fm), **OPTIONS)
