"""Inverse problems from the command line: measurements by name, every method, and their pictures."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from cli_tools import assert_one_line, tiny_run
from scorefield import inverse
from scorefield.cli.restore import Seen, read_operator
from scorefield.inverse.restore import METHOD_STEPS

SHAPE = (1, 8, 8)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    return path


@pytest.fixture
def mask(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.repeat(np.array([255, 0], np.uint8), 32).reshape(8, 8)).save(path)
    return path


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "colour", channels=3)


@pytest.fixture
def colour_image(tmp_path):
    path = tmp_path / "c.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("span", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize(
    "word", ["downsample:4", "blur:1", "mask", "grayscale", "fourier:0.5", "phase", "clip:0.6"], ids=lambda w: w
)
def test_a_measurement_means_the_same_in_intensities_and_in_the_models_range(word, span, mask):
    """What is read from a file, brought to the model's range, is what the operator makes of the model's image."""
    shape = (3, 8, 8) if word == "grayscale" else SHAPE
    low, high = span
    seen = Seen(read_operator(f"mask:{mask}" if word == "mask" else word, shape, 0), shape, span)
    intensity = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    y, like = seen.operator(intensity), seen.empty()
    assert y.shape[1:] == like.shape[1:]
    assert y.dtype == like.dtype
    assert torch.allclose(seen.to_model(y), seen.in_model(low + (high - low) * intensity), atol=1e-5)
    shifted = seen.to_model(y + 0.01 * seen.measured(torch.ones_like(y))) - seen.to_model(y)
    assert float(shifted.abs().max()) == pytest.approx(0.01 * seen.scale, rel=1e-3)
    assert seen.shown(y).shape[-2:] in ((8, 8), (2, 2))


def test_clip_makes_the_brightest_white():
    seen = Seen(read_operator("clip:0.5", SHAPE, 0), SHAPE, (-1.0, 1.0))
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5])  # intensities 0, 1/4, 1/2, 3/4
    assert torch.allclose(seen.in_model(x), torch.tensor([0.0, 0.5, 1.0, 1.0]))


def test_fourier_measures_the_middle_and_the_wanted_share_of_columns():
    mask = read_operator("fourier:0.25", (1, 8, 32), 3).mask
    assert mask.shape == (8, 32)
    assert mask[0].sum() == 8
    assert bool(mask[0, [0, 1, -1]].all())
    assert bool((mask == mask[0]).all())


@pytest.mark.parametrize("method", METHOD_STEPS)
def test_every_method_writes_samples_and_panel(cli, trained, image, tmp_path, method, monkeypatch):
    monkeypatch.setattr(sys.modules["scorefield.inverse.restore"], "PARTICLES", 16)
    out = tmp_path / "y.png"
    command = ["restore", trained, "--image", image, "--operator", "downsample:4", "--noise", 0.5, "--method", method]
    status, text, err = cli(*command, "--simulate", "-n", 3, "--steps", 2, "--out", out, "--json")
    assert status == 0
    assert all("do not explain" in line for line in err.splitlines())  # in two steps of an untrained network
    values = json.loads(text)
    assert values["psnr"] < 60
    with Image.open(out) as picture:
        assert picture.size == (2 * 10 + 2, 2 * 10 + 2)
    with Image.open(values["panel"]) as picture:  # before, measurement, three samples, mean, standard deviation
        assert picture.size == (7 * 114 + 2, 114 + 2)


@pytest.mark.parametrize("operator", ["blur:1", "mask", "fourier:0.5", "phase", "clip:0.6"])
def test_every_operator_is_simulated_and_restored(cli, trained, image, mask, tmp_path, operator):
    out = tmp_path / "y.npy"
    word = f"mask:{mask}" if operator == "mask" else operator
    command = ["restore", trained, "--image", image, "--operator", word, "--noise", 0.5, "--steps", 2, "--out", out]
    status, _, err = cli(*command, "--simulate", "-n", 2)
    assert status == 0
    assert all("do not explain" in line for line in err.splitlines())  # in two steps of an untrained network
    assert np.load(out).shape == (2, 1, 8, 8)


def test_warnings_name_the_options_of_the_command_line(cli, trained, image, tmp_path):
    command = ["restore", trained, "--image", image, "--operator", "blur:1", "--noise", 1e-4, "--simulate"]
    _, _, err = cli(*command, "--steps", 2, "-n", 1, "--out", tmp_path / "y.npy")
    assert_one_line(err, "do not explain", "take more steps, --method pigdm, or a larger --noise")


def test_a_measurement_file_is_taken_for_what_was_measured(cli, trained, tmp_path):
    y = np.random.default_rng(0).integers(0, 256, (2, 2), dtype=np.uint8)
    Image.fromarray(y).save(tmp_path / "y.png")
    np.save(tmp_path / "y.npy", (y / 255.0)[None])
    found = []
    for name in ("y.png", "y.npy"):
        out = tmp_path / f"x-{name}.npy"
        command = ["restore", trained, "--image", tmp_path / name, "--operator", "downsample:4", "--noise", 0.1]
        assert cli(*command, "-n", 2, "--steps", 3, "--out", out)[0] == 0
        found.append(np.load(out))
    np.testing.assert_allclose(*found, atol=1e-5)
    values = torch.from_numpy(y / 127.5 - 1).float().reshape(1, 1, 2, 2)
    expected = inverse.restore(sf.load(trained), sf.Downsample(4), values, 0.2, 2, steps=3)
    np.testing.assert_allclose(found[0], expected.samples[0].numpy(), atol=1e-4)


def test_complex_measurements_come_from_arrays(cli, trained, tmp_path):
    y = np.fft.fft2(np.random.default_rng(0).uniform(size=(1, 8, 8)), norm="ortho")
    np.save(tmp_path / "y.npy", y)
    command = ["restore", trained, "--image", tmp_path / "y.npy", "--operator", "fourier:0.5", "--steps", 2]
    assert cli(*command, "--noise", 0.3, "--out", tmp_path / "x.png")[0] == 0


def test_colorize_keeps_the_grey(cli, colour_run, image, colour_image, tmp_path):
    out, picture = tmp_path / "y.npy", tmp_path / "panel.png"
    command = ["colorize", colour_run, "-n", 2, "--steps", 3, "--out", out]
    assert cli(*command, "--image", image)[0] == 0
    grey = np.asarray(Image.open(image)) / 127.5 - 1
    np.testing.assert_allclose(np.load(out).mean(1), np.stack([grey, grey]), atol=1e-4)
    assert cli(*command, "--image", colour_image, "--simulate", "--luma", "--panel", picture)[0] == 0
    luma = np.asarray(Image.open(colour_image)) @ np.array([0.299, 0.587, 0.114]) / 127.5 - 1
    found = np.einsum("nchw,c->nhw", np.load(out), [0.299, 0.587, 0.114])
    np.testing.assert_allclose(found, np.stack([luma, luma]), atol=1e-4)
    with Image.open(picture) as panel:
        assert (panel.mode, panel.size) == ("RGB", (6 * 114 + 2, 114 + 2))


def test_inpaint_draws_a_panel_too(cli, trained, image, mask, tmp_path):
    command = ["inpaint", trained, "--image", image, "--mask", mask, "-n", 2, "--steps", 2]
    assert cli(*command, "--out", tmp_path / "y.png", "--panel", tmp_path / "p.png")[0] == 0
    with Image.open(tmp_path / "p.png") as panel:
        assert panel.size == (6 * 114 + 2, 114 + 2)


def test_restore_gives_several_samples_for_each_measurement():
    prior = sf.GaussianMixture(torch.zeros(1, 2).double(), 1.0, None, sf.VP())
    y = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).double()
    found = inverse.restore(prior, sf.Mask(torch.tensor([1, 0])), y, 0.5, 400, steps=50)
    assert found.samples.shape == (2, 400, 2)
    assert torch.allclose(found.mean()[:, 0], torch.tensor([0.8, -1.6]).double(), atol=4 * 0.45 / 20)
    assert torch.allclose(found.std()[:, 0], torch.tensor([0.447] * 2).double(), rtol=4 / 800**0.5)


def test_bad_input_is_named_in_one_line(cli, trained, image, mask, colour_run, colour_image, tmp_path):
    wide, black, text = tmp_path / "w.png", tmp_path / "b.png", tmp_path / "t.npy"
    Image.new("L", (9, 8)).save(wide)
    Image.new("L", (8, 8)).save(black)
    text.write_text("no array")
    out = ["--out", tmp_path / "y.png"]
    restore = ["restore", trained, "--image", image, "--simulate", *out]
    cases = [
        ([*restore, "--operator", "sharpen"], "--operator='sharpen' is unknown"),
        ([*restore, "--operator", "blurr:1"], "did you mean blur"),
        ([*restore, "--operator", "downsample"], "expected such as downsample:4"),
        ([*restore, "--operator", "phase:3"], "expected such as phase"),
        ([*restore, "--operator", "downsample:3"], "3 does not divide"),
        ([*restore, "--operator", "downsample:2.5"], "a whole number"),
        ([*restore, "--operator", "blur:0"], "'0' is impossible"),
        ([*restore, "--operator", "clip:nan"], "'nan' is impossible"),
        ([*restore, "--operator", "fourier:2"], "up to 1"),
        ([*restore, "--operator", "gray"], "colour images"),
        ([*restore, "--operator", f"mask:{wide}"], "is 9 x 8 pixels"),
        ([*restore, "--operator", f"mask:{black}"], "nothing that is known"),
        ([*restore, "--operator", f"mask:{tmp_path}/none.png"], "does not exist"),
        ([*restore, "--operator", "blur:1", "--noise", "-1"], "--noise=-1"),
        ([*restore, "--operator", "blur:1", "--noise", "0"], "--noise=0"),
        ([*restore, "--operator", "phase", "--method", "ddrm"], "needs a linear measurement"),
        ([*restore, "--operator", "blur:1", "--method", "mpps"], "did you mean mmps"),
        ([*restore, "--operator", "blur:1", "--panel", tmp_path / "p.npy"], "a panel is a picture"),
        (["restore", trained, "--image", image, "--operator", "downsample:4", *out], "2 x 2 is expected"),
        (["restore", trained, "--image", image, "--operator", "phase", *out], "cannot hold this measurement"),
        (["restore", trained, "--image", text, "--operator", "phase", *out], "not a NumPy file"),
        (["restore", trained, "--image", wide, "--operator", "blur:1", "--simulate", *out], "8 x 8 is expected"),
        (["colorize", trained, "--image", image, *out], "colours need a run of 3"),
        (["colorize", colour_run, "--image", colour_image, *out], "in colour"),
        (["colorize", colour_run, "--image", image, "--noise", "0.1", *out], "takes grey for exact"),
    ]
    for args, words in cases:
        status, printed, err = cli(*args)
        assert (status, printed) == (2, ""), (args, err)
        assert_one_line(err, words)
    assert not (tmp_path / "y.png").exists()
    assert not (tmp_path / "y-panel.png").exists()
