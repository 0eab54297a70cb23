"""Estimators of the divergence against traces known in closed form."""

import pytest
import torch

from scorefield.likelihood.trace import Exact, Hutchinson, HutchPlusPlus, Linearizer

D, B = 6, 3


def linear_field(seed=0):
    gen = torch.Generator().manual_seed(seed)
    a = torch.randn(B, D, D, generator=gen, dtype=torch.float64)
    x = torch.randn(B, D, generator=gen, dtype=torch.float64)
    return a, x, lambda z: torch.einsum("bij,bj->bi", a, z)


def signs(k, seed=2):
    return torch.randn(k, B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sign()


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("memory", [1, 2**30])
def test_exact_is_the_trace_in_any_memory(mode, memory):
    a, x, field = linear_field()
    value, trace = Exact(Linearizer(mode), memory)(field, x)
    assert torch.allclose(value, field(x))
    assert torch.allclose(trace.squeeze(1), a.diagonal(dim1=1, dim2=2).sum(1))


def test_less_memory_means_fewer_directions_at_a_time():
    _, x, field = linear_field()
    seen = []

    def watched(z):
        seen.append(len(getattr(z, "packed", z)) - 1)
        return field(z)

    Exact(Linearizer("forward"), 2 * 8 * x.numel() * 4)(watched, x)
    assert max(seen) < D
    assert sum(seen[1:]) == D  # after the measurement of one direction


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_hutchinson_is_the_quadratic_form_of_each_probe(mode):
    a, x, field = linear_field()
    e = signs(5)
    columns = Hutchinson(e, Linearizer(mode))(field, x)[1]
    assert torch.allclose(columns, torch.einsum("kbi,bij,kbj->bk", e, a, e))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_hutch_plus_plus_is_exact_when_its_sketch_spans_the_space(mode):
    a, x, field = linear_field()
    columns = HutchPlusPlus(signs(D), torch.randn(D, B, D, dtype=torch.float64), Linearizer(mode))(field, x)[1]
    assert torch.allclose(columns, a.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).expand(-1, D), atol=1e-9)


def test_hutch_plus_plus_finds_a_trace_of_low_rank():
    gen = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, B, D, 2, generator=gen, dtype=torch.float64)
    x = torch.randn(B, D, generator=gen, dtype=torch.float64)
    field = lambda z: torch.einsum("bir,bjr,bj->bi", u, v, z)  # noqa: E731
    columns = HutchPlusPlus(signs(2, 1), signs(2), Linearizer("forward"))(field, x)[1]
    assert torch.allclose(columns, (u * v).sum((1, 2)).unsqueeze(1).expand(-1, 2), atol=1e-9)


def test_hutch_plus_plus_is_unbiased_given_its_sketch():
    a, x, field = linear_field()
    # Over all 2^D sign vectors the mean of e^T M e is the trace exactly.
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * D)
    e = every.unsqueeze(1).expand(-1, B, -1)
    sketch = signs(2).repeat(32, 1, 1)[: len(every)]
    columns = HutchPlusPlus(e, sketch, Linearizer("forward"))(field, x)[1]
    assert torch.allclose(columns.mean(1), a.diagonal(dim1=1, dim2=2).sum(1))


def test_estimators_follow_the_samples_that_stay():
    _, x, field = linear_field()
    index = torch.tensor([2, 0])
    e = signs(2)
    whole = Hutchinson(e)(field, x)[1]
    a = linear_field()[0][index]
    part = Hutchinson(e).take(index)(lambda z: torch.einsum("bij,bj->bi", a, z), x[index])[1]
    assert torch.allclose(part, whole[index])
