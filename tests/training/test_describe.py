"""run.json: objects as JSON, for a closed set of classes."""

import json
from dataclasses import dataclass

import pytest
import torch

import scorefield as sf
from scorefield import nn
from scorefield.errors import CheckpointError, InputError
from scorefield.times import LogNormalTimes
from scorefield.training import TrainConfig, read_run
from scorefield.training.describe import build_model, describe_model, from_json, to_json


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "value",
    [
        sf.VE(sigma_max=90.0, exact=True),
        sf.VP(0.2, 15.0),
        sf.SubVP(),
        LogNormalTimes(-0.4, 1.0),
        nn.NoiseScales(0.02, 30.0, 7),
        TrainConfig(times=LogNormalTimes()).updated(lr=0.25),
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_come_back_equal(value):
    assert from_json(through_json(to_json(value))) == value


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.MLP(3, width=8, depth=2, num_classes=4),
        lambda: nn.UNet(2, 8, (1, 2), 1, (1,), fir=(1, 3, 3, 1), embedding="fourier"),
        lambda: nn.UNet(1, 8, (1,), 1, (), scale_by_sigma=True, scales=nn.NoiseScales(num_scales=5)),
    ],
)
def test_networks_come_back_with_the_same_weights_and_arguments(net):
    model = sf.ScoreModel(net(), sf.VE(), "score", shape=(2, 8, 8), clock="sigma", sigma_data=0.3)
    again = build_model(through_json(describe_model(model)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert again.net.config == model.net.config
    assert (again.predict, again.clock, again.shape, again.sigma_data) == ("score", "sigma", (2, 8, 8), 0.3)


def test_a_class_of_the_user_must_be_given_at_loading():
    class Own(torch.nn.Module):
        pass

    @dataclass(frozen=True)
    class Cubic(sf.GaussianSDE):
        def alpha(self, t):
            return 1 - t**3

        def sigma(self, t):
            return t

    description = through_json(describe_model(sf.ScoreModel(Own(), Cubic(), shape=(2,))))
    with pytest.raises(InputError, match=r"net of its own .*Own.* load it with net="):
        build_model(description)
    with pytest.raises(InputError, match="load it with sde="):
        build_model(description, net=Own())
    assert isinstance(build_model(description, net=Own(), sde=Cubic()).sde, Cubic)


@pytest.mark.parametrize(
    "description",
    [
        {"class": "os.system", "arguments": {"command": "true"}},
        {"class": "Linear", "arguments": {"in_features": 1, "out_features": 1}},
        {"class": "VP", "arguments": {"beta_low": 1}},
        {"class": "VP", "arguments": {"beta_min": -1.0}},
        {"class": "VP"},
    ],
)
def test_what_is_not_in_the_closed_set_is_refused(description):
    with pytest.raises(CheckpointError):
        from_json(description)


@pytest.mark.parametrize(("part", "value"), [("schedule", None), ("states", 2.5), ("schedule", {"T": 1.0})])
def test_a_jump_process_that_is_none_is_refused(part, value):
    model = sf.discrete.JumpModel(nn.StateMLP(3, 2, width=8), sf.discrete.Absorbing(3), (2,))
    described = through_json(describe_model(model))
    described["sde"]["arguments"][part] = value
    with pytest.raises(CheckpointError):
        build_model(described)


@pytest.mark.parametrize(
    "data",
    [
        {"scale": None},
        {"scale": {"mean": 0.0}},
        {"scale": {"mean": "x", "factor": 1.0}},
        {"scale": {"mean": [0.0, 1.0, 2.0], "factor": 1.0}},
        {"scale": {"mean": float("nan"), "factor": 1.0}},
        {"scale": {"mean": 0.0, "factor": 1.0, "powers": []}},
        {"codec": "Columns"},
    ],
)
def test_units_that_are_none_are_refused(tmp_path, data):
    net = {"class": "MLP", "arguments": {"features": 2}}
    model = {"net": net, "sde": {"class": "VP", "arguments": {}}}
    rest = {"format": 1, "model": model, "range": None, "levels": None, "shape": [2], "classes": [], "config": {}}
    (tmp_path / "run.json").write_text(json.dumps(rest | {"data": data}))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        read_run(tmp_path)
