"""Raw items in the range of a model: scaling, dequantisation, flips."""

import pytest
import torch

from scorefield.data import array
from scorefield.data.dataset import flip_some, to_range


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
    x = to_range(data.read([0]), data, (-1.0, 1.0), torch.Generator().manual_seed(0))
    assert float(x.min()) >= -1 + 10 / 17
    assert float(x.max()) <= -1 + 12 / 17
    assert float(x.mean()) == pytest.approx(-1 + 11 / 17, abs=4 * (2 / 17) / (12 * 20_000) ** 0.5)
    assert float(x.var()) == pytest.approx((2 / 17) ** 2 / 12, rel=0.05)


def test_flips_mirror_half_of_the_items_along_the_last_axis():
    x = torch.arange(3.0).expand(4000, 2, 3)
    y = flip_some(x, torch.Generator().manual_seed(1))
    flipped = y[:, 0, 0] == 2
    assert torch.equal(y[flipped], x[flipped].flip(-1))
    assert torch.equal(y[~flipped], x[~flipped])
    assert float(flipped.float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
