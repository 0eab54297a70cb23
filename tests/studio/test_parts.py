"""What stands between the page and the computations: work that can be stopped, pictures, models, words."""

import re
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield.bundled import BUNDLED
from scorefield.cli import main
from scorefield.errors import InputError
from scorefield.studio import show
from scorefield.studio.complete import Complete
from scorefield.studio.draw import Draw
from scorefield.studio.judge import Judged
from scorefield.studio.opened import open_images, runs_here
from scorefield.studio.pictures import data_url, from_data_url, heat, kept, picture_of, uploaded
from scorefield.studio.words import one_line
from scorefield.studio.work import Stopped, Task, Watch


def test_work_is_stopped_at_the_next_call_of_the_network(run):
    opened, watch = open_images(run), Watch()
    task = Task(lambda: Draw(n=1, sampler="euler-maruyama", steps=1000).run(opened, watch), opened.net, watch)
    for seen in task:
        if seen.calls:
            watch.stop()
    with pytest.raises(Stopped):
        task.result()
    assert 0 < watch.calls < 1000
    assert not opened.net._forward_pre_hooks


def test_who_leaves_stops_the_work(run):
    opened, watch = open_images(run), Watch()
    for _ in Task(lambda: Draw(n=1, sampler="euler-maruyama", steps=1000).run(opened, watch), opened.net, watch):
        break
    assert watch.calls < 1000
    assert not [t for t in threading.enumerate() if t.daemon and t.name.endswith("(_body)")]


def test_work_hands_on_results_errors_and_remarks():
    net, watch = torch.nn.Identity(), Watch()
    done = Task(lambda: net(torch.ones(1)) * 2, net, watch)
    assert list(done) == []
    assert float(done.result()) == 2
    assert watch.calls == 1

    def fails():
        import warnings

        warnings.warn("samples left the data", RuntimeWarning, stacklevel=1)
        raise InputError("no")

    failed = Task(fails, net, watch)
    list(failed)
    with pytest.raises(InputError, match="no"):
        failed.result()
    assert watch.remarks == ["samples left the data"]
    assert "samples left the data" in show.remarks(watch, "done")


def test_progress_has_a_fraction_where_it_is_known():
    watch = Watch()
    assert watch.fraction is None
    watch.expected, watch.calls = 20, 5
    assert watch.fraction == 0.25
    assert "value='0.250'" in show.progress(watch)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_survive_the_way_to_the_page_and_back(channels, tmp_path):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(from_data_url(data_url(picture_of(pixels)), channels), pixels)
    path = kept(tmp_path, pixels, "image")
    assert kept(tmp_path, pixels, "image") == path
    assert kept(tmp_path, 255 - pixels, "image") != path
    assert torch.equal(sf.data.open_data(path, (channels, 5, 7)).read([0])[0], pixels)


@pytest.mark.parametrize("text", ["", "x", "data:image/png;base64,", "data:image/png;base64,AAAA"])
def test_a_pad_without_a_picture(text):
    with pytest.raises(InputError, match="draw or upload one"):
        from_data_url(text, 1)


def test_uploads_are_fitted_and_told(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(path)
    pixels, told = uploaded(str(path), (1, 28, 28))
    assert pixels.shape == (1, 28, 28)
    assert told == "photo.png was cropped and resized from 60 x 40 to 28 x 28"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
    assert uploaded(str(path), (1, 28, 28))[1] == "photo.png is used as it is"


@pytest.mark.parametrize("content", [b"", b"From: someone\n", b"\x89PNG\r\n\x1a\n cut off"])
def test_an_upload_that_is_no_picture_gets_one_line_with_its_name_alone(tmp_path, content):
    path = tmp_path / "letter.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^letter\.png") as caught:
        uploaded(str(path), (1, 28, 28))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_mask_must_leave_something_to_do(run, tmp_path):
    opened = open_images(run)
    image = kept(tmp_path, sf.digits()[0], "image")
    for value, words in ((255, "is known; cover"), (0, "is covered; leave")):
        mask = kept(tmp_path, torch.full((1, 28, 28), value, dtype=torch.uint8), "mask")
        with pytest.raises(InputError, match=words):
            Complete(image, mask, steps=2).run(opened, Watch())


def test_models_that_are_offered_and_refused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert runs_here() == [*BUNDLED]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(run)
    assert runs_here() == [*BUNDLED, "runs/mine"]
    assert open_images("runs/mine").shape == (1, 28, 28)
    with pytest.raises(InputError, match="no model is named"):
        open_images(" ")
    with pytest.raises(InputError, match="nowhere"):
        open_images("nowhere")
    table = sf.data.array(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    sf.train(
        sf.ScoreModel(sf.nn.MLP(3), sf.VP(), shape=(3,)), table, out="runs/table", steps=1, batch_size=4, device="cpu"
    )
    with pytest.raises(InputError, match="shows grey and colour images"):
        open_images("runs/table")


def test_the_page_has_no_dashes_before_its_options():
    assert one_line(InputError("--operator='x' is unknown;\n give --noise or non-zero -n")) == (
        "operator='x' is unknown; give noise or non-zero n"
    )


def test_the_map_of_losses_goes_from_dark_to_light():
    colours = np.asarray(heat(torch.tensor([[0.0, 2.0, 5.0, 8.0, 20.0, -4.0]]), 8.0)).astype(int)[0]
    light = colours.sum(1)
    assert list(light[:4]) == sorted(light[:4])
    assert list(colours[3]) == list(colours[4])
    assert colours[5][2] > colours[5][0]  # bits that are gained are blue


def test_a_figure_stands_beside_what_is_usual(run):
    opened = open_images("digits")
    image, flat = torch.zeros(1, 28, 28), torch.ones(1, 28, 28)
    texts = {bits: show.judged(opened, image, Judged(bits, 0.01, 1.0, flat, flat, 9)) for bits in (0.3, 1.2, 4.0)}
    assert "1.200 ± 0.010 bits per dimension" in texts[1.2]
    for bits, word in (
        (0.3, "likelier than nearly all"),
        (1.2, "as likely as most"),
        (4.0, "less likely than nearly all"),
    ):
        assert f"this one is {word}" in texts[bits]
    assert "this one" not in show.judged(open_images(run), image, Judged(1.0, 0.01, 1.0, flat, flat, 9))


def test_the_command_refuses_what_it_cannot_open(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["nowhere"], "nowhere"),
        (["--port", "0"], "--port=0 is impossible"),
        (["--port", "x"], "port"),
    ):
        assert main(["studio", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "gradio" else find(name, *a))
    assert main(["studio"]) == 2
    assert 'pip install "scorefield[studio]"' in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["studio", "--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"Example: scorefield studio", text)
    assert "--no-browser" in text
