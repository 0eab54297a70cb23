"""A run between walls: the one trainer, samples, likelihoods and codes of the same commands, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import scorefield as sf
from cli_tools import assert_one_line, narrow

FEW = ["--batch-size", 16, "--warmup", 1, "--device", "cpu", "--trackers", "tensorboard", "--no-report"]
LOOSE = ["--tolerance", 0.01]


@pytest.fixture(scope="module")
def walled(tmp_path_factory):
    """A run on points of [0, 10] x [0, 10], and files beside it."""
    from scorefield.cli import main

    folder = tmp_path_factory.mktemp("walled")
    x = 10 * np.random.default_rng(0).random((200, 2)).astype(np.float32) ** 2
    np.save(folder / "x.npy", x)
    x[3, 1] = 10.5
    np.save(folder / "beyond.npy", x)
    command = [
        "train",
        "box",
        "--data",
        folder / "x.npy",
        "--range",
        0,
        10,
        "--out",
        folder / "run",
        "--steps",
        20,
        *FEW,
    ]
    assert main([str(word) for word in command]) == 0
    return folder


def test_samples_likelihoods_and_codes(walled, cli, tmp_path):
    run = walled / "run"
    model = sf.load(run)
    assert model.sde == sf.ReflectedVE(0.01, 2.0)
    assert cli("sample", run, "-n", 300, "--steps", 30, "--out", tmp_path / "x.npy")[0] == 0
    x = np.load(tmp_path / "x.npy")
    assert x.min() >= 0
    assert x.max() <= 1
    again = sf.sample(model, 300, sf.EulerMaruyama(), steps=30, seed=0)
    assert np.allclose(x, again.numpy(), atol=1e-6)
    status, out, _ = cli(
        "likelihood", run, "--data", walled / "x.npy", "-n", 4, *LOOSE, "--json", "--out", tmp_path / "l.csv"
    )
    assert status == 0
    assert abs(json.loads(out)["nats"] + 2 * np.log(10)) < 1  # a density per unit of the data, not of the box
    assert cli("encode", run, "--data", walled / "x.npy", "-n", 4, *LOOSE, "--out", tmp_path / "z.npz")[0] == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "box", "--data", "{f}/x.npy", "--out", "{f}/new"], ["--range"]),
        (
            ["train", "box", "--data", "{f}/beyond.npy", "--range", "0", "10", "--out", "{f}/new"],
            ["beyond.npy", "outside its box"],
        ),
        (
            ["likelihood", "{f}/run", "--data", "{f}/beyond.npy", "--out", "{f}/l.csv"],
            ["beyond.npy", "outside its box"],
        ),
        (["encode", "{f}/run", "--data", "{f}/beyond.npy", "--out", "{f}/z.npz"], ["outside its box"]),
        (["sample", "{f}/run", "--sampler", "ddim", "-n", "2"], ["DDIM needs a GaussianSDE"]),
        (["sample", "{f}/run", "--sampler", "pc", "-n", "2"], ["PC needs a GaussianSDE"]),
    ],
)
def test_a_wrong_command_gets_one_line(walled, cli, command, words):
    before = sorted(walled.rglob("*"))
    status, _, err = cli(*[word.format(f=walled) for word in command])
    assert status == 2
    assert_one_line(err, *words)
    assert sorted(walled.rglob("*")) == before


def test_images_between_walls(cli, tmp_path, monkeypatch):
    """Integers are spread over [0, 1], both ends included."""
    narrow(monkeypatch, sf.nn.UNet, nf=8)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 2, (12, 1, 8, 8)).astype(np.uint8) * 255)
    run = tmp_path / "run"
    assert cli("train", "box", "--data", tmp_path / "x.npy", "--out", run, "--steps", 2, *FEW)[0] == 0
    assert cli("likelihood", run, "--data", tmp_path / "x.npy", "-n", 1, *LOOSE, "--out", tmp_path / "l.csv")[0] == 0
    assert cli("sample", run, "-n", 2, "--steps", 3, "--out", tmp_path / "x.png")[0] == 0
    assert isinstance(sf.load(run).net, sf.nn.UNet)


def test_a_network_of_noise_is_minus_sigma_times_the_score():
    """But for a factor that vanishes at the walls; beyond them it is the score of the mirrored density, at any network."""
    sde = sf.ReflectedVE(0.01, 2.0)
    net = lambda x, t: torch.sin(3 * x) * t[:, None]  # noqa: E731
    model = sf.ScoreModel(net, sde, "noise", shape=(2,))
    x, t = torch.rand(5, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.1, 0.9, 5)
    sigma = sde.sigma(t.double()).float()[:, None]
    reach = sigma.clamp_max(0.25)
    expected = -net(x, t) / sigma * torch.tanh(x / reach) * torch.tanh((1 - x) / reach)
    torch.testing.assert_close(model.score(x, t), expected)
    torch.testing.assert_close(model.velocity(x, t), -0.5 * sde.g2(t.double()).float()[:, None] * expected)
    assert sf.ScoreModel(sf.nn.MLP(2), sde).predict == "noise"
    torch.testing.assert_close(model.score(-x, t), -expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.score(2 + x, t), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"noise\(\) needs a GaussianSDE"):
        model.noise(x, t)
