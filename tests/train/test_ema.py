"""The average of the weights."""

import math

import pytest
import torch

from scorefield.train import EMA


def test_average_of_a_jump_is_the_product_of_decays():
    # Weights jump from 0 to 1 once: after n updates the average is 1 - prod d_i, d_i = min(rate, (1 + i) / (10 + i)).
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.5)
    torch.nn.init.ones_(module.weight)
    for _ in range(20):
        ema.update()
    expected = 1 - math.prod(min(0.5, (1 + i) / (10 + i)) for i in range(1, 21))
    assert float(ema.tensors["weight"]) == pytest.approx(expected, rel=1e-12)


def test_whole_numbers_are_copied_and_float_buffers_averaged():
    module = torch.nn.BatchNorm1d(2)
    ema = EMA(module, 0.0)
    module.num_batches_tracked += 7
    module.running_mean += 3.0
    ema.update()
    assert int(ema.tensors["num_batches_tracked"]) == 7
    assert ema.tensors["running_mean"].tolist() == [3.0, 3.0]


def test_average_leaves_the_weights_alone():
    module = torch.nn.Linear(3, 3)
    before = module.weight.detach().clone()
    ema = EMA(module, 0.9)
    ema.update()
    assert torch.equal(module.weight, before)
    assert ema.tensors["weight"].data_ptr() != module.weight.data_ptr()


def test_continued_average_equals_an_unbroken_one():
    module = torch.nn.Linear(2, 2)
    whole, first = EMA(module, 0.99), EMA(module, 0.99)
    for i in range(10):
        with torch.no_grad():
            module.weight += i
        whole.update()
        first.update()
        if i == 4:
            kept = {k: v.clone() for k, v in first.tensors.items()}
            first = EMA(module, 0.99)
            first.load(kept, 5)
    assert torch.equal(first.tensors["weight"], whole.tensors["weight"])


def test_rate_of_one_is_refused():
    with pytest.raises(ValueError, match="from 0 up to 1"):
        EMA(torch.nn.Linear(1, 1), 1.0)
