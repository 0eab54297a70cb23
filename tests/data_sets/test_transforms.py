"""Raw items in the range of a model: scaling, dequantisation, flips."""

import pytest
import torch

from scorefield.data import array
from scorefield.data.dataset import flip_where, to_range


@pytest.mark.parametrize("to", [(-1.0, 1.0), (0.0, 1.0)])
def test_lowest_and_highest_level_reach_the_ends(to):
    data = array(torch.tensor([[0, 255]], dtype=torch.uint8))
    torch.testing.assert_close(data.tensor(to), torch.tensor([to]))


def test_float_data_of_known_range_is_scaled_and_of_unknown_range_is_not():
    x = torch.tensor([[2.0, 6.0]])
    assert array(x, range=(2.0, 6.0)).tensor().tolist() == [[-1.0, 1.0]]
    assert array(x).tensor().tolist() == [[2.0, 6.0]]


def test_dequantised_level_is_uniform_in_its_cell():
    # Level 5 of 17 on [-1, 1]: uniform on [-1 + 10/17, -1 + 12/17], variance (2/17)^2 / 12.
    data = array(torch.full((1, 20_000), 5, dtype=torch.uint8), levels=17)
    u = torch.rand((1, 20_000), generator=torch.Generator().manual_seed(0))
    x = to_range(data.read([0]), data, (-1.0, 1.0), u)
    assert float(x.min()) >= -1 + 10 / 17
    assert float(x.max()) <= -1 + 12 / 17
    assert float(x.mean()) == pytest.approx(-1 + 11 / 17, abs=4 * (2 / 17) / (12 * 20_000) ** 0.5)
    assert float(x.var()) == pytest.approx((2 / 17) ** 2 / 12, rel=0.05)


def test_flip_mirrors_the_chosen_items_along_the_last_axis():
    x = torch.arange(12.0).reshape(2, 2, 3)
    assert flip_where(torch.tensor([True, False]), x).tolist() == [[[2, 1, 0], [5, 4, 3]], x[1].tolist()]
