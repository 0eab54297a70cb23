"""Runs of states on the command line: text, tables, binarised images; training, samples, likelihood, infilling."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import scorefield as sf
from cli_tools import assert_one_line, narrow
from scorefield.cli.states import codec_of
from scorefield.training import read_run

WORDS = "the cat sat on the mat and the dog sat on the log. " * 40
FEW = [
    "--steps",
    3,
    "--batch-size",
    8,
    "--warmup",
    1,
    "--checkpoint-every",
    3,
    "--device",
    "cpu",
    "--trackers",
    "tensorboard",
]


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    from scorefield.cli import main

    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(WORDS, "utf-8")
    (folder / "b.txt").write_text("the dog sat on the cat. " * 20, "utf-8")
    (folder / "c.txt").write_text("thé dog sat on the cat. " * 20, "utf-8")
    command = ["train", "text", "--data", folder / "a.txt", "--held-out", folder / "b.txt", "--out", folder / "run"]
    assert main([str(a) for a in [*command, "--length", 16, *FEW]]) == 0
    return folder


def test_text_is_sampled_scored_and_filled_in(text_run, cli, tmp_path):
    run = text_run / "run"
    status, out, _ = cli("sample", run, "-n", 3, "--seed", 1, "--out", tmp_path / "x.txt")
    assert status == 0
    lines = (tmp_path / "x.txt").read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert all(len(line) == 16 and line in out for line in lines)
    status, out, _ = cli("sample", run, "-n", 3, "--seed", 1, "--sampler", "first-hitting", "--out", tmp_path / "x.npy")
    assert status == 0
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (3, 16)
    assert x.dtype == np.int64
    status, _, err = cli("evaluate", run, "--data", text_run / "b.txt")
    assert status == 2
    assert f"scorefield likelihood {run} --data DATA" in err
    command = ["likelihood", run, "--data", text_run / "b.txt", "-n", 6, "--probes", 4]
    status, out, _ = cli(*command, "--json", "--out", tmp_path / "l.csv")
    assert status == 0
    values = json.loads(out)
    assert 1 < values["bits_per_dim"] < 8
    assert values["stderr"] > 0
    content = (tmp_path / "l.csv").read_bytes()
    assert cli(*command, "--batch-size", 2, "--out", tmp_path / "m.csv")[0] == 0
    again = (tmp_path / "m.csv").read_text("utf-8").splitlines()[-6:]
    assert [row.split(",")[:2] for row in again] == [r.split(",")[:2] for r in content.decode().splitlines()[-6:]]
    assert values["bound"]
    command = ["infill", run, "--text", "the ___ sat", "-n", 2, "--out", tmp_path / "i.txt"]
    status, out, _ = cli(*command, "--json")
    assert status == 0
    lines = (tmp_path / "i.txt").read_text("utf-8").splitlines()
    assert json.loads(out)["samples"] == lines
    for line in lines:
        assert line.startswith("the ")
        assert line[7:11] == " sat"
        assert len(line) == 16
        assert "_" not in line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["likelihood", "{run}", "--data", "{f}/c.txt"], ["the character 'é'", "the same alphabet"]),
        (["likelihood", "{run}", "--data", "{f}/none.txt"], ["does not exist"]),
        (["likelihood", "{run}", "--data", "{f}/b.txt", "--trace", "exact"], ["leave them out"]),
        (["encode", "{run}", "--data", "{f}/b.txt", "--out", "{f}/z.npz"], ["a run of states"]),
        (["diagnose", "{run}", "--data", "{f}/b.txt"], ["judge it by scorefield likelihood {run} --data DATA"]),
        (["sample", "{run}", "--out", "{f}/x.png"], ["unknown suffix '.png'"]),
        (["sample", "{run}", "--sampler", "heun"], ["--sampler='heun' is unknown"]),
        (["sample", "{run}", "--temperature", "0.5"], ["--temperature is for runs of continuous data"]),
        (["infill", "{run}"], ["either --text or --array"]),
        (["infill", "{run}", "--text", "the cat sat on the mat"], ["has 22 characters and an item of the run 16"]),
        (["infill", "{run}", "--text", "xyz___"], ["the character 'x'"]),
        (["infill", "{run}", "--text", "the", "--blank", "t"], ["is a character of the run"]),
        (["infill", "digits", "--text", "the"], ["not a run of states"]),
        (["train", "text", "--data", "{f}/a.txt", "--out", "{f}/new", "--levels", "4"], ["--levels means nothing"]),
        (["train", "vectors", "--data", "{f}/a.txt", "--out", "{f}/new", "--fold"], ["are for text"]),
        (["train", "text", "--data", "{f}/none.txt", "--out", "{f}/new"], ["does not exist"]),
        (["train", "text", "--data", "{f}/b.txt", "--out", "{run}", "--length", "16"], ["was trained with another"]),
    ],
)
def test_a_wrong_command_gets_one_line(text_run, cli, command, words):
    filled = [word.format(run=text_run / "run", f=text_run) for word in command]
    before = sorted(text_run.rglob("*"))
    status, _, err = cli(*filled)
    assert status == 2
    assert_one_line(err, *[word.format(run=text_run / "run") for word in words])
    assert sorted(text_run.rglob("*")) == before  # nothing half-written


def test_a_table_of_categories(cli, tmp_path):
    rows = [[("red", "blue")[k % 2], ("small", "large", "huge")[k % 3]] for k in range(60)]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows([["colour", "size"], *rows])
    run = tmp_path / "run"
    assert cli("train", "categories", "--data", tmp_path / "t.csv", "--out", run, *FEW)[0] == 0
    assert cli("sample", run, "-n", 5, "--out", tmp_path / "x.csv")[0] == 0
    with open(tmp_path / "x.csv", newline="") as file:
        found = list(csv.reader(file))
    assert found[0] == ["colour", "size"]
    assert {row[0] for row in found[1:]} <= {"red", "blue"}
    assert {row[1] for row in found[1:]} <= {"small", "large", "huge"}
    status, _, _ = cli("infill", run, "--text", "blue,_", "-n", 3, "--out", tmp_path / "i.csv")
    assert status == 0
    assert (tmp_path / "i.csv").read_text("utf-8").count("blue,") == 3
    assert cli("likelihood", run, "--data", tmp_path / "t.csv", "-n", 4, "--out", tmp_path / "l.csv")[0] == 0


def mixed(n, seed):
    """Rows of words and numbers that depend on each other: place, size, weight by size, price by weight, colour by place."""
    g = np.random.default_rng(seed)
    place, size = g.choice(4, n, p=(0.4, 0.3, 0.2, 0.1)), g.integers(0, 3, n)
    weight = np.exp(0.8 * size + 0.2 * g.normal(size=n))
    price = 3 * weight + g.normal(size=n)
    colour = np.where(g.random(n) < 0.7, place % 3, g.integers(0, 3, n))
    words = np.array(["north", "south", "east", "west"])[place], np.array(["s", "m", "l"])[size]
    columns = [
        *words,
        [f"{w:.4f}" for w in weight],
        [f"{v:.3f}" for v in price],
        np.array(["red", "blue", "green"])[colour],
    ]
    return [["place", "size", "weight", "price", "colour"], *map(list, zip(*columns, strict=True))]


def shares(states, i, j):
    """Shares of the pairs of states of two columns."""
    counts = np.zeros((16, 16))
    np.add.at(counts, (states[:, i], states[:, j]), 1 / len(states))
    return counts


def test_samples_of_a_mixed_table_have_its_marginals_and_its_pairs(cli, tmp_path):
    """Through the commands and back to words and numbers: marginals and pairs of columns within sampling error, and 0.015."""
    n = 800
    for name, rows in (("t", mixed(n, 0)), ("fresh", mixed(n, 1))):
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    run, quick = tmp_path / "run", ["--device", "cpu", "--trackers", "tensorboard", "--no-report", "--ema", 0.95]
    adam = [
        "--optim.name",
        "adam",
        "--optim.lr",
        4e-3,
        "--optim.warmup",
        10,
    ]  # orthogonal steps take ten times the time
    assert cli("train", "categories", "--data", tmp_path / "t.csv", "--out", run, "--steps", 100, *adam, *quick)[0] == 0
    assert cli("sample", run, "-n", n, "--sampler", "first-hitting", "--out", tmp_path / "x.csv", "--seed", 3)[0] == 0
    with open(tmp_path / "x.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["place", "size", "weight", "price", "colour"]
    assert {row[0] for row in rows} == {"north", "south", "east", "west"}
    assert {row[4] for row in rows} == {"red", "blue", "green"}
    codec = codec_of(read_run(run))
    assert codec.sizes == (4, 3, 16, 16, 3)
    price = mixed(n, 0)[1][3]  # a number that is no middle of a range
    assert price not in codec.values[3]
    text = f"_,m,_,{price},_"
    status, out, _ = cli("infill", run, "--text", text, "-n", 3, "--out", tmp_path / "i.csv", "--json")
    assert status == 0
    with open(tmp_path / "i.csv", newline="") as file:
        assert {(row[1], row[3]) for row in list(csv.reader(file))[1:]} == {("m", price)}
    told = json.loads(out)["samples"]
    assert [(row["size"], row["price"]) for row in told] == [("m", float(price))] * 3
    assert {row["weight"] for row in told} <= {float(v) for v in codec.values[2]}
    status, _, err = cli("infill", run, "--text", "north,,_,_,_", "-n", 3, "--out", tmp_path / "i.csv")
    assert status == 2
    assert_one_line(err, "--text has nothing in column size; write _ for what is unknown")
    status, out, _ = cli("likelihood", run, "--data", tmp_path / "fresh.csv", "-n", 2, "--out", tmp_path / "l.csv")
    assert status == 0
    assert out.startswith("at most ")
    assert "of the ranges into which numbers fall (weight, price)" in out
    assert {row[2] for row in rows} <= set(codec.values[2])  # the middle of a range stands for it
    x, y = (codec.read(part, "rows").numpy() for part in (rows, mixed(n, 0)[1:]))
    for i in range(5):
        for j in range(i + 1):
            p, q = shares(x, i, j), shares(y, i, j)
            pooled = 0.5 * (p + q)
            error = np.sqrt(2 * pooled * (1 - pooled) / n)
            assert (np.abs(p - q) < 4 * error + 0.015).all(), (header[i], header[j])
    dependence = [
        np.abs(shares(v, 2, 3) - np.outer(shares(v, 2, 2).sum(1), shares(v, 3, 3).sum(1))).sum() for v in (x, y)
    ]
    assert dependence[1] > 1
    assert dependence[0] > 0.7 * dependence[1]  # a few seconds of training


def test_images_of_states(cli, tmp_path, monkeypatch):
    narrow(monkeypatch, sf.nn.StateUNet, nf=8)
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    run = tmp_path / "run"
    assert cli("train", "binary", "--data", tmp_path / "x.npy", "--out", run, "--levels", 2, *FEW)[0] == 2
    assert cli("train", "binary", "--data", tmp_path / "x.npy", "--out", run, *FEW)[0] == 0
    assert cli("likelihood", run, "--data", tmp_path / "x.npy", "-n", 2, "--out", tmp_path / "l.csv")[0] == 0
    assert cli("sample", run, "-n", 4, "--out", tmp_path / "x.png")[0] == 0
    known = (x[0] >= 128).astype(np.int64)
    known[:, 4:] = -1
    np.save(tmp_path / "k.npy", known)
    assert cli("infill", run, "--array", tmp_path / "k.npy", "-n", 2, "--out", tmp_path / "i.npy")[0] == 0
    assert (np.load(tmp_path / "i.npy")[:, :, :4] == known[:, :4]).all()
