"""scorefield distill: a run of jumps, which is sampled without naming a sampler and refuses what needs a score."""

import json

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.consistency import Karras
from scorefield.flowmap import fixed_point_bias
from scorefield.training.describe import build_model, describe_model

QUICK = ("--steps", 3, "--batch-size", 4, "--noise-levels", 10, "--json")


@pytest.fixture(scope="module")
def fast(trained, tmp_path_factory):
    """A distilled run and what the command told; not to be written into."""
    from scorefield.cli import main

    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "grey.npy", np.arange(6 * 64, dtype=np.uint8).reshape(6, 1, 8, 8))
    words = ("distill", trained, "--data", folder / "grey.npy", "--out", folder / "fast", *QUICK)
    assert main([str(word) for word in words]) == 0
    return folder / "fast"


def test_a_distilled_run_is_a_map_that_samples_by_jumps(cli, fast, tmp_path):
    model = sf.load(fast)
    assert isinstance(model, sf.FlowMap)
    solution = sf.sample(model, 3, steps=2, seed=0, full=True)
    assert solution.nfe.tolist() == [2, 2, 2]
    assert bool(torch.isfinite(solution.x).all())
    status, _, err = cli("sample", fast, "-n", 2, "--steps", 1, "--out", tmp_path / "fast.png")
    assert status == 0, err
    assert (tmp_path / "fast.png").exists()


def test_the_same_command_goes_on(cli, trained, fast):
    status, out, err = cli("distill", trained, "--data", fast.parent / "grey.npy", "--out", fast, *QUICK)
    assert status == 0, err
    told = json.loads(out)
    assert told["finished"]
    model = sf.load(trained)
    levels = Karras(10).levels(model.sde, model.sde.t_min)
    assert told["bias"] == pytest.approx(fixed_point_bias(levels, model.sigma_data, "heun"))  # Heun's steps are taken
    assert told["bias"] > 0.1  # ten levels are far too few


def test_what_needs_a_score_is_refused_in_one_line(cli, fast):
    status, _, err = cli("likelihood", fast, "--data", fast.parent / "grey.npy")
    assert status != 0
    assert "a flow map has no" in err
    assert len(err.strip().splitlines()) == 1


def test_maps_do_not_teach_and_levels_are_two_at_least(cli, trained, fast, tmp_path):
    for words, told in (
        ((fast, "--out", tmp_path / "a", *QUICK), "has no probability flow to jump along"),
        ((trained, "--out", trained, *QUICK), "choose another folder"),
        ((trained, "--out", tmp_path / "a", "--noise-levels", 1), "expected 2 or more"),
    ):
        status, _, err = cli("distill", *words)
        assert status == 2
        assert told in err


@pytest.mark.parametrize("kind", ["consistency", "trig", "average"])
def test_maps_with_a_network_of_their_own_are_described(kind):
    fm = sf.FlowMap(sf.nn.MLP(2, width=8), sf.VP(), kind, shape=(2,), sigma_data=0.7, end=0.01)
    twin = build_model(json.loads(json.dumps(describe_model(fm))))
    assert isinstance(twin, sf.FlowMap)
    assert (twin.kind, twin.end, twin.sigma_data, twin.shape, twin.clock) == (kind, 0.01, 0.7, (2,), fm.clock)


@pytest.mark.parametrize("predict", ["noise", "edm", "data"])
def test_maps_of_score_models_are_described(predict):
    model = sf.ScoreModel(sf.nn.MLP(2, width=8), sf.VE(), predict, shape=(2,), sigma_data=0.7)
    fm = sf.FlowMap.from_model(model, end=0.02)
    twin = build_model(json.loads(json.dumps(describe_model(fm))))
    twin.load_state_dict(fm.state_dict())
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(twin.jump(x, 0.5), fm.jump(x, 0.5))
