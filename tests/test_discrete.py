"""The discrete and continuous objectives against recordings of the paper's code, and its first six training steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import scorefield as sf
from scorefield.ladder import ddpm_loss
from scorefield.objective import dsm_loss
from scorefield.pretrained.load import official_model
from scorefield.training import EMA, OptimConfig, TrainConfig
from scorefield.training.optimizer import make_optimizer

HERE = Path(__file__).parent
PLACES = (HERE / "data" / "parity", HERE.parent.parent / "shared" / "parity")


def recording(name: str) -> tuple[dict, dict[str, Tensor]]:
    for place in PLACES:
        if (place / f"{name}.safetensors").exists():
            return json.loads((place / f"{name}.json").read_text()), load_file(place / f"{name}.safetensors")
    pytest.skip(f"the recording {name} is not here")


def recorded_model(name: str) -> sf.ScoreModel:
    about, tensors = recording(name)
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    return official_model(about["config"], state).eval()


def determined(key: str, value: Tensor) -> slice | list[int]:
    """All rows of a weight, but for the bias of attention keys: its true gradient is 0, and Adam amplifies rounding."""
    third = len(value) // 3 if value.ndim else 0
    return [*range(third), *range(2 * third, len(value))] if key.endswith("qkv.bias") else slice(None)


def losses(model: sf.ScoreModel, kind: str, data: dict[str, Tensor], weighting: str) -> Tensor:
    if kind == "ddpm":
        return ddpm_loss(model, data["batch"], t=data["labels"].double() / 999, noise=data["z"])
    if kind == "smld":
        count = model.clock.num_scales
        return dsm_loss(model, data["batch"], t=1 - data["labels"].double() / (count - 1), noise=data["z"])
    time = data["u"] * (1 - 1e-5) + 1e-5
    return dsm_loss(model, data["batch"], weighting, t=time, noise=data["z"])


@pytest.mark.parametrize("name", ["ddpm", "smld_ncsnpp", "smld_ncsnv2", "ve_cont", "vp_cont", "subvp_cont"])
def test_loss_is_the_recorded_one(name):
    about, data = recording(f"10_loss_{name}")
    model = recorded_model(about["model_fixture"])
    for key, value in ((k.removeprefix("loss/"), v) for k, v in data.items() if k.startswith("loss/")):
        weighting = "likelihood" if "likelihood_weighting=True" in key else "noise"
        each = losses(model, key.split("__")[0], data, weighting)
        mean = each.mean() / data["batch"][0].numel() if "reduce_mean=True" in key else 0.5 * each.mean()
        assert mean.item() == pytest.approx(float(value), rel=1e-5), key


@pytest.mark.parametrize("name", ["10_train_ve_cont", "10_train_vp_cont"])
def test_six_training_steps_end_at_the_recorded_weights(name):
    about, data = recording(name)
    config, optim = about["config"], about["config"]["optim"]
    state = {k.removeprefix("state/"): v for k, v in data.items() if k.startswith("state/")}
    model = official_model(config, state).train()
    settings = TrainConfig(
        steps=1000,
        ema=config["model"]["ema_rate"],
        optim=OptimConfig(lr=optim["lr"], eps=optim["eps"], warmup=optim["warmup"], clip=optim["grad_clip"]),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, ema = make_optimizer(parameters, settings), EMA(model, settings.ema)
    for i in range(about["steps"]):
        time = data["u"][i] * (1 - 1e-5) + 1e-5
        each = dsm_loss(model, data["batches"][i], t=time, noise=data["z"][i])
        size = data["batches"][i][0].numel()
        loss = each.mean() / size if config["training"]["reduce_mean"] else 0.5 * each.mean()
        assert loss.item() == pytest.approx(about["losses"][i], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.optim.lr_at(i, settings.steps)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(about["lr_used"][i])
        optimizer.step()
        ema.update()
    for kind, weights in (("after", model.state_dict()), ("ema", ema.tensors)):
        end = {k.removeprefix(f"{kind}/"): v for k, v in data.items() if k.startswith(f"{kind}/")}
        assert end
        expected = official_model(config, {**state, **end}).state_dict()
        for key, value in expected.items():
            rows = determined(key, value)
            torch.testing.assert_close(weights[key][rows], value[rows], rtol=0, atol=1e-5, msg=f"{kind} {key}")
