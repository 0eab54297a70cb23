"""Folders of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import images, open_data
from scorefield.data.images import read_image
from scorefield.errors import InputError, ScorefieldWarning


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cat" / "deep").mkdir(parents=True)
    (tmp_path / "dog").mkdir()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "cat" / "deep" / "a.png")
    Image.new("L", (16, 64), 128).save(tmp_path / "cat" / "b.jpg", quality=100)
    Image.new("RGBA", (8, 8), (0, 0, 255, 0)).save(tmp_path / "dog" / "c.PNG")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    return tmp_path


def test_nested_folder_of_mixed_sizes_and_modes_has_one_shape(folder):
    data = images(folder, (12, 20))
    assert len(data) == 3
    assert data.tensor().shape == (3, 3, 12, 20)
    assert [data.item_name(i) for i in range(3)] == ["cat/b.jpg", "cat/deep/a.png", "dog/c.PNG"]


def test_transparent_pixels_become_white_not_their_hidden_colour(folder):
    assert images(folder, 8)[2].unique().tolist() == [255]


def test_subfolders_are_classes(folder):
    data = images(folder, 8, labels=True)
    assert data.classes == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 1]


def test_image_outside_every_subfolder_has_no_class(folder):
    Image.new("L", (4, 4)).save(folder / "loose.png")
    with pytest.raises(InputError, match=r"loose\.png is outside"):
        images(folder, 8, labels=True)


def test_what_is_no_picture_is_told_where_it_belongs(tmp_path):
    (tmp_path / "book.txt").write_text("thé old man and the sea\n" * 60, "utf-8")
    for shape in (None, (5,)):
        with pytest.raises(InputError, match=r"book\.txt is text, .* scorefield train text --data"):
            open_data(str(tmp_path / "book.txt"), shape)
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="is not an image"):
        open_data(str(tmp_path / "noise.bin"))
    for name in ("clean", "noisy"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"clean/ and noisy/ recordings .* scorefield train speech --data"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_every_mode_becomes_grey_and_colour(tmp_path, mode):
    compression = "tiff_lzw" if mode == "YCbCr" else None  # Pillow 12.3 cannot read its own uncompressed ones
    picture = Image.new("L", (4, 4), 255).convert("I" if mode.startswith("I") else mode).convert(mode)
    picture.save(tmp_path / "a.tiff", compression=compression)
    for channels in (1, 3):
        assert images(tmp_path, 4, channels=channels)[0].unique().tolist() == [255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation):
    upright = np.array([[0, 60, 120], [180, 220, 250]], np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert images(tmp_path, (2, 3), channels=1)[0][0].tolist() == upright.tolist()


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the left edge is up
    picture.save(tmp_path / "a.png", exif=exif)
    assert images(tmp_path, 2, channels=1)[0].tolist() == [[[255, 0], [255, 0]]]


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 32768], [65535, 257]], np.uint16)).save(tmp_path / "a.png")
    assert images(tmp_path, 2, channels=1)[0].tolist() == [[[0, 128], [255, 1]]]


def test_text_called_png_is_named_with_its_first_characters(folder):
    (folder / "cat" / "mail.png").write_text("From: somebody")
    with pytest.raises(InputError, match=r"cat/mail\.png is not an image \(starts with 'From: '\)"):
        images(folder, 8)


def test_skip_broken_leaves_the_file_out_with_a_warning(folder):
    (folder / "cat" / "mail.png").write_text("From: somebody")
    with pytest.warns(ScorefieldWarning, match="1 of 4 files left out"):
        assert len(images(folder, 8, skip_broken=True)) == 3


def test_image_cut_off_after_its_header_is_found_on_decoding(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    Image.new("L", (64, 64), 7).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"a\.png is damaged"):
        images(tmp_path, 8)[0]
    assert images(tmp_path, 8, skip_broken=True)[0].unique().tolist() == [7]


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        images(tmp_path / "photos")
    with pytest.raises(InputError, match="no images in it"):
        images(tmp_path)


def test_colour_is_not_turned_to_grey_unless_asked(folder):
    data = open_data(str(folder), (1, 8, 8))
    with pytest.raises(InputError, match=r"has 3 channels .* 1 .* is expected"):
        data.tensor()
    assert open_data(str(folder), (1, 8, 8), convert=True).tensor().shape == (3, 1, 8, 8)


def test_grey_stored_as_colour_passes_as_grey(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    assert open_data(str(tmp_path), (1, 4, 4))[0].unique().tolist() == [9]


def test_open_data_names_a_wrong_channel_count(tmp_path):
    np.save(tmp_path / "rgb.npy", np.zeros((4, 3, 8, 8), np.uint8))
    with pytest.raises(InputError, match=r"rgb\.npy has 3 channels .* and 1 are expected"):
        open_data(str(tmp_path / "rgb.npy"), (1, 8, 8))


def test_second_reading_does_not_need_the_files(folder):
    data = images(folder, 8)
    first = data.tensor()
    for file in folder.rglob("*.*"):
        if file.is_file():
            file.unlink()
    assert torch.equal(data.tensor(), first)


def test_memory_that_runs_out_is_not_a_damaged_file(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def full(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png", 3)
