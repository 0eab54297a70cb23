"""Weights made elsewhere: the checkpoints of the official code, and the NCSN++ folders of diffusers."""

from __future__ import annotations

import difflib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scorefield.errors import CheckpointError, cannot_read, cannot_write
from scorefield.ladder import DDPMScore, SMLDLabels
from scorefield.model import ScoreModel
from scorefield.nn import NCSN, NCSNv2, NoiseScales, UNet, ddpm, levels_at
from scorefield.pretrained.diffusers_names import current_name, diffusers_config, diffusers_rules, unet_from_diffusers
from scorefield.pretrained.official_names import Rule, official_rules
from scorefield.sde import GaussianSDE
from scorefield.sdes import VE, VP, SubVP

Config = Mapping[str, Any]

_SCHEDULER = "scheduler_config.json"

# The optimiser state of an official checkpoint holds NumPy scalars, pickled under the module path of the NumPy that
# wrote them. These rebuild numbers and nothing else.
_scalar = np.float64(0).__reduce__()[0]
_NUMPY: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]


def official_model(config: Config, state: Mapping[str, Tensor] | None = None) -> ScoreModel:
    """The score model of an official configuration, in evaluation mode.

    Main arguments:
        config: the sections "data", "model" and "training" of an official configuration, as nested mappings.
        state: weights under the official names, with or without the prefix "module."; None for fresh ones.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape is wrong (a ValueError, one line, names the key).
        ValueError: the configuration asks for something that the official code does not have.
    """
    data, model = config["data"], config["model"]
    sde = official_sde(config)
    net = official_network(config)
    if state is not None:
        load_weights(net, state)
    shape = (data["num_channels"], data["image_size"], data["image_size"])
    if isinstance(sde, VE):
        clock: Any = SMLDLabels(model["num_scales"]) if is_discrete(config) else "sigma"
        return ScoreModel(net, sde, "score", shape=shape, clock=clock).eval()
    if is_discrete(config):
        wrapped = DDPMScore(net, model["beta_min"], model["beta_max"], model["num_scales"])
        return ScoreModel(wrapped, sde, "score", shape=shape, clock="t").eval()
    return ScoreModel(net, sde, "noise", shape=shape, clock=999.0).eval()


def load_checkpoint(path: str | Path, config: Config, *, ema: bool = True) -> ScoreModel:
    """The score model in an official checkpoint file; its EMA weights unless `ema` is False.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: it is no official checkpoint, or not one of this configuration.
    """
    return official_model(config, read_checkpoint(path).weights(ema))


@dataclass(frozen=True)
class OfficialCheckpoint:
    """An official checkpoint file: weights under their official names, the averages in the same order, the step."""

    path: Path
    model: Mapping[str, Tensor]
    shadow: tuple[Tensor, ...]
    step: int

    def weights(self, ema: bool = True) -> dict[str, Tensor]:
        """The weights, those that train replaced by their moving averages if `ema`.

        Raises:
            CheckpointError: the averages do not fit the weights.
        """
        state = dict(self.model)
        if not ema:
            return state
        trained = [key for key in state if not _is_fixed(key)]
        if len(trained) != len(self.shadow):
            raise CheckpointError(
                f"cannot read {self.path}: ema.shadow_params has {len(self.shadow)} tensors, "
                f"the model {len(trained)} parameters"
            )
        for key, average in zip(trained, self.shadow, strict=True):
            if average.shape != state[key].shape:
                raise CheckpointError(
                    f"cannot read {self.path}: the moving average of {key} has shape {tuple(average.shape)}, "
                    f"the weight {tuple(state[key].shape)}"
                )
            state[key] = average
        return state


