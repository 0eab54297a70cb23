"""What data is taken for, and what cannot be used."""

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.automatic.findings import find, levels_of
from scorefield.data import array
from scorefield.errors import InputError

DRAWS = np.random.default_rng(0)


def waves(count, length):
    t = np.linspace(0, 1, length)
    return np.sin(2 * np.pi * (3 * t + DRAWS.random((count, 1)))).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "kind", "shape"),
    [
        (DRAWS.normal(size=(50, 3)), "vector", (3,)),
        (DRAWS.normal(size=50), "vector", (1,)),
        (DRAWS.normal(size=(50, 200)), "vector", (200,)),
        (waves(50, 200), "signal", (1, 200)),
        (DRAWS.normal(size=(50, 2, 100)), "signal", (2, 96)),
        (DRAWS.normal(size=(50, 24, 24)), "picture", (1, 24, 24)),
        (DRAWS.integers(0, 255, (50, 20, 20), np.uint8), "picture", (1, 20, 20)),
        (DRAWS.integers(0, 255, (50, 20, 21, 3), np.uint8), "picture", (3, 20, 20)),
        (DRAWS.normal(size=(50, 5, 16, 16)), "picture", (5, 16, 16)),
        (DRAWS.normal(size=(50, 24, 24, 24)), "volume", (1, 24, 24, 24)),
        (DRAWS.normal(size=(50, 2, 16, 16, 16)), "volume", (2, 16, 16, 16)),
        ([[float(i), float(i * i)] for i in range(30)], "vector", (2,)),
    ],
)
def test_kind_and_form(data, kind, shape):
    found = find(data)
    assert (found.kind, found.data.shape, found.held_out.shape) == (kind, shape, shape)
    assert found.data.read([0]).shape == (1, *shape)
    assert found.data.size + found.held_out.size == len(data)


def test_what_was_cut_is_said():
    assert "cut from 101 to its middle, [2:98], so that" in str(find(DRAWS.normal(size=(50, 2, 101))))


def test_a_folder_is_grey_where_no_picture_has_colour(tmp_path):
    for i in range(20):
        Image.fromarray(DRAWS.integers(0, 255, (20, 30), np.uint8)).save(tmp_path / f"{i}.png")
    assert find(str(tmp_path)).data.shape == (1, 16, 16)
    assert find(str(tmp_path), size=24).data.shape == (1, 24, 24)
    Image.new("RGB", (30, 30), (255, 0, 0)).save(tmp_path / "red.png")
    assert find(str(tmp_path)).data.shape == (3, 16, 16)


def test_vectors_have_no_mean_and_the_unit_covariance_of_what_is_trained_on():
    mix = np.array([[3.0, 0.0], [4.0, 0.5]])
    rows = DRAWS.normal(size=(400, 2)) @ mix.T + np.array([100.0, -7.0])
    # Of classes there is no mixture, which may like other units better.
    found = find(array(rows, labels=[0, 1] * 200), labels=True)
    assert found.law is None
    x = found.data.tensor().double()
    torch.testing.assert_close(x.mean(0), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cov(x.T, correction=0), torch.eye(2).double(), atol=1e-5, rtol=0)
    raw = found.data.read(range(5))
    torch.testing.assert_close(
        found.data.scale.to_units(found.data.scale.to_model(raw).double()), raw, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (np.zeros((3, 2)), {}, "data has 3 items; give at least 20"),
        (np.zeros((1, 2)), {}, "data has 1 item; give"),
        (np.zeros((30, 2)), {}, "2 entries of data never change .0, 1."),
        (np.full((30, 1, 8, 8), 7, np.uint8), {}, "all items of data are the same"),
        (DRAWS.normal(size=(20, 1_000_000)).astype(np.float32), {"kind": "vector"}, "vectors of 1,000,000 entries"),
        (DRAWS.normal(size=(30, 3)), {"labels": True}, "has no classes"),
        (DRAWS.normal(size=(30, 3)), {"kind": "volume"}, "which are no volumes"),
        (DRAWS.normal(size=(30, 3)), {"kind": "sound"}, "kind='sound' is unknown"),
        (np.array([[1.0, np.nan]] * 30), {}, "not finite"),
        (DRAWS.normal(size=(30, 2, 2, 2, 2, 2)), {}, "give vectors, signals, pictures or volumes"),
    ],
)
def test_what_cannot_be_used_is_one_line(data, options, words):
    with pytest.raises(InputError, match=words) as caught:
        find(data, **options)
    assert "\n" not in str(caught.value)


def test_places_that_hold_nothing_to_learn_from(tmp_path):
    with pytest.raises(InputError, match="no images in it"):
        find(str(tmp_path))
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="has 1 item; give at least 20"):
        find(str(tmp_path))
    with pytest.raises(InputError, match="is one picture; give a folder of at least 20"):
        find(str(tmp_path / "a.png"))
    with pytest.raises(InputError, match="does not exist"):
        find(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"labels of data have shape .3,. .* expected 30"):
        find(array(np.zeros((30, 2)), labels=[0, 1, 2]))


@pytest.mark.parametrize(("side", "levels"), [(4, 1), (13, 1), (14, 2), (16, 2), (28, 3), (32, 3), (56, 4), (500, 4)])
def test_levels_leave_at_least_seven(side, levels):
    assert levels_of(side) == levels
