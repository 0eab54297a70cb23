"""Judging models and runs."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.cli import main
from scorefield.data import array
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.evaluation import FeatureNetwork, compare, extract, open_features, reference_features
from scorefield.evaluation.evaluate import evaluate
from scorefield.evaluation.stored_samples import Drawing, quantised, stored_samples
from scorefield.parallel import Processes
from scorefield.solve.exponential import DPMSolver

DIMS = 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def normal():
    """A model that knows its data exactly: a Gaussian."""
    mean, cov = torch.tensor([[0.3, -0.2, 0.0]]), 0.25 * torch.eye(DIMS).unsqueeze(0)
    return sf.GaussianMixture(mean, cov, torch.ones(1), sf.VP())


def points(n, seed=1):
    z = torch.randn(n, DIMS, generator=torch.Generator().manual_seed(seed))
    return 0.5 * z + torch.tensor([0.3, -0.2, 0.0])


def test_an_exact_model_is_as_near_to_its_data_as_chance_allows(normal):
    found = sf.evaluate(normal, points(1500), 1500, steps=30).figures
    other = sf.evaluate(normal, points(1500) + 0.5, 1500, steps=30).figures
    assert found["frechet"].value < 0.02
    assert other["frechet"].value == pytest.approx(DIMS * 0.25, abs=4 * other["frechet"].stderr)
    assert abs(found["kid"].value) < 4 * found["kid"].stderr
    assert found["coverage"].value > 0.9 > other["coverage"].value


def test_bits_per_dim_and_loss_are_those_of_the_closed_form(normal):
    data = points(300)
    found = sf.evaluate(normal, data, 0, likelihood=300, loss=300).figures
    exact = -normal.log_prob(data).double() / (DIMS * np.log(2))
    assert found["bits_per_dim"].value == pytest.approx(float(exact.mean()), abs=1e-3)
    assert found["bits_per_dim"].stderr == pytest.approx(float(exact.std()) / 300**0.5, rel=0.02)
    # noise prediction of a Gaussian of variance v: the error is alpha^2 v / (alpha^2 v + sigma^2), averaged over t
    t = torch.linspace(1e-5, 1, 4001, dtype=torch.float64)
    a, s = sf.VP().alpha(t).square() * 0.25, sf.VP().sigma(t).square()
    assert found["loss"].value == pytest.approx(float((a / (a + s)).mean()), abs=4 * found["loss"].stderr)


def test_samples_are_taken_up_where_they_were_left(normal, tmp_path, monkeypatch):
    drawing = Drawing(DPMSolver(), steps=5, seed=2)
    whole = stored_samples(normal, 150, tmp_path / "a", drawing)
    stored_samples(normal, 70, tmp_path / "b", drawing)
    kept = next((tmp_path / "b").glob("*/00000000.safetensors"))
    before = kept.stat().st_mtime_ns
    next((tmp_path / "b").glob("*/00000064.safetensors")).write_bytes(b"torn")
    again = stored_samples(normal, 150, tmp_path / "b", drawing, batch_size=10)
    assert kept.stat().st_mtime_ns == before
    torch.testing.assert_close(again.tensor(), whole.tensor())
    other = stored_samples(normal, 10, tmp_path / "b", replace(drawing, seed=3))
    assert not torch.equal(other.tensor(), whole.tensor()[:10])


class Apart(Processes):
    """A process that meets the others only through the files."""

    def gather(self, items):
        return list(items)


def test_processes_share_the_samples_of_one(normal, tmp_path):
    drawing = Drawing(DPMSolver(), steps=5, seed=2)
    alone = stored_samples(normal, 150, tmp_path / "a", drawing)
    assert stored_samples(normal, 150, tmp_path / "b", drawing, processes=Apart(1, 2)) is None
    assert [p.name for p in (tmp_path / "b").glob("*/*")] == ["00000064.safetensors"]
    both = stored_samples(normal, 150, tmp_path / "b", drawing, processes=Apart(0, 2))
    assert torch.equal(both.tensor(), alone.tensor())


def test_samples_are_rounded_to_the_levels_of_the_data():
    x = torch.tensor([-1.2, -1.0, -0.99, 0.0, 0.999, 1.0, 3.0])
    assert quantised(x, 256, (-1.0, 1.0)).tolist() == [0, 0, 1, 128, 255, 255, 255]
    assert quantised(x, 4, (-1.0, 1.0), dequantised=True).tolist() == [0, 0, 0, 2, 3, 3, 3]


def test_features_of_data_are_cached_by_its_content(tmp_path):
    calls = []

    def network(x):
        calls.append(len(x))
        return x.flatten(1)

    data = array(torch.randint(0, 256, (20, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    counted = FeatureNetwork("counted", network, fingerprint="1")
    first = reference_features(counted, data)
    assert torch.equal(reference_features(counted, data).values, first.values)
    assert sum(calls) == 20
    reference_features(counted, data[:19])
    reference_features(FeatureNetwork("counted", network, fingerprint="2"), data)
    assert sum(calls) == 59
    for file in (tmp_path / "cache" / "features").iterdir():
        file.write_bytes(b"torn")
    assert torch.equal(reference_features(counted, data).values, first.values)


def test_held_out_digits_are_near_the_training_digits_and_noise_is_not():
    network = open_features("digits")
    real, noise = sf.digits(train=False), torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8)
    near, far = compare(network, sf.digits()[:1000], real), compare(network, noise, real)
    assert near["frechet"].value < 0.05 * far["frechet"].value
    assert near["inception_score"].value > 7 > far["inception_score"].value
    assert near["precision"].value > 0.9 > far["precision"].value


def test_pairs_of_large_sets_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(sys.modules["scorefield.evaluation.evaluate"], "PAIRED", 50)
    sorted_by_class = torch.arange(200.0).reshape(-1, 1).repeat(1, 2)
    found = compare(open_features("raw"), sorted_by_class, sorted_by_class + 0.1)
    assert found["kid"].n == found["precision"].n == 50
    assert found["frechet"].n == 200
    assert found["coverage"].value == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_of_ones_own_by_file_or_by_function(tmp_path):
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 5)).requires_grad_(False)
    torch.jit.save(torch.jit.trace(linear, torch.zeros(2, 1, 28, 28)), tmp_path / "net.pt")
    data = sf.digits(train=False)[:30]
    by_file = extract(open_features(str(tmp_path / "net.pt")), data, batch_size=7)
    by_function = extract(FeatureNetwork("own", linear), data)
    torch.testing.assert_close(by_file.values, by_function.values)


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "did you mean digits"), ("text.pt", "not a TorchScript file"), ("pickle.pt", "not a TorchScript file")],
)
def test_bad_feature_names_get_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "pickle.pt")
    with pytest.raises(InputError, match=message):
        open_features(name)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_colour_pictures_without_torch_fidelity_are_compared_by_random_features(monkeypatch):
    monkeypatch.setattr(sys.modules["scorefield.evaluation.evaluate"], "find_spec", lambda name: None)
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 8, 8, generator=draws)
    near = 2 * torch.rand(64, 3, 8, 8, generator=draws) - 1  # of the same law
    model = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP(), shape=(3, 8, 8))
    with pytest.warns(ScorefieldWarning, match="torch-fidelity is not installed"):
        found = evaluate(model, 2 * x - 1, n=20, solver=DPMSolver(), steps=2)
    assert found.features == "random"
    network = open_features("random")
    same, other = (compare(network, 2 * x - 1, y)["frechet"].value for y in (near, torch.sign(near)))
    assert 0 <= same < other / 5


def test_inception_weights_never_run_code(tmp_path, monkeypatch):
    module = type(os)("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = None
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", type(os)("torch_fidelity"))
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="does not hold plain weights"):
        open_features("inception:w.pth")
    assert not (tmp_path / "exploded").exists()


def test_items_that_do_not_fit_are_named(normal):
    with pytest.raises(InputError, match=r"items of shape \(2,\) and the model makes \(3,\)"):
        sf.evaluate(normal, torch.zeros(5, 2), 10)
    with pytest.raises(InputError, match="the digit classifier takes"):
        compare(open_features("digits"), torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(InputError, match="n=1 is impossible"):
        sf.evaluate(normal, points(5), 1)


def test_command_line_judges_a_run(tmp_path, capsys):
    torch.manual_seed(0)
    model = sf.ScoreModel(sf.nn.MLP(DIMS, width=16, depth=1), sf.VP(), "noise", shape=(DIMS,))
    sf.train(model, points(100), steps=3, batch_size=16, out=tmp_path / "run", device="cpu", progress=False)
    np.save(tmp_path / "x.npy", points(60).numpy())
    command = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "x.npy"), "--steps", "4", "--device", "cpu"]
    assert main([*command, "-n", "50", "--likelihood", "5", "--loss", "60", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert shown["figures"] == kept["figures"]
    assert {"frechet", "kid", "coverage", "bits_per_dim", "loss"} <= set(kept["figures"])
    assert main([*command, "-n", "50", "--features", "digits"]) == 2
    assert "digit classifier" in capsys.readouterr().err
    assert main([*command, "-n", "0"]) == 2
