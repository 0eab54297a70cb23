"""`scorefield presets` and `scorefield convert`: official checkpoints become runs that every command accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.cli import main
from scorefield.presets import names
from scorefield.training.recipes import recipe

HERE = Path(__file__).parent
PLACES = (HERE / "data" / "parity", HERE.parent.parent / "shared" / "parity")


@pytest.fixture(params=["12_checkpoint_ve_ncsnpp", "12_checkpoint_vp_ddpm"])
def official(request, tmp_path):
    """(checkpoint file, configuration file, recorded scores)."""
    for place in PLACES:
        if (place / f"{request.param}.pth").exists():
            about = json.loads((place / f"{request.param}.json").read_text())
            config = tmp_path / "config.json"
            config.write_text(json.dumps(about["config"]))
            return place / f"{request.param}.pth", config, load_file(place / f"{request.param}.safetensors")
    pytest.skip(f"the recording {request.param} is not here")


@pytest.mark.parametrize("kind", ["ema", "model"])
def test_a_converted_checkpoint_gives_the_recorded_scores(official, tmp_path, kind):
    file, config, recorded = official
    raw = ["--raw"] if kind == "model" else []
    assert main(["convert", str(file), "--preset", str(config), "--out", str(tmp_path / "run"), *raw]) == 0
    model = sf.load(tmp_path / "run")
    found = {k: v for k, v in recorded.items() if k.startswith(f"{kind}/")}
    assert len(found) == 3
    for key, expected in found.items():
        t = {"001": 0.01, "03": 0.3, "09": 0.9}[key.split("_t")[-1]]
        scale = expected.float().square().mean().sqrt()
        score = model.score(recorded["x"], torch.full((len(recorded["x"]),), t))
        torch.testing.assert_close(score, expected.float(), rtol=0, atol=float(1e-3 * scale))


def test_a_converted_run_samples_and_scores(official, tmp_path, capsys):
    file, config, _ = official
    run = str(tmp_path / "run")
    assert main(["convert", str(file), "--preset", str(config), "--out", run]) == 0
    assert main(["sample", run, "-n", "2", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 100
    assert main(["convert", str(file), "--preset", str(config), "--out", run]) == 2
    assert "is a run already" in capsys.readouterr().err


def test_a_wrong_preset_is_refused_in_one_line(official, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["convert", str(official[0]), "--preset", "ve/cifar10_ncsnpp_deep_continuous", "--out", str(out)]) != 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not (out / "run.json").exists()


def test_presets_are_listed_and_shown(capsys):
    assert main(["presets"]) == 0
    assert capsys.readouterr().out.split() == names()
    assert main(["presets", "ve/cifar10_ncsnpp_continuous", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["sigma_max"] == 50
    assert main(["presets", "ve/cifar10_ncsnp_continuous"]) == 2
    assert "did you mean ve/cifar10_ncsnpp_continuous" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", *names()])
def test_every_preset_has_a_recipe(name):
    found = recipe(name)
    assert found.config.steps >= 1
    assert (found.shape or (1,))[0] in (1, 3)
