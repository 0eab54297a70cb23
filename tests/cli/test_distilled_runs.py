"""What every command makes of a distilled run: it samples, edits and is judged by jumps, and refuses what needs a score."""

import json

import numpy as np
import pytest
from PIL import Image

from cli_tools import assert_one_line, tiny_run
from scorefield.cli import main


def distilled(run, folder, channels):
    np.save(folder / "data.npy", np.random.default_rng(0).integers(0, 256, (20, channels, 8, 8), dtype=np.uint8))
    words = ("distill", run, "--data", folder / "data.npy", "--out", folder / "fast", "--steps", 2, "--batch-size", 4)
    assert main([str(word) for word in words]) == 0
    return folder / "fast"


@pytest.fixture(scope="module")
def fast(trained, tmp_path_factory):
    """Not to be written into; its data lie beside it."""
    return distilled(trained, tmp_path_factory.mktemp("runs"), 1)


def picture(path, values):
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def test_inpainting_keeps_what_is_known(cli, fast, tmp_path):
    known = np.repeat(np.array([255, 0]), 32).reshape(8, 8)
    image, mask = picture(tmp_path / "a.png", np.arange(64).reshape(8, 8) * 4), picture(tmp_path / "m.png", known)
    words = (
        "inpaint",
        fast,
        "--image",
        image,
        "--mask",
        mask,
        "-n",
        2,
        "--steps",
        3,
        "--out",
        tmp_path / "y.npy",
        "--json",
    )
    status, out, err = cli(*words)
    assert status == 0, err
    assert json.loads(out)["nfe"] == 3
    found = np.load(tmp_path / "y.npy")
    expected = np.arange(64).reshape(8, 8) * 4 / 127.5 - 1
    assert np.abs(found[:, 0, :4] - expected[:4]).max() < 1e-4  # without the noise of the map's end
    assert np.abs(found[0, 0, 4:] - found[1, 0, 4:]).max() > 1e-3


def test_restoration_is_by_replacement_alone(cli, fast, tmp_path):
    image, out = picture(tmp_path / "a.png", np.arange(64).reshape(8, 8) * 4), tmp_path / "y.npy"
    words = ("restore", fast, "--image", image, "--operator", "downsample:4", "--simulate", "-n", 2, "--out", out)
    status, _, err = cli(*words, "--steps", 3, "--noise", 0)
    assert status == 0, err
    means = np.load(out).reshape(2, 2, 4, 2, 4).mean((2, 4))
    expected = (np.arange(64).reshape(8, 8) * 4 / 127.5 - 1).reshape(2, 4, 2, 4).mean((1, 3))
    assert np.abs(means - expected).max() < 1e-4
    status, _, err = cli(*words, "--method", "mmps")
    assert status == 2
    assert_one_line(err, "--method mmps needs a score", "use replace")


def test_colours_for_grey(cli, tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("colour")
    run = distilled(tiny_run(folder / "tiny", channels=3), folder, 3)
    grey = picture(tmp_path / "g.png", np.arange(64).reshape(8, 8) * 4)
    status, _, err = cli("colorize", run, "--image", grey, "-n", 2, "--steps", 3, "--out", tmp_path / "y.npy")
    assert status == 0, err
    found = np.load(tmp_path / "y.npy").mean(1)
    assert np.abs(found - (np.arange(64).reshape(8, 8) * 4 / 127.5 - 1)).max() < 1e-4


def test_judged_by_jumps(cli, fast, tmp_path):
    words = ("--data", fast.parent / "data.npy", "-n", 16, "--out", tmp_path / "e.json", "--samples", tmp_path / "s")
    status, out, err = cli("evaluate", fast, *words, "--json")
    assert status == 0, err
    assert json.loads(out)["sampler"].startswith("Jump(")
    status, _, err = cli("evaluate", fast, *words, "--likelihood", 2)
    assert status != 0
    assert_one_line(err, "a flow map has no")


def test_diagnosed_without_a_score(cli, fast, tmp_path):
    words = ("diagnose", fast, "--data", fast.parent / "data.npy", "-n", 16, "--out", tmp_path / "d.html", "--json")
    status, out, err = cli(*words)
    assert status == 0, err
    told = json.loads(out)
    assert set(told["chapters"]) == {"start", "width"}
    assert set(told["chapters"]["width"]["figures"]) == {"1", "2", "4"}
    assert told["left_out"]["gap"] == "it needs a score, and a flow map has none"


@pytest.mark.parametrize(("command", "out"), [("likelihood", "x.csv"), ("encode", "x.npy")])
def test_no_likelihood_and_no_code(cli, fast, tmp_path, command, out):
    status, _, err = cli(command, fast, "--data", fast.parent / "data.npy", "--out", tmp_path / out)
    assert status == 2
    assert_one_line(err, "a flow map has no")
