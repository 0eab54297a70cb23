"""The networks and checkpoints of guided diffusion (Dhariwal & Nichol 2021), which most inverse-problem papers build on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scorefield.model import ScoreModel
from scorefield.presets.guided import Guided, guided
from scorefield.pretrained.load import copy_weights, read_state
from scorefield.pretrained.official_names import Rule


def guided_model(config: Guided | Mapping[str, Any] | str, state: Mapping[str, Tensor] | None = None) -> ScoreModel:
    """The score model of a configuration of guided diffusion, in evaluation mode; of a learned variance the mean is read.

    Main arguments:
        config: the flags of the authors' scripts in a mapping, a `presets.Guided`, or a name: "adm/ffhq256",
            "adm/imagenet256_unconditional", "adm/imagenet256", "adm/imagenet512", "adm/imagenet128", "adm/imagenet64",
            "adm/lsun_bedroom", "adm/lsun_cat", "adm/lsun_horse".
        state: weights under the authors' names; None for fresh ones.

    Raises:
        InputError: the name is unknown.
        CheckpointError: a name is missing or unknown, or a shape is wrong; one line that names it.
        ValueError: the flags are not those of guided diffusion.
    """
    preset = guided(config)
    net = preset.network()
    if state is not None:
        copy_weights(net, [Rule(name, name) for name in net.state_dict()], state)
    return preset.score_model(net)


def load_guided(path: str | Path, config: Guided | Mapping[str, Any] | str) -> ScoreModel:
    """The score model in a checkpoint file of guided diffusion (.pt, or .safetensors); `config` as in `guided_model`.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: it holds something else than tensors by name, or does not fit the configuration.
    """
    return guided_model(config, read_state(path))
