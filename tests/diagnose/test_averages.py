"""Averages of a run: one that is worse than another is named, and by how much is a closed form."""

import math

import pytest
import torch

import scorefield as sf
from scorefield.diagnose import calibration, report
from scorefield.diagnose.averages import averages, denoising_losses, other_averages
from scorefield.diagnose.chapter import Case

DRAWS = torch.Generator().manual_seed(0)
DATA = 0.3 * torch.randn(400, 2, generator=DRAWS) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])


def trained(folder):
    """A run of 60 quick steps."""
    torch.manual_seed(0)
    model = sf.ScoreModel(sf.nn.MLP(2, 32), sf.VP(), shape=(2,), sigma_data=0.3)
    options = {"steps": 60, "batch_size": 64, "lr": 5e-3, "warmup": 0, "progress": False, "device": "cpu"}
    sf.train(model, DATA, out=folder, power_ema=(0.1,), checkpoint_every=60, **options)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "run")


def test_the_averages_of_a_run_that_agree_are_good(run):
    chapter = report(run, DATA, only=["averages"], progress=False).chapters["averages"]
    assert chapter.verdict == "good"
    assert set(chapter.lines) == {"no average", "width 0.1"}


def test_an_average_that_is_worse_is_named_by_what_it_loses():
    """1.3 times the exact prediction of the noise errs by 0.09 of its square more, sigma^2 / (alpha^2 s^2 + sigma^2)."""
    sde, s = sf.VP(), 0.3
    exact = sf.GaussianMixture(torch.zeros(1, 2), s**2, None, sde)
    data = exact.sample(4000, seed=0).float()
    worse = sf.ScoreModel.from_score(lambda x, t: 1.3 * exact.score(x, t), sde, (2,))
    chapter = averages(Case(worse, data, None, 0, 0, {"width 0.05": lambda: exact}))
    assert chapter.verdict == "act"
    assert "weights of width 0.05" in chapter.found
    for at, (x, change, error) in zip(chapter.figures["log_snr"], chapter.lines["width 0.05"], strict=True):
        ratio = math.exp(-at)  # sigma^2 / alpha^2
        known = ratio / (s**2 + ratio)
        assert x == at
        # E|eps - c eps*|^2 = 1 - known + (1 - c)^2 known.
        assert abs(change + 0.09 * known / (1 - known + 0.09 * known)) < 4 * error
    assert averages(Case(exact, data, None, 0, 0, {"no average": lambda: worse})).verdict == "good"


def test_losses_are_those_of_the_calibration(run):
    model = sf.load(run)
    at, losses = denoising_losses(model, DATA, 4, seed=3)
    levels = calibration(model, DATA, levels=4, seed=3, trace=False)
    assert at == [v.log_snr for v in levels]
    assert losses.mean(0).tolist() == pytest.approx([v.loss.value for v in levels])


def test_the_others_are_the_weights_of_the_last_step(run):
    raw = other_averages(run, "cpu")["no average"]()
    averaged = sf.load(run)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    assert float((raw.denoise(x, 0.5) - averaged.denoise(x, 0.5)).abs().max()) > 1e-3


def test_a_model_without_a_run_has_one_average(run):
    found = report(sf.load(run), DATA, only=["averages"], progress=False)
    assert found.left_out == {"averages": "it needs a run that keeps more than its average of the weights"}
