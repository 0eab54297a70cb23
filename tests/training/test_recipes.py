"""What the command line trains, with and without classes."""

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield.cli import main
from scorefield.data import array, digits
from scorefield.errors import InputError
from scorefield.training import read_run
from scorefield.training.log import read_log
from scorefield.training.recipes import recipe, recipe_names


def test_digits_take_their_classes():
    model = recipe("digits").build(digits(), seed=0, labels=True)
    x, c = torch.randn(2, 1, 28, 28), torch.tensor([0.5, 0.5])
    assert model.net.num_classes == 10
    for p in model.net.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
    seven, none = (model.denoise(x, c, label=torch.tensor([label] * 2)).detach() for label in (7, -1))
    assert not torch.equal(seven, none)


def test_a_build_is_a_function_of_the_seed():
    one, two, other = (recipe("vectors").build(array(torch.randn(5, 3)), seed) for seed in (0, 0, 1))
    first = [next(iter(m.net.entrance.parameters())) for m in (one, two, other)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_vectors_are_preconditioned_in_the_units_that_they_are_trained_in(tmp_path):
    """Columns of a table are standardised, whatever their units."""
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1000, 1, 1]
    np.savetxt(tmp_path / "x.csv", x, delimiter=",", header="a,b,c", comments="")
    data = sf.data.table(tmp_path / "x.csv")
    options = {"config": recipe("vectors").config, "steps": 1, "warmup": 0, "batch_size": 8, "device": "cpu"}
    done = sf.train(recipe("vectors").build(data, 0), data, out=tmp_path / "run", progress=False, **options)
    assert done.model.sigma_data == pytest.approx(1, abs=0.01)


def test_data_or_network_without_classes_is_named():
    with pytest.raises(InputError, match="has no classes; give images in sub-folders"):
        recipe("vectors").build(array(torch.randn(5, 3)), 0, labels=True)
    name = next(n for n in recipe_names() if n.startswith("vp/") and "ncsn" not in n and "continuous" not in n)
    labelled = array(torch.zeros(4, 3, 32, 32), labels=torch.arange(4))
    with pytest.raises(InputError, match="takes no classes"):
        recipe(name).build(labelled, 0, labels=True)


def test_sub_folders_become_classes_that_can_be_sampled(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(3):
            picture = rng.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pets" / name / f"{i}.png")
    run = tmp_path / "run"
    options = ["--labels", "--steps", "2", "--batch-size", "2", "--device", "cpu", "--held-out", tmp_path / "pets"]
    assert main([str(w) for w in ("train", "digits", "--data", tmp_path / "pets", "--out", run, *options)]) == 0
    assert read_run(run).classes == ("cats", "dogs")
    assert [line["step"] for line in read_log(run) if "held_out_loss" in line] == [2]
    x = sf.sample(sf.load(run) | sf.ClassifierFree(2.0), 2, steps=2, seed=0, label=torch.tensor([0, 1]))
    assert x.shape == (2, 1, 28, 28)
