"""Without options a network is preconditioned by the spread of its data, and the paper's choices keep their names."""

import pytest
import torch

import scorefield as sf
from scorefield import nn
from scorefield.data import array
from scorefield.errors import CheckpointError, ScorefieldWarning
from scorefield.training import TrainConfig
from scorefield.training.loss import Objective


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.MLP(2, width=32, depth=2)


def test_networks_are_preconditioned_and_functions_are_noise():
    assert sf.ScoreModel(network(), sf.VP()).predict == "edm"
    assert sf.ScoreModel(lambda x, t: x, sf.VP()).predict == "noise"
    assert sf.ScoreModel(network(), sf.VP(), "noise").predict == "noise"


@pytest.mark.parametrize("scale", [0.1, 7.0])
def test_training_measures_the_spread_and_goes_on_with_it(run_training, tmp_path, scale):
    data = scale * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    run = run_training(model=sf.ScoreModel(network(), sf.VP()), data=data, steps=10)
    assert run.model.sigma_data == pytest.approx(float(data.std()), rel=1e-3)
    assert sf.load(tmp_path / "run").sigma_data == run.model.sigma_data
    assert run_training(model=sf.ScoreModel(network(), sf.VP()), data=data, steps=20).finished


def test_a_run_goes_on_with_the_spread_of_its_start(run_training, tmp_path, cloud, monkeypatch):
    """Another machine may round it otherwise; other data is told as such, not as another spread."""
    spread = run_training("whole", model=sf.ScoreModel(network(), sf.VP()), steps=20).model.sigma_data
    run_training("run", model=sf.ScoreModel(network(), sf.VP()), steps=10)
    monkeypatch.setattr("scorefield.training.trainer._spread", lambda *_: spread + 1e-4)
    again = run_training("run", model=sf.ScoreModel(network(), sf.VP()), steps=20)
    assert again.model.sigma_data == spread
    names = [f"step-000020/{group}.safetensors" for group in ("model", "ema", "optimizer")]
    one, two = ([(tmp_path / run / name).read_bytes() for name in names] for run in ("whole", "run"))
    assert one == two
    with pytest.raises(CheckpointError, match="trained on other data"):
        run_training("run", model=sf.ScoreModel(network(), sf.VP()), data=2 * cloud, steps=20)


def test_a_given_spread_stays_and_integers_count_in_the_range_of_the_model(run_training):
    model = sf.ScoreModel(network(), sf.VP(), sigma_data=0.3)
    assert run_training("given", model=model, steps=10).model.sigma_data == 0.3
    pixels = torch.tensor([[0, 255]] * 20, dtype=torch.uint8)
    found = run_training("pixels", model=sf.ScoreModel(network(), sf.VP()), data=array(pixels), steps=10)
    assert found.model.sigma_data == pytest.approx(1.013, abs=1e-3)  # of -1 and 1 in equal numbers, 40 of them


@pytest.mark.parametrize(("predict", "weighting"), [(None, "edm"), ("noise", "noise"), ("velocity", "noise")])
def test_weighting_follows_what_is_predicted(predict, weighting):
    model = sf.ScoreModel(network(), sf.VP(), predict)
    assert Objective(model, TrainConfig(), None)._weighting == weighting
    assert Objective(model, TrainConfig(weighting="likelihood"), None)._weighting == "likelihood"


def test_defaults_keep_the_spread_of_data_that_is_wide(run_training):
    # Spread 5 under VP: a noise prediction of the same budget is far off, which is what the defaults once were.
    data = 5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    options = {"data": data, "steps": 150, "batch_size": 128, "lr": 2e-3, "ema": 0.9}
    spreads = {}
    for predict in (None, "noise"):
        run = run_training(str(predict), model=sf.ScoreModel(network(), sf.VP(), predict), **options)
        spreads[predict] = float(sf.sample(run.model, 400, sf.DPMSolver(2), steps=20, seed=0).std()) / 5
    assert spreads[None] == pytest.approx(1.0, abs=0.1)
    assert abs(spreads["noise"] - 1) > 2 * abs(spreads[None] - 1)


def test_a_prediction_that_knows_nothing_where_samples_start_is_told_before_training(run_training, recwarn):
    """RectifiedFlow has alpha(1) = 0, where the noise is all of x_T."""
    with pytest.warns(
        ScorefieldWarning, match=r"alpha is 0 at T=1, where predict='noise' .* predict='data', 'velocity' or"
    ):
        run_training(model=sf.ScoreModel(network(), sf.RectifiedFlow(), "noise"), steps=10)
    recwarn.clear()
    for name, predict in (("edm", None), ("velocity", "velocity")):
        run_training(name, model=sf.ScoreModel(network(), sf.RectifiedFlow(), predict), steps=10)
    assert not [w for w in recwarn.list if issubclass(w.category, ScorefieldWarning)]


class Wrong(torch.nn.Module):
    """A layer for another number of entries or channels than the data has."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(3, 3), (2,)),
        (torch.nn.Conv1d(4, 4, 1), (2, 5)),
        (torch.nn.Conv2d(4, 4, 1), (1, 5, 5)),
        (torch.nn.LayerNorm(3), (2,)),
    ],
)
def test_a_network_of_other_sizes_is_told_in_one_line(run_training, layer, shape):
    data = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    words = rf"network Wrong\(x, t\) does not take x of shape \(16, {', '.join(map(str, shape))},?\) .*; build it for items of"
    with pytest.raises(ValueError, match=words) as caught:
        run_training(model=sf.ScoreModel(Wrong(layer), sf.VP()), data=data)
    assert "\n" not in str(caught.value)


def test_what_else_a_network_raises_is_its_own():
    def broken(x, t):
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(RuntimeError, match=r"^CUDA error: out of memory$"):
        sf.ScoreModel(broken, sf.VP()).score(torch.zeros(2, 2), 0.5)
