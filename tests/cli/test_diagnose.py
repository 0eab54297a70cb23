"""`scorefield diagnose`: a page and values of a run, honest of one that is hardly trained."""

import json

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
