"""Networks of ours in the folders of diffusers: read without that package, and written for it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scorefield.errors import CheckpointError, cannot_read, cannot_write
from scorefield.model import ScoreModel
from scorefield.nn import UNet
from scorefield.pretrained.diffusers import read_json
from scorefield.pretrained.diffusers_names import current_name, diffusers_config, diffusers_rules, unet_from_diffusers
from scorefield.pretrained.load import copy_weights, first_line
from scorefield.sdes import VE

_SCHEDULER = "scheduler_config.json"


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
    net = unet_from_diffusers(config)
    path = inner / "diffusion_pytorch_model.safetensors"
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
    """Write the network of a score model as a UNet2DModel folder, which diffusers and `load_diffusers` read.

    Raises:
        ValueError: diffusers has no blocks for this network, or the SDE is not VE.
        OutputError: a file cannot be written.
    """
    net, sde = model.net, model.sde
    if not isinstance(net, UNet) or not isinstance(sde, VE):
        raise ValueError(f"the diffusers layout of NCSN++ is for a UNet under VE, not {type(net).__name__} under {sde}")
    config = diffusers_config(net, None if model.shape is None else model.shape[-1])
    plan = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max}
    state = net.state_dict()
    weights = {rule.theirs: rule.pick(state[rule.ours]).contiguous() for rule in diffusers_rules(net)}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        for name, content in (("config.json", config), (_SCHEDULER, plan)):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise cannot_write(folder, error) from None
