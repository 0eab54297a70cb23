"""Weights of the official code: its configurations, its checkpoint files."""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from scorefield import presets
from scorefield.errors import CheckpointError, cannot_read
from scorefield.model import ScoreModel
from scorefield.nn import UNet
from scorefield.pretrained.official_names import Rule, official_rules

Config: TypeAlias = "presets.Preset | Mapping[str, Any] | str | Path"

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
        config: nested mappings with the sections "data", "model" and "training", a JSON file that holds them, a preset, or
            the official name of one.
        state: weights under the official names, with or without the prefix "module."; None for fresh ones.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape is wrong (a ValueError, one line, names the key).
        ValueError: the configuration asks for something that the official code does not have.
    """
    preset = presets.read(config)
    net = preset.network()
    if state is not None:
        load_weights(net, state)
    return preset.score_model(net)


def load_checkpoint(path: str | Path, config: Config, *, ema: bool = True) -> ScoreModel:
    """The score model in an official checkpoint file; its EMA weights unless `ema` is False; `config` as in `official_model`.

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
    content = _read_tensors(path)
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


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in a file of safetensors, or in one of torch, without running pickled code.

    Raises:
        InputError: the file cannot be opened.
        CheckpointError: it holds something else.
    """
    path = Path(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_tensors(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    except SafetensorError as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from None
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"cannot read {path}: expected tensors by name, and nothing else")
    return {_bare(str(k)): v for k, v in content.items()}


def _read_tensors(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMPY):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|Unsupported (?:class|operand|type) (\S+)", str(error))
        what = f"a pickled {found[1] or found[2]}" if found else "something that is no tensor"
        raise CheckpointError(
            f"cannot read {path}: it holds {what}; only tensors, numbers and containers of them are read"
        ) from None
    except OSError as error:
        raise cannot_read(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: not a checkpoint of torch ({first_line(error)})") from None


def load_weights(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights under official names into a network of an official configuration, after checking every one.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape is wrong; one line that names it.
    """
    weights = {_bare(k): v for k, v in state.items()}
    weights.pop("sigmas", None)  # a table that follows from the configuration
    if isinstance(net, UNet) and net.conditioning is None:
        # The official code makes these weights without using them where the network is not conditioned on time.
        weights = {k: v for k, v in weights.items() if not (".Dense_0." in k or _is_fixed(k))}
    copy_weights(net, official_rules(net), weights)


@torch.no_grad()
def copy_weights(net: nn.Module, rules: Sequence[Rule], weights: Mapping[str, Tensor]) -> None:
    """Copy weights of another layout into a network, after checking every name and shape.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape is wrong; one line that names it.
    """
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


def _is_fixed(key: str) -> bool:
    """Whether the official code does not train this entry: the table of noise levels and the Fourier frequencies."""
    return key == "sigmas" or re.fullmatch(r"all_modules\.\d+\.W", key) is not None


def _bare(key: str) -> str:
    return key.removeprefix("module.")


def first_line(error: Exception) -> str:
    """What an exception says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
