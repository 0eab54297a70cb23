"""The configuration of a run."""

import math

import pytest

from scorefield.errors import InputError
from scorefield.training import OptimConfig, TrainConfig


def test_learning_rate_rises_linearly_and_stays():
    optim = OptimConfig(lr=1.0, warmup=4)
    assert [optim.lr_at(s, 100) for s in (0, 1, 2, 3, 4, 99)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5 * (1 - math.cos(math.pi / 2)))])
def test_learning_rate_falls_to_zero(schedule, middle):
    optim = OptimConfig(lr=1.0, warmup=10, schedule=schedule)
    assert optim.lr_at(10, 110) == pytest.approx(1.0)
    assert optim.lr_at(60, 110) == pytest.approx(middle)
    assert optim.lr_at(109, 110) < 0.02


def test_optimiser_fields_need_no_prefix():
    config = TrainConfig().updated(lr=0.5, steps=7, optim=OptimConfig(warmup=3))
    assert (config.optim.lr, config.optim.warmup, config.steps) == (0.5, 3, 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 3}, "did you mean steps"),
        ({"steps": -5}, "steps=-5 is impossible; expected 1 or more"),
        ({"lr": 0.0}, "optim.lr=0.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"schedule": "step"}, "constant, linear, cosine, cooldown"),
        ({"weighting": "snr"}, "one of auto, noise, likelihood"),
        ({"precision": "int8"}, "fp32, bf16, fp16"),
    ],
)
def test_impossible_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        TrainConfig().updated(**options)
