"""Latent codes from the command line: encode, decode, interpolate, temperature."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from cli_tools import assert_one_line, tiny_run

LOOSE = ["--tolerance", 1e-3]
CLOSE = ["--tolerance", 1e-4]


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, (4, 8, 8), dtype=np.uint8))
    return path


def test_encode_writes_the_codes_of_the_library_and_decode_returns_the_items(cli, trained, items, tmp_path):
    codes, back = tmp_path / "codes.npz", tmp_path / "back.npy"
    status, out, _ = cli(
        "encode", trained, "--data", items, "-n", 3, "--batch-size", 2, *CLOSE, "--out", codes, "--json"
    )
    assert (status, json.loads(out)["n"]) == (0, 3)
    stored = np.load(codes)
    x = torch.from_numpy(np.load(items)[:3]).unsqueeze(1) / 127.5 - 1
    expected = sf.encode(sf.load(trained), x, sf.Dopri5(1e-4, 1e-4, norm="max"))
    np.testing.assert_allclose(stored["codes"], expected.numpy(), atol=1e-3)
    assert stored["names"].tolist() == ["0", "1", "2"]
    assert cli("decode", trained, codes, *CLOSE, "--out", back)[0] == 0
    # This hardly trained network makes the flow grow 1 / alpha(T) = 150 times, and the error of 1e-4 with it.
    assert float((torch.from_numpy(np.load(back)) - x).abs().max()) < 0.05


def test_temperature_scales_the_codes(cli, trained, tmp_path):
    codes, out = tmp_path / "codes.npy", tmp_path / "x.npy"
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(codes, z.numpy())
    assert cli("decode", trained, codes, "--temperature", 0.5, *LOOSE, "--out", out)[0] == 0
    expected = sf.decode(sf.load(trained), 0.5 * z, sf.Dopri5(1e-3, 1e-3, norm="max"))
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-5)


def test_temperature_of_samples_scales_their_first_noise(cli, trained, tmp_path):
    out = tmp_path / "x.npy"
    command = ["sample", trained, "-n", 2, "--sampler", "heun", "--steps", 3, "--out", out]
    assert cli(*command, "--temperature", 0.5)[0] == 0
    model = sf.load(trained)
    start = 0.5 * model.sde.prior((2, 1, 8, 8)).sample(seed=0)
    expected = sf.sample(model, 2, sf.Heun(), steps=3, x_init=start)
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-5)
    status, _, err = cli("sample", trained, "--sampler", "pc", "--temperature", 0.5)
    assert status == 2
    assert_one_line(err, "--temperature needs a sampler without noise", "dpm")


def test_interpolate_draws_a_row_for_each_pair_that_begins_and_ends_with_its_items(cli, trained, items, tmp_path):
    picture, path = tmp_path / "path.png", tmp_path / "path.npy"
    command = ["interpolate", trained, "--data", items, "--pairs", "0,1", "3,2", "-n", 4]
    assert cli(*command, *CLOSE, "--out", path)[0] == 0
    points = np.load(path).reshape(2, 4, 8, 8)
    x = np.load(items).astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(points[:, 0], x[[0, 3]], atol=0.05)
    np.testing.assert_allclose(points[:, -1], x[[1, 2]], atol=0.05)
    assert cli(*command, *LOOSE, "--out", picture)[0] == 0
    assert Image.open(picture).size == (4 * 10 + 2, 2 * 10 + 2)


def test_interpolate_tells_how_far_it_is_within_a_path(cli, trained, items, tmp_path, monkeypatch):
    monkeypatch.setattr("scorefield.progress.INTERVAL", 0.0)
    _, _, err = cli("interpolate", trained, "--data", items, "-n", 3, *LOOSE, "--out", tmp_path / "path.npy")
    told = re.findall(r"following the flow: (\d+) %", err)
    assert len(set(told)) > 2


def test_codes_of_a_class(cli, items, tmp_path):
    run, codes = tiny_run(tmp_path / "labelled", labels=True), tmp_path / "codes.npz"
    for command in (
        ["encode", run, "--data", items, "--batch-size", 3, "--out", codes],
        ["decode", run, codes, "--out", tmp_path / "back.npy"],
        ["interpolate", run, "--data", items, "-n", 3, "--out", tmp_path / "path.npy"],
    ):
        status, _, err = cli(*command, *LOOSE, "--label", 2)
        assert (status, err) == (0, "")
    expected = sf.encode(
        sf.load(run),
        torch.from_numpy(np.load(items)).unsqueeze(1) / 127.5 - 1,
        sf.Dopri5(1e-3, 1e-3, norm="max"),
        label=torch.full((4,), 2),
    )
    np.testing.assert_allclose(np.load(codes)["codes"], expected.numpy(), atol=1e-4)


def test_bad_input_is_named_in_one_line(cli, trained, items, tmp_path):
    wide, names = tmp_path / "wide.npy", tmp_path / "names.npz"
    np.save(wide, np.zeros((2, 1, 9, 9), np.float32))
    np.savez(names, labels=np.arange(3))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(names.read_bytes()[:60])
    out = ["--out", tmp_path / "y.npz"]
    cases = [
        (["encode", trained, "--data", items, "--tolerance", "2", *out], "--tolerance=2.0"),
        (["encode", trained, "--data", items, "--out", tmp_path / "y.png"], "use .npz or .npy"),
        (["encode", trained, "--data", items, "--label", 1, *out], "has no classes"),
        (["decode", trained, wide, *out], "(N, 1, 8, 8)"),
        (["decode", trained, names, *out], "holds labels and no 'codes'"),
        (["decode", trained, damaged, *out], "damaged"),
        (["decode", trained, tmp_path / "none.npz", *out], "does not exist"),
        (["decode", trained, items, "--temperature", "-1", *out], "--temperature=-1"),
        (["decode", trained, items, "--temperature", "nan", *out], "--temperature=nan"),
        (["interpolate", trained, "--data", items, "--pairs", "0-1", *out], "--pairs='0-1'"),
        (["interpolate", trained, "--data", items, "--pairs", "0,4", *out], "there are 4 items"),
        (["interpolate", trained, "--data", items, "-n", "1", *out], "--n=1"),
    ]
    for args, words in cases:
        status, text, err = cli(*args)
        assert (status, text) == (2, ""), args
        assert_one_line(err, words)
    assert not (tmp_path / "y.npz").exists()
