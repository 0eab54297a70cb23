"""One rule for what belongs to single samples: whatever holds rows follows its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield import guide, inverse
from scorefield.rows import bound, held, take

INDEX = torch.tensor([2, 0])


@dataclass(frozen=True)
class Shift:
    """A hook of a user's: moves each sample by a row of its own."""

    by: Tensor
    times: float = 1.0

    per_sample: ClassVar[tuple[str, ...]] = ("by",)

    def __call__(self, x, t, field, noise):
        return x

    def finish(self, x):
        return x + self.times * self.by


@dataclass(frozen=True)
class Both:
    """A value that holds others."""

    first: Shift
    second: Shift


def test_fields_with_rows_are_taken_and_all_else_is_shared():
    rows, one = torch.arange(6.0).reshape(3, 2), torch.ones(1, 2)
    both = Both(Shift(rows, 2.0), Shift(one))
    part = take(both, INDEX)
    assert torch.equal(part.first.by, rows[INDEX])
    assert part.first.times == 2.0
    assert part.second is both.second
    assert held(both) == 3
    assert held(part.second) is None
    assert take(Both(both.second, both.second), INDEX).first is both.second


def test_a_mask_has_rows_only_if_it_has_the_dimensions_of_a_batch():
    mask = inverse.Mask(torch.eye(3).bool())
    assert torch.equal(take(mask, INDEX, ndim=2).mask, mask.mask[INDEX])
    assert take(mask, INDEX, ndim=3) is mask
    assert held(mask, ndim=2) == 3
    assert held(mask, ndim=3) is None
    composed = inverse.Dense(torch.ones(1, 3), (3,)) @ mask
    assert torch.equal(take(composed, INDEX, ndim=2).first.mask, mask.mask[INDEX])


def test_guided_models_hold_what_their_guidance_holds():
    gm = sf.GaussianMixture(torch.zeros(2, 3), 1.0, None, sf.VP())
    clf = guide.ClassifierGuidance(lambda x, t: gm.posterior(x, t).log(), [0, 1, 0])
    model = gm | clf | inverse.Posterior(inverse.Mask(torch.eye(3)), torch.ones(1, 3), 0.5)
    assert held(model) == 3
    part = take(model, INDEX)
    assert torch.equal(part.base.guidance.label, torch.tensor([0, 0]))
    assert torch.equal(part.guidance.operator.mask, torch.eye(3)[INDEX].bool())
    assert take(gm, INDEX) is gm


def test_a_weaker_model_with_conditions_follows_its_samples_too():
    gm = sf.GaussianMixture(torch.zeros(2, 3), 1.0, None, sf.VP())
    weak = gm | guide.ClassifierGuidance(lambda x, t: gm.posterior(x, t).log(), [0, 1, 0])
    model = gm | guide.Autoguidance(weak)
    assert held(model) == 3
    assert torch.equal(take(model, INDEX).guidance.weak.guidance.label, torch.tensor([0, 0]))


def test_a_hook_of_ones_own_follows_its_samples_through_chunks():
    model = sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(2,))
    hook = Shift(torch.arange(6.0).reshape(3, 2))
    whole, parts = (
        sf.sample(model, 3, sf.DDIM(), steps=3, denoise=True, seed=0, hooks=[hook], batch_size=b) for b in (3, 2)
    )
    torch.testing.assert_close(whole, parts)
    plain = sf.sample(model, 3, sf.DDIM(), steps=3, denoise=True, seed=0)
    torch.testing.assert_close(whole, plain + hook.by)


def test_different_numbers_of_samples_are_refused_by_name():
    with pytest.raises(ValueError, match="first is for 3 samples, second is for 2 samples"):
        held(Both(Shift(torch.ones(3, 2)), Shift(torch.ones(2, 2))))
    with pytest.raises(ValueError, match="by has 2 rows but more samples are asked for"):
        take(Shift(torch.ones(2, 2)), INDEX)
    with pytest.raises(ValueError, match="Shift holds conditions for 2 samples"):
        sf.sample(sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(2,)), 3, steps=2, hooks=[Shift(torch.ones(2, 2))])


@pytest.mark.parametrize("make", [inverse.Replace, inverse.Posterior, inverse.DDRM], ids=lambda c: c.__name__)
def test_a_measurement_of_one_events_shape_is_for_all_samples(make):
    """Events (2, 2) with y (2, 2), and n = 2: still one measurement, though it has as many rows as there are samples."""
    mask = inverse.Mask(torch.tensor([[1, 0], [0, 1]]))
    y = torch.tensor([[0.3, 0.0], [0.0, -0.2]])
    gm = sf.GaussianMixture(torch.zeros(1, 2, 2), 1.0, None, sf.VP())

    def draw(y):
        kind = make(mask, y)
        if make is inverse.Replace:
            return sf.sample(gm, 2, sf.Ancestral(), steps=5, seed=0, hooks=[kind])
        if make is inverse.DDRM:
            return sf.sample(gm, 2, kind, steps=5, seed=0)
        return sf.sample(gm | kind, 2, steps=5, seed=0)

    assert torch.equal(draw(y), draw(y[None]))
    assert torch.equal(draw(y.numpy()), draw(y))
    with pytest.raises(ValueError, match=r"y has shape \(3, 3\) where a sample \(2, 2\) is measured as \(2, 2\)"):
        draw(torch.zeros(3, 3))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="y: 1 of 4 entries are NaN or infinite"):
            draw(torch.tensor([[bad, 0.0], [0.0, 0.1]]))


def test_without_a_shape_a_measurement_must_have_its_axis_of_samples():
    model = sf.ScoreModel(lambda x, t: x, sf.VP()) | inverse.Posterior(inverse.Mask(torch.ones(4)), torch.zeros(4))
    with pytest.raises(ValueError, match=r"give it an axis of samples, y\[None\]"):
        model.score(torch.zeros(4, 4), 0.5)


def test_bound_leaves_alone_what_has_nothing_to_settle():
    solver = sf.Heun()
    assert bound(solver, (3,)) is solver
