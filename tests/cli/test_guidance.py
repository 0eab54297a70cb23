"""Classes from the command line: a classifier trained on noised data, and samples guided by it or without one."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch

import scorefield as sf
from cli_tools import assert_one_line, tiny_run
from scorefield.cli import main
from scorefield.training.classifier import load_classifier


def stripes(n, seed=0):
    """Two classes of 8 x 8 images, bright on the left or on the right, under a little noise."""
    label = np.arange(n) % 2
    x = np.random.default_rng(seed).integers(0, 60, (n, 8, 8))
    for i, k in enumerate(label):
        x[i, :, 4 * k : 4 * k + 4] += 190
    return x.astype(np.uint8), label


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    x, label = stripes(200)
    np.savez(path, images=x, labels=label)
    return path


@pytest.fixture(scope="session")
def classifier(trained, classes, tmp_path_factory):
    """Folder of a classifier, and what training it printed."""
    out, text = tmp_path_factory.mktemp("runs") / "classifier", io.StringIO()
    short = ["--width", "1", "--steps", "60", "--batch-size", "32", "--lr", "3e-3"]
    with contextlib.redirect_stdout(text):
        main(["classifier", str(trained), "--data", str(classes), "--out", str(out), *short, "--json"])
    return out, json.loads(text.getvalue())


def test_accuracy_falls_from_all_to_chance_as_the_noise_rises(classifier):
    _, values = classifier
    accuracy = {row["noise"]: row["accuracy"] for row in values["accuracy"]}
    assert values["finished"]
    assert accuracy[min(accuracy)] > 0.95
    assert accuracy[max(accuracy)] < 0.95


def test_guidance_by_the_classifier_is_that_of_the_library(cli, trained, classifier, tmp_path):
    out = tmp_path / "x.npy"
    command = ["generate", trained, "--classifier", classifier[0], "--label", 1, "-n", 2, "--scale", 3]
    status, text, _ = cli(*command, "--steps", 4, "--out", out)
    assert (status, "2 samples of class 1" in text) == (0, True)
    guided = sf.load(trained) | sf.ClassifierGuidance(load_classifier(classifier[0]), 1, scale=3.0)
    np.testing.assert_allclose(np.load(out), sf.sample(guided, 2, steps=4, seed=0).numpy(), atol=1e-4)


def test_scale_zero_is_the_unconditional_sample(cli, trained, classifier, tmp_path):
    out = tmp_path / "x.npy"
    cli(
        "generate",
        trained,
        "--classifier",
        classifier[0],
        "--label",
        1,
        "--scale",
        0,
        "-n",
        2,
        "--steps",
        3,
        "--out",
        out,
    )
    expected = sf.sample(sf.load(trained), 2, sf.DPMSolver(), steps=3, seed=0)
    np.testing.assert_allclose(np.load(out), expected.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_runs_with_classes_are_guided_without_a_classifier(cli, tmp_path, guidance):
    run, out = tiny_run(tmp_path / "labelled", labels=True), tmp_path / "x.npy"
    command = ["generate", run, "--label", 2, "-n", 2, "--steps", 3, "--out", out]
    assert cli(*command, "--guidance", guidance)[0] == 0
    model = sf.load(run) | sf.ClassifierFree(guidance)
    expected = sf.sample(model, 2, steps=3, seed=0, label=torch.full((2,), 2))
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-6)


def test_a_classifier_goes_on_where_it_ended(cli, trained, classes, tmp_path):
    command = ["classifier", trained, "--data", classes, "--width", 1, "--batch-size", 4, "--steps", 2]
    assert cli(*command, "--out", tmp_path / "c")[0] == 0
    weights = (tmp_path / "c" / "step-000002" / "model.safetensors").read_bytes()
    assert cli(*command, "--out", tmp_path / "c")[0] == 0
    assert (tmp_path / "c" / "step-000002" / "model.safetensors").read_bytes() == weights


def test_bad_input_is_named_in_one_line(cli, trained, classifier, classes, tmp_path):
    plain = tmp_path / "plain.npy"
    np.save(plain, stripes(4)[0])
    out = ["--out", tmp_path / "y.png"]
    fresh = ["--out", tmp_path / "c"]
    by = ["--classifier", classifier[0]]
    cases = [
        (["classifier", trained, "--data", plain, *fresh], "plain.npy has no classes"),
        (["classifier", trained, "--data", classes, "--depth", 11, *fresh], "depth=11"),
        (["classifier", trained, "--data", classes, "--lr", -1, *fresh], "lr=-1"),
        (["classifier", trained, "--data", classes], "--out is missing"),
        (["generate", trained, *by, *out], "--label is missing"),
        (["generate", trained, *by, "--label", 2, *out], "give one from 0 to 1"),
        (["generate", trained, *by, "--label", 0, "--scale", "-1", *out], "--scale=-1"),
        (["generate", trained, *by, "--label", 0, "--guidance", "2", *out], "leave them out"),
        (["generate", trained, "--label", 0, *out], "has no classes"),
        (["generate", trained, "--classifier", trained, "--label", 0, *out], "is a score model, not a classifier"),
        (["sample", classifier[0], *out], "is a classifier, not a score model"),
    ]
    for args, words in cases:
        status, text, err = cli(*args)
        assert (status, text) == (2, ""), args
        assert_one_line(err, words)
    assert not (tmp_path / "y.png").exists()
    assert not (tmp_path / "c").exists()
