"""scorefield train without a preset: data of one's own, from nothing to samples and likelihoods."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.automatic import choose
from scorefield.cli import main
from scorefield.cli.files import write_samples
from scorefield.cli.own import words_for
from scorefield.training import read_run

DRAWS = np.random.default_rng(0)
QUICK = ("--steps", "3", "--fast", "--device", "cpu")


@pytest.fixture
def cli(capsys, monkeypatch):
    monkeypatch.setattr(choose, "WIDTHS", dict.fromkeys(choose.WIDTHS, (8,)))

    def run(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def photographs(folder, n=24):
    folder.mkdir()
    for i in range(n):
        Image.fromarray(DRAWS.integers(0, 256, (20, 24, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--data", "x", "--out", "y"], True),
        (["--data=x", "--minutes", "1", "--labels"], True),
        (["--labels", "--data", "x"], True),
        (["--data", "x", "--help"], True),
        (["digits", "--data", "x"], False),
        (["--data", "x", "digits"], False),
        (["vectors"], False),
        (["--help"], False),
        ([], False),
        (["digit"], False),
    ],
)
def test_the_door_opens_where_data_is_named_and_no_preset(args, found):
    assert (words_for(args) is not None) == found


def test_photographs_are_trained_sampled_and_scored(cli, tmp_path):
    run = tmp_path / "run"
    status, out, err = cli("train", photographs(tmp_path / "photos"), "--out", run, *QUICK)
    assert status == 0
    assert "step 3 of 3, finished" in out
    assert "24 pictures of 3 x 16 x 16" in err
    assert cli("sample", run, "-n", "2", "--sampler", "euler", "--steps", "2", "--out", tmp_path / "x.png")[0] == 0
    status, out, _ = cli(
        "evaluate", run, "--data", tmp_path / "photos", "-n", 0, "--loss", 4, "--json", "--out", tmp_path / "e.json"
    )
    assert status == 0
    assert np.isfinite(json.loads(out)["figures"]["loss"]["value"])


def test_a_table_comes_back_in_its_units_and_columns(cli, tmp_path):
    x = DRAWS.normal(size=(60, 2)) * [10, 0.1] + [500, 3]
    (tmp_path / "t.csv").write_text("height,weight\n" + "\n".join(f"{a},{b}" for a, b in x))
    run = tmp_path / "run"
    assert cli("train", "--data", tmp_path / "t.csv", "--out", run, *QUICK)[0] == 0
    assert cli("sample", run, "-n", 200, "--sampler", "euler", "--steps", 5, "--out", tmp_path / "s.csv")[0] == 0
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "height,weight"
    samples = np.array([[float(v) for v in line.split(",")] for line in lines[1:]])
    assert samples.mean(0) == pytest.approx([500, 3], abs=5)
    status, _, err = cli(
        "likelihood", run, "--data", tmp_path / "t.csv", "-n", 4, "--json", "--out", tmp_path / "l.csv"
    )
    assert status == 0, err
    (tmp_path / "other.csv").write_text("weight,height\n" + "\n".join(f"{a},{b}" for a, b in x))
    status, _, err = cli("likelihood", run, "--data", tmp_path / "other.csv", "-n", 4, "--out", tmp_path / "o.csv")
    assert status == 2
    assert "give those of the run, in their order" in err


def test_signals_without_a_channel_go_through(cli, tmp_path):
    t = np.linspace(0, 1, 133)
    np.save(tmp_path / "s.npy", np.sin(2 * np.pi * (3 * t + DRAWS.random((30, 1)))).astype(np.float32))
    run = tmp_path / "run"
    status, _, err = cli("train", "--data", tmp_path / "s.npy", "--out", run, *QUICK)
    assert status == 0
    assert "30 signals of 1 x 128" in err
    assert read_run(run).shape == (1, 128)
    status, _, err = cli(
        "likelihood", run, "--data", tmp_path / "s.npy", "-n", 1, "--tolerance", 0.1, "--out", tmp_path / "l.csv"
    )
    assert status == 0, err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.mkdir(), "no images in it"),
        (lambda p: photographs(p, 1), "has 1 item; give at least 20"),
        (lambda p: np.save(p.with_suffix(".npy"), np.zeros((3, 2))), "has 3 items"),
        (lambda p: np.save(p.with_suffix(".npy"), np.ones((30, 2))), "never change"),
        (lambda p: p.with_suffix(".csv").write_text("a,b\n1,x\n2,y\n"), "has 2 items; give at least 20"),
        (lambda p: p.with_suffix(".csv").write_text("a,b\n1,x\n2,\n"), "has no value in column 'b'"),
        (
            lambda p: p.with_suffix(".csv").write_text("a\n" + "".join(f"w{i}\n" for i in range(99))),
            "99 different words",
        ),
        (lambda p: p.with_suffix(".csv").write_text("a,b\n1,\n2,3\n"), "has no value in column 'b'"),
        (lambda p: np.savez(p.with_suffix(".npz"), x=np.zeros((30, 2)), labels=np.arange(5)), "expected 30"),
    ],
)
def test_bad_data_is_one_line(cli, tmp_path, make, words):
    make(tmp_path / "d")
    (place,) = tmp_path.iterdir()
    status, _, err = cli("train", "--data", place, "--out", tmp_path / "run", *QUICK)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_minutes_of_nothing(cli, tmp_path):
    status, _, err = cli("train", "--data", photographs(tmp_path / "p"), "--out", tmp_path / "run", "--minutes", 0)
    assert status == 2
    assert "minutes=0" in err


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_samples_keep_the_digits_that_their_columns_have(tmp_path, suffix):
    x = 1.7e9 + torch.arange(6, dtype=torch.float64).reshape(3, 2) / 8
    out = tmp_path / f"x{suffix}"
    write_samples(str(out), x, -1.0, 1.0)
    back = np.load(out) if suffix == ".npy" else np.loadtxt(out, delimiter=",")
    np.testing.assert_allclose(back, x.numpy(), rtol=0, atol=1e-5)
