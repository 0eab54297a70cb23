"""Pixels of every depth, by one rule for a whole folder; folders with loops; pictures of any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import images, open_data
from scorefield.data.pixels import common_span, quiet_pillow
from scorefield.errors import InputError, ScorefieldWarning


def save(path, values, dtype):
    Image.fromarray(np.asarray(values, dtype)).save(path)


def levels(data):
    return [data[i].flatten().tolist() for i in range(len(data))]


def test_twelve_bits_in_sixteen_use_all_levels_and_keep_the_brightness_between_pictures(tmp_path):
    save(tmp_path / "bright.tif", [[0, 4095], [2048, 1024]], np.uint16)
    save(tmp_path / "dark.tif", [[0, 100], [200, 300]], np.uint16)  # alone it would be taken for ten bits
    with pytest.warns(ScorefieldWarning, match=r"from 0 to 4095 of 2 deep images become 256 levels"):
        bright, dark = levels(images(tmp_path, 2, channels=1))
    assert bright == [0, 255, 128, 64]
    assert dark == [0, 6, 12, 19]


def test_floats_and_signed_pixels_go_from_least_to_greatest_over_the_folder(tmp_path):
    save(tmp_path / "a.tif", [[-2.0, 0.0]], np.float32)
    save(tmp_path / "b.tif", [[0.0, 2.0]], np.float32)
    with pytest.warns(ScorefieldWarning, match="from -2 to 2"):
        assert levels(images(tmp_path, (1, 2), channels=1)) == [[0, 128], [128, 255]]
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    save(tmp_path / "a.tif", [[-1000, 1000]], np.int32)
    save(tmp_path / "b.tif", [[0, 500]], np.int32)
    with pytest.warns(ScorefieldWarning, match="from -1000 to 1000"):
        assert levels(images(tmp_path, (1, 2), channels=1)) == [[0, 255], [128, 191]]


def test_deep_pictures_beside_plain_ones_share_their_white(tmp_path):
    save(tmp_path / "deep.png", [[0, 65535]], np.uint16)
    save(tmp_path / "plain.png", [[0, 255]], np.uint8)
    with pytest.warns(ScorefieldWarning):
        assert levels(images(tmp_path, (1, 2), channels=1)) == [[0, 255], [0, 255]]


@pytest.mark.parametrize(
    ("low", "high", "floats", "span"),
    [
        (0, 200, False, (0.0, 255.0)),
        (3, 900, False, (0.0, 1023.0)),
        (0, 40000, False, (0.0, 65535.0)),
        (0, 1e5, False, (0.0, 1e5)),
        (0.1, 0.9, True, (0.0, 1.0)),
        (0.0, 7.0, True, (0.0, 7.0)),
        (5, 5, True, (5, 5 + 1e-12)),
    ],
)
def test_span_follows_the_depth_not_the_content(low, high, floats, span):
    assert common_span([(low, high, floats), (low, low, floats)]) == span


def test_held_out_pictures_take_the_span_of_training(tmp_path):
    save(tmp_path / "dark.tif", [[0, 100]], np.uint16)
    assert images(tmp_path, (1, 2), channels=1, span=(0.0, 4095.0))[0].flatten().tolist() == [0, 6]
    data = open_data(str(tmp_path / "dark.tif"), (1, 1, 2), span=(0.0, 4095.0))
    assert data[0].flatten().tolist() == [0, 6]


def test_a_pixel_that_is_not_finite_is_named(tmp_path):
    save(tmp_path / "a.tif", [[0.0, np.nan]], np.float32)
    with pytest.raises(InputError, match=r"a\.tif is damaged \(a pixel is not finite\)"):
        images(tmp_path, (1, 2), channels=1)[0]


def test_cielab_is_converted(tmp_path):
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "a.tiff")
    assert int(images(tmp_path, 4)[0].min()) >= 250


def test_a_stack_of_pages_is_told(tmp_path):
    pages = [Image.new("L", (4, 4), v) for v in (0, 9)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(ScorefieldWarning, match=r"1 files hold several pages, first a\.tif"):
        assert len(images(tmp_path, 4)) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "a" / "x.png")
    Image.new("L", (4, 4)).save(tmp_path / "b" / "y.png")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    names = [images(tmp_path, 4).item_name(i) for i in range(len(images(tmp_path, 4)))]
    assert names == ["a/other/y.png", "a/x.png", "b/other/x.png", "b/y.png"]


def test_pictures_of_any_size_are_read_and_the_limit_of_pillow_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("1", (40, 40), 1).save(tmp_path / "map.png")
    assert images(tmp_path, 4, channels=1)[0].unique().tolist() == [255]
    assert Image.MAX_IMAGE_PIXELS == 100
    with quiet_pillow(), quiet_pillow():
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 100


def test_names_in_capitals(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2), np.float32))
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    assert torch.equal(open_data(str(tmp_path / "X.NPY")).read([0]), torch.zeros(1, 2))
