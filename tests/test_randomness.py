"""Randomness is an argument: streams per sample, generators, recorded draws."""

from __future__ import annotations

import functools

import pytest
import torch

import scorefield as sf
from oracles import gaussian
from scorefield.randomness import chunks, source

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stream_is_the_same_however_it_is_read(dtype):
    whole = source(3, 4).normal((4, 700), dtype, CPU)
    piecewise = source(3, 4)
    parts = [piecewise.normal((4, size), dtype, CPU) for size in (1, 0, 99, 500, 100)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_single_and_double_precision_read_streams_of_their_own():
    """So an evaluation in float32 in between does not shift the float64 draws."""
    mixed = source(0, 2)
    first = mixed.normal((2, 3), torch.float64, CPU)
    mixed.normal((2, 5), torch.float32, CPU)
    second = mixed.normal((2, 3), torch.float64, CPU)
    assert torch.equal(torch.cat([first, second], 1), source(0, 2).normal((2, 6), torch.float64, CPU))


def test_samples_that_stay_go_on_with_their_own_streams():
    noise = source(1, 5)
    noise.normal((5, 7), torch.float64, CPU)
    rest = noise.take(torch.tensor([4, 1])).normal((2, 600), torch.float64, CPU)
    alone = source(1, 5).normal((5, 607), torch.float64, CPU)
    assert torch.equal(rest, alone[[4, 1], 7:])


def test_streams_are_standard_normal_and_independent():
    """Moments of 200,000 numbers within 4.5 standard errors, within and across streams and seeds."""
    n = 200_000
    z = torch.cat([source(seed, 3).normal((3, n), torch.float64, CPU) for seed in (0, 1)])
    assert z.mean(1).abs().max() < 4.5 / n**0.5
    assert ((z**2).mean(1) - 1).abs().max() < 4.5 * (2 / n) ** 0.5
    across = torch.corrcoef(z) - torch.eye(6, dtype=torch.float64)
    assert across.abs().max() < 4.5 / n**0.5


def test_a_seed_of_its_own_does_not_know_its_place():
    z = source([7, 5, 7], 3).normal((3, 4), torch.float64, CPU)
    assert torch.equal(z[0], z[2])
    assert not torch.equal(z[0], z[1])


def test_rademacher_probes_are_signs():
    signs = source(0, 2).rademacher(torch.zeros(2, 10_000))
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert abs(float(signs.mean())) < 4.5 / 20_000**0.5


def test_chunks_hand_out_the_streams_of_their_rows():
    parts = [noise.normal((noise.size, 3), torch.float32, CPU) for _, noise in chunks(9, None, 7, 3)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), source(9, 7).normal((7, 3), torch.float32, CPU))


@pytest.mark.parametrize("seed", [0, torch.tensor(0), [0, 0], torch.tensor([0, 0])], ids=str)
def test_seeds_may_be_integers_lists_or_tensors(seed):
    drawn = source(seed, 2).normal((2, 3), torch.float64, CPU)
    assert torch.equal(drawn[0], source(0, 1).normal((1, 3), torch.float64, CPU)[0])


def functions():
    banks = [iter([torch.full((2, 3), float(i)) for i in range(4)]) for _ in range(4)]
    yield "no argument", banks[0].__next__
    yield "shape", lambda shape: next(banks[1])
    yield "keyword with default", lambda index=2: next(banks[index])
    yield "partial of a C function", functools.partial(next, banks[3])


@pytest.mark.parametrize("function", [f for _, f in functions()], ids=[n for n, _ in functions()])
def test_recorded_noise_comes_with_or_without_the_shape(function):
    recorded = source(None, 2, function)
    for i in range(3):
        assert torch.equal(
            recorded.normal((2, 3), torch.float64, CPU), torch.full((2, 3), float(i), dtype=torch.float64)
        )


def test_a_function_of_torch_will_do():
    assert sf.sample(gaussian(sf.VP()), 2, sf.EulerMaruyama(), steps=3, noise=torch.randn).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: source([1, 2], 3), "2 seeds for 3 samples"),
        (lambda: source(-1, 1), "from 0 to"),
        (lambda: source(2**64, 1), "from 0 to"),
        (lambda: source(1.5, 2), "seed=1.5: give an integer"),
        (lambda: source([1, 2.5], 2), "one integer per sample"),
        (lambda: source(0, 2, torch.zeros), "either seed= or noise="),
        (lambda: source(0, 2).normal((3, 1), torch.float32, CPU), "2 samples was asked for a batch of 3"),
        (lambda: source(None, 2, lambda: torch.zeros(2)).normal((2, 3), torch.float32, CPU), r"returned shape \(2,\)"),
        (lambda: list(chunks(None, torch.randn, 4, 2)), "batch_size must be at least 4"),
    ],
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