def read_checkpoint(path: str | Path) -> OfficialCheckpoint:
    """Read a file written by the official code (a dict of optimizer, model, ema, step) without running pickled code.

    Raises:
        InputError: the file cannot be opened.
        CheckpointError: it is not such a file, or holds pickled objects other than tensors and numbers.
    """
    path = Path(path)
    try:
        with torch.serialization.safe_globals(_NUMPY):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|operand|type) (\S+)", str(error))
        what = f"a pickled {found[1] or found[2]}" if found else "something that is no tensor"
        raise CheckpointError(
            f"cannot read {path}: it holds {what}; only tensors, numbers and containers of them are read"
        ) from None
    except OSError as error:
        raise cannot_read(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: not a checkpoint of torch ({_first_line(error)})") from None
    try:
        model, shadow, step = content["model"], content["ema"]["shadow_params"], int(content["step"])
        tensors = [*model.values(), *shadow]
    except (TypeError, KeyError, AttributeError, ValueError):
        raise CheckpointError(
            f"cannot read {path}: expected a dict of optimizer, model, ema and step, as the official code writes it"
        ) from None
    if not all(isinstance(t, Tensor) for t in tensors):
        raise CheckpointError(f"cannot read {path}: the weights are not all tensors")
    return OfficialCheckpoint(path, {_bare(k): v for k, v in model.items()}, tuple(shadow), step)


def official_sde(config: Config) -> GaussianSDE:
    """The SDE of an official configuration."""
    model, training = config["model"], config["training"]
    name = training.get("sde", training.get("loss"))
    if name == "vesde":
        return VE(sigma_min=model["sigma_min"], sigma_max=model["sigma_max"])
    if name in ("vpsde", "subvpsde"):
        return (VP if name == "vpsde" else SubVP)(beta_min=model["beta_min"], beta_max=model["beta_max"])
    raise ValueError(f"training.sde={name!r} is unknown; choose one of vesde, vpsde, subvpsde")


def is_discrete(config: Config) -> bool:
    """Whether the network was trained on labels of a ladder of noise levels rather than on continuous times."""
    # The networks of NCSN have tables of labels, whatever `continuous` says: one configuration misspells it.
    return (
        config["model"]["name"].startswith(("ncsn_", "ncsnv2"))
        or config["model"]["name"] == "ncsn"
        or (not config["training"]["continuous"] and config["training"].get("sde") != "subvpsde")
    )


def official_network(config: Config) -> nn.Module:
    """The network of an official configuration with fresh weights, called with the official labels.

    Raises:
        ValueError: model.name is unknown.
    """
    data, model = config["data"], config["model"]
    name, channels, centered = model["name"], data["num_channels"], data["centered"]
    scales = NoiseScales(model["sigma_min"], model["sigma_max"], model["num_scales"])
    if name == "ncsn":
        return NCSN(channels, model["nf"], model["num_scales"], centered=centered, nonlinearity=model["nonlinearity"])
    if name in ("ncsnv2_64", "ncsnv2_128", "ncsnv2_256"):
        size: Any = int(name.removeprefix("ncsnv2_"))
        return NCSNv2(channels, model["nf"], size, scales, centered=centered, nonlinearity=model["nonlinearity"])
    if name not in ("ddpm", "ncsnpp"):
        raise ValueError(
            f"model.name={name!r} is unknown; choose one of ncsnpp, ddpm, ncsnv2_64, ncsnv2_128, ncsnv2_256, ncsn"
        )
    attn = levels_at(model["attn_resolutions"], data["image_size"], len(model["ch_mult"]))
    labelled = name == "ddpm" or model["embedding_type"] == "positional"
    shared: dict[str, Any] = {
        "dropout": model["dropout"],
        "resamp_with_conv": model["resamp_with_conv"],
        "nonlinearity": model["nonlinearity"],
        "scale_by_sigma": model["scale_by_sigma"],
        "scales": scales if model["scale_by_sigma"] and labelled else None,
        "centered": centered,
        "time_scale": 1.0,
    }
    widths = (channels, model["nf"], tuple(model["ch_mult"]), model["num_res_blocks"], attn)
    if name == "ddpm":
        return ddpm(*widths, **shared)  # the official DDPM reads the label even where `conditional` is False
    return UNet(
        *widths,
        embedding=model["embedding_type"],
        fourier_scale=model.get("fourier_scale", 16.0),
        conditional=model["conditional"],
        resblock=model["resblock_type"],
        fir=tuple(model["fir_kernel"]) if model["fir"] else None,
        skip_rescale=model["skip_rescale"],
        progressive=model["progressive"],
        progressive_input=model["progressive_input"],
        combine=model["progressive_combine"],
        init_scale=model["init_scale"],
        **shared,
    )


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights under official names into a network made by `official_network`, after checking every one.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape is wrong; one line that names it.
    """
    weights = {_bare(k): v for k, v in state.items()}
    weights.pop("sigmas", None)  # a table that follows from the configuration
    if isinstance(net, UNet) and net.conditioning is None:
        # The official code makes these weights without using them where the network is not conditioned on time.
        weights = {k: v for k, v in weights.items() if not (".Dense_0." in k or _is_fixed(k))}
    _load(net, official_rules(net), weights)


@torch.no_grad()
def _load(net: nn.Module, rules: Sequence[Rule], weights: Mapping[str, Tensor]) -> None:
    ours = net.state_dict()
    names = {rule.theirs for rule in rules}
    for key in weights:
        if key not in names:
            near = difflib.get_close_matches(key, [name for name in names if name not in weights], n=1)
            remedy = f"expected {near[0]}, which is missing" if near else "check the configuration"
            raise CheckpointError(f"the weights hold {key}, which this configuration does not have; {remedy}")
    for rule in rules:
        tensor, place = weights.get(rule.theirs), rule.pick(ours[rule.ours])
        if tensor is None:
            raise CheckpointError(
                f"the weights lack {rule.theirs}, which this configuration needs; check the configuration"
            )
        if not isinstance(tensor, Tensor) or tensor.shape != place.shape:
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(
                f"the weight {rule.theirs} has shape {got}; this configuration needs {tuple(place.shape)}"
            )
    for rule in rules:
        rule.pick(ours[rule.ours]).copy_(weights[rule.theirs])


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
    config = _read_json(inner / "config.json")
    net = unet_from_diffusers(config)
    path = inner / "diffusion_pytorch_model.safetensors"
    try:
        weights = load_file(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path}: {_first_line(error)}") from None
    _load(net, diffusers_rules(net), {current_name(k): v for k, v in weights.items()})
    if sde is None:
        plans = [p for p in (folder / "scheduler" / _SCHEDULER, inner / _SCHEDULER) if p.exists()]
        if not plans:
            raise ValueError(f"{folder} has no {_SCHEDULER}; give the SDE it was trained under, sde=VE(...)")
        plan = _read_json(plans[0])
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError as error:
        raise CheckpointError(f"cannot read {path}: not JSON ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: expected a JSON object")
    return content


def _is_fixed(key: str) -> bool:
    """Whether the official code does not train this entry: the table of noise levels and the Fourier frequencies."""
    return key == "sigmas" or re.fullmatch(r"all_modules\.\d+\.W", key) is not None


def _bare(key: str) -> str:
    return key.removeprefix("module.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
