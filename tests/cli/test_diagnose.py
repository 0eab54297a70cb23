"""`scorefield diagnose`: a page and values of a run, honest of one that is hardly trained."""

import json
import shutil

import numpy as np
import pytest

from cli_tools import assert_one_line


@pytest.fixture
def data(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(1).integers(0, 256, (20, 8, 8), dtype=np.uint8))
    return tmp_path / "x.npy"


def test_a_run_of_two_steps_is_said_to_be_untrained(cli, trained, data, tmp_path):
    page = tmp_path / "page.html"
    words = ["diagnose", trained, "--data", data, "--only", "start,calibration,memory", "--out", page, "--json"]
    status, out, _ = cli(*words)
    assert status == 0
    chapters = json.loads(out)["chapters"]
    assert chapters["calibration"]["verdict"] == "act"
    assert "it needs the training data" in json.loads(out)["left_out"]["memory"]
    assert "To act on: Is the score calibrated?" in page.read_text()


def test_an_unknown_chapter_is_refused_in_one_line(cli, trained, data):
    status, _, err = cli("diagnose", trained, "--data", data, "--only", "colour")
    assert status == 2
    assert_one_line(err, "unknown chapter colour", "calibration")


def test_data_of_another_kind_is_refused_in_one_line(cli, trained, tmp_path):
    np.save(tmp_path / "floats.npy", np.zeros((20, 8, 8), dtype=np.float32))
    status, _, err = cli("diagnose", trained, "--data", tmp_path / "floats.npy")
    assert status == 2
    assert_one_line(err, "levels")


def test_what_was_computed_is_kept_beside_the_page(cli, trained, data, tmp_path):
    words = ["diagnose", trained, "--data", data, "--only", "start", "--out", tmp_path / "page.html"]
    assert cli(*words)[0] == 0
    kept = json.loads((tmp_path / "page.chapters.json").read_text())
    kept["chapters"]["start"]["found"] = "It was kept."
    (tmp_path / "page.chapters.json").write_text(json.dumps(kept))
    assert "It was kept." in cli(*words)[1]
    assert "It was kept." not in cli(*words, "--overwrite")[1]
    (tmp_path / "page.chapters.json").write_text("[]")
    status, _, err = cli(*words)
    assert status == 2
    assert_one_line(err, "page.chapters.json", "holds no chapters of a diagnosis")


@pytest.mark.parametrize(
    ("shape", "words"),
    [((5, 8, 8), ("5 items", "need 16 or more")), ((20, 9, 9), ("9", "8", "x.npy")), (None, ("x.npy",))],
)
def test_data_that_cannot_be_used_are_refused_in_one_line(cli, trained, tmp_path, shape, words):
    if shape is not None:
        np.save(tmp_path / "x.npy", np.zeros(shape, dtype=np.uint8))
    status, _, err = cli("diagnose", trained, "--data", tmp_path / "x.npy", "--out", tmp_path / "page.html")
    assert status == 2
    assert_one_line(err, *words)
    assert not (tmp_path / "page.html").exists()


def test_a_run_without_averages_is_refused_in_one_line(cli, trained, data, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for file in (tmp_path / "run").glob("step-*/ema*"):
        file.unlink()
    status, _, err = cli("diagnose", tmp_path / "run", "--data", data)
    assert status == 2
    assert "Traceback" not in err
    assert "ema" in err.splitlines()[-1]
    assert not (tmp_path / "run" / "diagnose.html").exists()
