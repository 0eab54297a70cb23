"""Networks of ours in folders of diffusers: read without that package, and written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scorefield.errors import CheckpointError, cannot_read, cannot_write
from scorefield.ladder import DDPMScore
from scorefield.model import ScoreModel
from scorefield.nn import UNet
from scorefield.pretrained.diffusers import DiffusersNet, read_json
from scorefield.pretrained.diffusers_names import (
    current_name,
    diffusers_config,
    diffusers_rules,
    idle_attention,
    unet_from_diffusers,
)
from scorefield.pretrained.load import copy_weights, first_line
from scorefield.sdes import VE, VP

_SCHEDULER = "scheduler_config.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_diffusers(folder: str | Path, sde: VE | None = None) -> ScoreModel:
    """The score model of an NCSN++ in the layout of diffusers: a UNet2DModel folder, or a pipeline folder around one.

    Main arguments:
        folder: holds config.json and diffusion_pytorch_model.safetensors, or a folder `unet` that does.
        sde: the VE SDE it was trained under; None reads it from scheduler_config.json, in the folder or in `scheduler`.

    Raises:
        InputError: a file cannot be read.
        ValueError: the configuration is not one of NCSN++, or no SDE is given or found.
        CheckpointError: the weights do not fit the configuration.
    """
    folder = Path(folder)
    inner = folder / "unet" if (folder / "unet").is_dir() else folder
    config = read_json(inner / "config.json")
    try:
        net = unet_from_diffusers(config)
    except ValueError as error:
        raise ValueError(f"{error}; from_diffusers reads other U-Nets") from None
    path = inner / _WEIGHTS
    try:
        weights = load_file(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from None
    copy_weights(net, diffusers_rules(net), {current_name(k): v for k, v in weights.items()})
    if sde is None:
        plans = [p for p in (folder / "scheduler" / _SCHEDULER, inner / _SCHEDULER) if p.exists()]
        if not plans:
            raise ValueError(f"{folder} has no {_SCHEDULER}; give the SDE it was trained under, sde=VE(...)")
        plan = read_json(plans[0])
        sde = VE(sigma_min=plan["sigma_min"], sigma_max=plan["sigma_max"])
    size = config.get("sample_size")
    shape = None if size is None else (3, *((size, size) if isinstance(size, int) else size))
    return ScoreModel(net, sde, "score", shape=shape, clock="sigma").eval()


def save_diffusers(model: ScoreModel, folder: str | Path) -> None:
    """Write a score model as a pipeline folder that diffusers reads: model_index.json, and folders unet and scheduler.

    A `UNet` of the settings of NCSN++ under VE becomes a ScoreSdeVePipeline; one of the settings of `ddpm`, which predicts
    noise or data under a variance-preserving SDE, a DDPMPipeline whose betas are those of the SDE at the labels (label 0,
    where there is no noise at all, stands for a tenth of a label). A model that `from_diffusers` made is written as it came.

    Raises:
        ValueError: diffusers has no blocks for this network, or no scheduler for this process; one line names what.
        OutputError: a file cannot be written.
    """
    folder = Path(folder)
    net = model.net
    if isinstance(net, DiffusersNet):
        try:
            net.model.save_pretrained(str(folder / ("unet" if net.kind.state == "sample" else "transformer")))
            net.scheduler.save_pretrained(str(folder / "scheduler"))
            if type(net.model).__name__ == "UNet2DModel":
                _write_index(folder, "DDPMPipeline", type(net.scheduler).__name__)
        except OSError as error:
            raise cannot_write(folder, error) from None
        return
    net = net.net if isinstance(net, DDPMScore) else net
    if not isinstance(net, UNet):
        raise ValueError(f"the layout of diffusers is for a UNet, not {type(net).__name__}")
    exploding = net.config["embedding"] == "fourier"
    plan = _exploding_plan(model) if exploding else _preserving_plan(model, net)
    config = diffusers_config(net, None if model.shape is None else model.shape[-1])
    state = net.state_dict()
    weights = {rule.theirs: rule.pick(state[rule.ours]).contiguous() for rule in diffusers_rules(net)}
    try:
        for part in ("unet", "scheduler"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        save_file(weights | idle_attention(net), folder / "unet" / _WEIGHTS, metadata={"format": "pt"})
        for path, content in (("unet/config.json", config), (f"scheduler/{_SCHEDULER}", plan)):
            (folder / path).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
        _write_index(folder, "ScoreSdeVePipeline" if exploding else "DDPMPipeline", plan["_class_name"])
    except OSError as error:
        raise cannot_write(folder, error) from None


def _write_index(folder: Path, pipeline: str, scheduler: str) -> None:
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler]}
    content = {"_class_name": pipeline, "_diffusers_version": "0.30.0", **parts}
    (folder / "model_index.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _exploding_plan(model: ScoreModel) -> dict[str, Any]:
    sde = model.sde
    if not isinstance(sde, VE) or sde.exact or model.predict != "score":
        raise ValueError(f"the diffusers layout of NCSN++ is for a score under VE, not {model.predict} under {sde}")
    return {"_class_name": "ScoreSdeVeScheduler", "sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max}


def _preserving_plan(model: ScoreModel, net: UNet) -> dict[str, Any]:
    plan: dict[str, Any] = {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_small"}
    ladder = model.net
    if isinstance(ladder, DDPMScore) and isinstance(model.sde, VP) and net.config["time_scale"] == 1:
        n = ladder.num_scales
        ends = {"beta_start": ladder.beta_min / n, "beta_end": ladder.beta_max / n}
        return plan | {"prediction_type": "epsilon", "num_train_timesteps": n, "beta_schedule": "linear", **ends}
    kinds = {"noise": "epsilon", "data": "sample"}
    rate = 1.0 if model.clock == "t" else model.clock
    if model.predict not in kinds or not isinstance(rate, int | float):
        raise ValueError(
            f"predict={model.predict!r}, clock={model.clock!r}: the DDPM layout of diffusers is for noise or data, at labels "
            "that are a multiple of t"
        )
    rate = float(rate) * net.config["time_scale"]  # label of the network per unit of t
    labels = torch.arange(int(rate * model.sde.T + 1e-6) + 1, dtype=torch.float64)
    times = labels.clamp_min(0.1) / rate
    alpha, sigma = model.sde.alpha(times), model.sde.sigma(times)
    if len(labels) < 2 or float((alpha**2 + sigma**2 - 1).abs().max()) > 1e-9:
        raise ValueError(
            f"{model.sde}: schedulers of diffusers with labels need a variance-preserving SDE and many labels"
        )
    products = alpha**2
    betas = torch.cat([1 - products[:1], -torch.expm1(torch.log(products[1:] / products[:-1]))])
    count = {"num_train_timesteps": len(labels), "trained_betas": betas.tolist()}
    return plan | {"prediction_type": kinds[model.predict], **count}
