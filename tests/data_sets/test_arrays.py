"""Arrays and the embedded digits as datasets."""

import numpy as np
import pytest
import torch

from scorefield.data import array, as_dataset, digits
from scorefield.errors import InputError


def test_digits_split_has_nine_thousand_and_one_thousand():
    assert (len(digits()), len(digits(train=False))) == (9000, 1000)
    assert digits().shape == (1, 28, 28)
    assert digits().levels == 256


def test_digits_labels_follow_their_images():
    # Ones are the digits with the least ink, in any set of handwriting.
    data = digits()
    ink = data.tensor((0.0, 1.0)).flatten(1).mean(1)
    assert min(range(10), key=lambda k: float(ink[data.labels == k].mean())) == 1


@pytest.mark.parametrize("shape", [(5, 3), (5, 7, 2), (5, 2, 3, 4, 6)])
def test_npy_of_any_dimension_is_mapped_not_loaded(tmp_path, shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    data = array(tmp_path / "x.npy")
    assert data.shape == shape[1:]
    assert data.slow
    torch.testing.assert_close(data.read([3, 1]), torch.from_numpy(values[[3, 1]]), rtol=0, atol=0)


def test_npz_takes_images_and_labels(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((4, 2, 2), np.uint8), labels=np.arange(4))
    data = array(tmp_path / "x.npz")
    assert data.shape == (2, 2)
    assert data.labels.tolist() == [0, 1, 2, 3]


def test_image_axes_become_channels_first():
    last = torch.arange(2 * 5 * 6 * 3, dtype=torch.uint8).reshape(2, 5, 6, 3)
    assert torch.equal(array(last, image=True).read([1])[0], last[1].permute(2, 0, 1))
    assert array(last[..., 0], image=True).shape == (1, 5, 6)
    assert array(last.permute(0, 3, 1, 2), image=True).shape == (3, 5, 6)


def test_slice_is_a_dataset_of_its_own():
    part = digits()[10:20:3]
    assert len(part) == 4
    assert torch.equal(part[1], digits()[13])
    assert part.labels[1] == digits().labels[13]
    assert part.item_name(1) == "13"


def test_big_endian_and_unsigned_16_bit_arrays_are_read():
    assert array(np.arange(6, dtype=">f4").reshape(3, 2)).read([2]).tolist() == [[4.0, 5.0]]
    wide = np.array([[65535, 1]], dtype=np.uint16)
    assert array(wide, levels=65536).read([0]).tolist() == [[65535, 1]]


def test_sequence_of_pairs_is_a_dataset_with_labels():
    data = as_dataset([(torch.full((2,), float(i)), i % 2) for i in range(5)])
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert data.read([4]).tolist() == [[4.0, 4.0]]


def test_fingerprint_sees_size_and_content():
    x = torch.arange(40.0).reshape(20, 2)
    assert array(x).fingerprint() == array(x.clone()).fingerprint()
    assert array(x).fingerprint() != array(x[:-1]).fingerprint()
    assert array(x).fingerprint() != array(x + 1).fingerprint()


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.zeros((3,)), {}, r"shape \(3,\)"),
        (np.zeros((0, 2)), {}, "at least one item"),
        (np.zeros((3, 2), np.int64), {}, "give levels="),
        (np.zeros((3, 2)), {"levels": 4}, "holds floats"),
        (np.zeros((3, 2), complex), {}, "complex128"),
        (np.array([["a"]]), {}, "expected integers or floats"),
        (np.zeros((3, 2)), {"range": (1.0, 1.0)}, "is empty"),
        (np.zeros((3, 2)), {"labels": [1, 2]}, "expected 3 integers"),
    ],
)
def test_unusable_array_is_named(values, options, words):
    with pytest.raises(InputError, match=words):
        array(values, **options)


def test_value_outside_the_levels_is_found_on_reading():
    with pytest.raises(InputError, match=r"outside 0 \.\. 3"):
        array(np.array([[1, 9]]), levels=4).read([0])


def test_value_that_is_not_finite_is_found_on_reading():
    x = torch.zeros(5, 2)
    x[3, 1] = float("nan")
    with pytest.raises(InputError, match="item 3 of walk"):
        array(x, name="walk").read([0, 3])


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damaged_file_is_named(tmp_path, name):
    (np.save if name == "x.npy" else np.savez)(tmp_path / name, np.zeros((50, 3)))
    whole = (tmp_path / name).read_bytes()
    for keep in (0, 10, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:keep])
        with pytest.raises(InputError, match=r"x\.np"):
            array(tmp_path / name).read([0])


def test_array_of_objects_is_refused_without_unpickling(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        array(tmp_path / "x.npy")


def test_npz_of_several_arrays_asks_for_a_key(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((3, 2)), b=np.ones((3, 2)))
    with pytest.raises(InputError, match="several arrays"):
        array(tmp_path / "x.npz")
    assert float(array(tmp_path / "x.npz", key="b").read([0]).sum()) == 2
    with pytest.raises(InputError, match="holds no array 'c'"):
        array(tmp_path / "x.npz", key="c")


def test_all_items_that_are_not_finite_are_named_and_one_axis_is_told_what_to_do():
    x = np.zeros((3000, 2))
    x[[3, 10, 77, 500, 501, 2999], 1] = np.nan
    with pytest.raises(
        InputError, match=r"6 of 3,000 items of data .*\(3, 10, 77, 500, 501 and 1 more\); remove or repair"
    ):
        array(x).tensor()
    x[4:] = 0
    with pytest.raises(InputError, match=r"item 3 of data holds a value that is not finite"):
        array(torch.from_numpy(x)).tensor()
    with pytest.raises(InputError, match=r"has shape \(173,\); .* x\[None\] is one item"):
        array(np.zeros(173))
