"""Models of the diffusers package as they are: any of their U-Nets and transformers with its scheduler, as a score model."""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.coefficients import as_time
from scorefield.errors import CheckpointError, InputError, cannot_read
from scorefield.ladder import TableLabels, TableSDE
from scorefield.model import Clock, ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.sdes import VE, RectifiedFlow
from scorefield.views import Predict


@dataclass(frozen=True)
class _Kind:
    """How a class of diffusers is called: the name of its state, what it cannot do without, what its times may be."""

    state: str = "hidden_states"
    needs: tuple[str, ...] = ()
    flow: bool | None = None
    """Whether it is made for flow matching; None if it may be either."""


_KINDS = {
    "UNet2DModel": _Kind("sample"),
    "UNet2DConditionModel": _Kind("sample", ("encoder_hidden_states",)),
    "DiTTransformer2DModel": _Kind(flow=False),
    "Transformer2DModel": _Kind(flow=False),
    "SD3Transformer2DModel": _Kind(needs=("encoder_hidden_states", "pooled_projections"), flow=True),
}


class DiffusersNet(nn.Module):
    """A network of diffusers called as net(x, t, **cond) -> like x; t are its own labels.

    `cond` is passed on under the names that diffusers has (`encoder_hidden_states`, `class_labels`, ...); `label` is another
    name of `class_labels`, with None or a negative entry for the class that stands for none, where the network has one. A
    condition of one row is that of all samples. Of the channels of a network that also learns a variance the first half is
    returned.

    Main arguments:
        model: the module of diffusers. scheduler: that of the model.
        sign: factor on what it returns.
    """

    exact_time = True
    model: Any

    def __init__(self, model: Any, scheduler: Any, sign: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.scheduler = scheduler
        self.sign = sign
        self.kind = _kind(model)
        self.whole = getattr(model.config, "time_embedding_type", None) == "learned"
        """Whether the network knows whole labels only."""
        classes = getattr(model.config, "num_embeds_ada_norm", None) if self.kind.flow is False else None
        self.null: int | None = classes

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """x: (B, *); t: labels (B,)."""
        self._name_classes(x, cond)
        missing = [name for name in self.kind.needs if cond.get(name) is None]
        if missing:
            raise ValueError(
                f"{type(self.model).__name__} needs {' and '.join(missing)}; give it by this name, as in "
                f"sample(model, n, {missing[0]}=...)"
            )
        label = torch.round(t).long() if self.whole else t
        cond = {name: _for_all(value, len(x)) for name, value in cond.items()}
        y: Tensor = self.model(**{self.kind.state: x}, timestep=label, return_dict=False, **cond)[0]
        y = y[:, : x.shape[1]] if y.shape[1] == 2 * x.shape[1] else y
        return y if self.sign == 1.0 else self.sign * y

    def _name_classes(self, x: Tensor, cond: dict[str, Any]) -> None:
        if "label" in cond:
            label = cond.pop("label")
            cond["class_labels"] = label if label is None else torch.as_tensor(label, device=x.device).expand(len(x))
        if self.null is None:
            return
        label = cond.get("class_labels")
        label = torch.full((len(x),), -1, device=x.device) if label is None else label
        cond["class_labels"] = torch.where(label < 0, self.null, label)


@dataclass(frozen=True)
class _Process:
    """What a scheduler says: the forward process, what the network predicts and reads, the sign of what it predicts."""

    sde: GaussianSDE
    predict: Predict
    clock: Clock
    sign: float = 1.0
    sigma_data: float = 0.5


def from_diffusers(source: Any, scheduler: Any = None) -> ScoreModel:
    r"""Any U-Net or transformer of diffusers, with its scheduler, as a score model in evaluation mode.

    The scheduler's table of alphas becomes an SDE that takes its values at the nodes t_i = (i + 1) / N (`TableSDE`); flow
    matching becomes x_t = (1 - t) x_0 + t eps, with the label N t. Networks with sinusoids of the label are asked at any
    time, those with a table of labels at the nearest. Extra conditions are keywords of every call, as in
    `sample(model, n, encoder_hidden_states=...)`. A model of latents draws latents: see `autoencoder`.

    Main arguments:
        source: a pipeline; a model; a folder of either, of which safetensors alone are read; or (model, scheduler).
        scheduler: the scheduler of the model, where `source` does not hold it.

    Raises:
        InputError: the folder, or a part of it, is missing; or there is no scheduler.
        ValueError: a class that is not supported, or a scheduler that contradicts its model; one line names both.
        CheckpointError: the weights do not fit the configuration.
    """
    model, plan = _parts(source, scheduler)
    process = _process(plan)
    _check_fit(model, plan, process)
    net = DiffusersNet(model, plan, process.sign)
    size = getattr(model.config, "sample_size", None)
    sides = (size, size) if isinstance(size, int) else size
    shape = None if sides is None else (model.config.in_channels, *sides)
    sde, predict = process.sde, process.predict
    return ScoreModel(net, sde, predict, shape=shape, clock=process.clock, sigma_data=process.sigma_data).eval()


def scheduler_grid(scheduler: Any, steps: int) -> Tensor:
    """The times at which a scheduler of diffusers would stop in so many steps, for `sample(..., grid=)`: (steps + 1,), falling.

    Raises:
        ValueError: a scheduler without labels of a table or of flow matching.
    """
    process = _process(scheduler)
    scheduler.set_timesteps(steps)
    if isinstance(process.sde, RectifiedFlow):
        return as_time(scheduler.sigmas)
    if not isinstance(process.sde, TableSDE):
        raise ValueError(f"{type(scheduler).__name__} steps through noise levels; name a grid of your own")
    n = len(process.sde.table)
    times = torch.unique((as_time(scheduler.timesteps) + 1) / n).flip(0)
    end = 0.0 if getattr(scheduler.config, "set_alpha_to_one", True) else 1 / n
    return torch.cat([times[times > end], torch.tensor([end], dtype=torch.float64)])


class Autoencoder(nn.Module):
    """The pair of maps between images in [-1, 1] and the latents that a score model of latents draws.

    Main arguments:
        vae: an AutoencoderKL of diffusers.
    """

    vae: Any

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    def encode(self, images: Tensor, seed: int | None = None) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W): the mean of the posterior, or a draw from it with a seed."""
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        generator = None if seed is None else torch.Generator(images.device).manual_seed(seed)
        z: Tensor = posterior.mean if generator is None else posterior.sample(generator=generator)
        return (z - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents, around [-1, 1]."""
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype) / self.scale + self.shift, return_dict=False)[0]
        return images


def autoencoder(source: Any) -> Autoencoder:
    """The autoencoder of a pipeline of latents, of its folder, or an AutoencoderKL of diffusers.

    Raises:
        InputError: there is none.
        ValueError: it is of another class.
    """
    vae = source
    if isinstance(source, str | Path):
        vae = _load(Path(source) / "vae", "AutoencoderKL")
    elif type(source).__name__ != "AutoencoderKL":
        vae = getattr(source, "vae", None)
    if vae is None:
        raise InputError(f"{type(source).__name__} has no autoencoder; it draws images, not latents")
    if type(vae).__name__ != "AutoencoderKL":
        raise ValueError(f"the autoencoder is of class {type(vae).__name__}; supported is AutoencoderKL")
    return Autoencoder(vae).eval()


def _for_all(value: Any, n: int) -> Any:
    """A condition of one row for n samples, such as the text that stands for none."""
    if isinstance(value, dict):
        return {name: _for_all(part, n) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == 1:
        return value.expand(n, *value.shape[1:])
    return value


def _kind(model: Any) -> _Kind:
    inner = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    name = next((cls.__name__ for cls in type(inner).__mro__ if cls.__name__ in _KINDS), None)
    if name is None:
        raise ValueError(
            f"{type(inner).__name__} is not supported; supported are {', '.join(_KINDS)}, and pipelines and folders of them"
        )
    return _KINDS[name]


def _parts(source: Any, scheduler: Any) -> tuple[Any, Any]:
    """The model and the scheduler that are meant."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(f"a tuple of {len(source)}: give (model, scheduler)")
        source, scheduler = source
    if isinstance(source, str | Path):
        return _read_folder(Path(source), scheduler)
    if isinstance(source, nn.Module):
        _kind(source)
        if scheduler is None:
            raise InputError(f"{type(source).__name__} without a scheduler; give it: from_diffusers(model, scheduler)")
        return source, scheduler
    model = getattr(source, "unet", None) or getattr(source, "transformer", None)
    if model is None:
        raise ValueError(
            f"{type(source).__name__} is no pipeline with a unet or a transformer; give a pipeline, a model or a folder"
        )
    _kind(model)
    return model, scheduler or source.scheduler


def _read_folder(folder: Path, scheduler: Any) -> tuple[Any, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; a model of the Hugging Face hub has to be downloaded first")
    inner = next((folder / part for part in ("unet", "transformer") if (folder / part).is_dir()), folder)
    model = _load(inner, None)
    if scheduler is None:
        plans = [p for p in (folder / "scheduler", folder, inner / "scheduler") if (p / _SCHEDULER).exists()]
        if not plans:
            raise InputError(f"{folder} has no {_SCHEDULER}; give the scheduler: from_diffusers(folder, scheduler)")
        scheduler = _load(plans[0], None, _SCHEDULER)
    return model, scheduler


_SCHEDULER = "scheduler_config.json"


def _load(folder: Path, expected: str | None, file: str = "config.json") -> Any:
    """What a folder of diffusers holds, of the class that its configuration names."""
    name = expected or read_json(folder / file).get("_class_name")
    if file == "config.json" and expected is None and name not in _KINDS:
        raise ValueError(f"{folder} holds {name}, which is not supported; supported are {', '.join(_KINDS)}")
    cls = getattr(_diffusers(), str(name), None)
    if cls is None:
        raise ValueError(f"{folder / file} names the class {name}, which diffusers does not have")
    options = {} if file == _SCHEDULER else {"use_safetensors": True}
    try:
        return cls.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise CheckpointError(f"cannot read {folder} as {name}: {(str(error).splitlines() or [''])[0]}") from error


def _diffusers() -> types.ModuleType:
    try:
        return importlib.import_module("diffusers")
    except ImportError:
        raise InputError(
            "reading models of diffusers needs that package: pip install 'scorefield[diffusers]'"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: it cannot be read.
        CheckpointError: it holds something else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise cannot_read(path, error) from None
    except ValueError as error:
        raise CheckpointError(f"cannot read {path}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {path}: expected a JSON object")
    return content


_PREDICTIONS: dict[str, tuple[Predict, float]] = {
    "epsilon": ("noise", 1.0),
    "sample": ("data", 1.0),
    # v = alpha eps - sigma x_0 (Salimans & Ho 2022, App. D) is -F of Karras et al. 2022 with data of unit variance.
    "v_prediction": ("edm", -1.0),
}


def _process(plan: Any) -> _Process:
    """The process of a scheduler."""
    name, config = type(plan).__name__, getattr(plan, "config", {})
    config = config if isinstance(config, Mapping) else {}
    kind = config.get("prediction_type", "epsilon")
    count = config.get("num_train_timesteps", 1000)
    if name.startswith("FlowMatch") or kind == "flow_prediction":
        if config.get("invert_sigmas"):
            raise ValueError(f"{name} with invert_sigmas runs from noise at 0; only the other direction is supported")
        return _Process(RectifiedFlow(), "velocity", float(count))
    if name == "ScoreSdeVeScheduler":
        return _Process(VE(config["sigma_min"], config["sigma_max"]), "score", "sigma")
    if name.startswith("EDM") and kind in ("epsilon", "v_prediction"):
        sde = VE(config["sigma_min"], config["sigma_max"])
        sign = 1.0 if kind == "epsilon" else -1.0
        return _Process(sde, "edm", "log_sigma", sign, config["sigma_data"])
    table = getattr(plan, "alphas_cumprod", None)
    if table is None:
        raise ValueError(
            f"scheduler {name} is not supported; supported are those with a table of alphas (DDPMScheduler, DDIMScheduler, "
            "DPMSolverMultistepScheduler, ...), FlowMatchEulerDiscreteScheduler, EDMEulerScheduler, ScoreSdeVeScheduler"
        )
    if kind not in _PREDICTIONS:
        raise ValueError(f"prediction_type={kind!r} of {name} is unknown; choose one of {', '.join(_PREDICTIONS)}")
    predict, sign = _PREDICTIONS[kind]
    return _Process(TableSDE(tuple(as_time(table).tolist())), predict, TableLabels(count), sign, 1.0)


def _check_fit(model: Any, plan: Any, process: _Process) -> None:
    """Refuse a scheduler that cannot be that of the model."""
    config, name = model.config, type(model).__name__
    both = f"{type(plan).__name__} contradicts {name}"
    inputs, outputs = config.in_channels, getattr(config, "out_channels", None) or config.in_channels
    if outputs not in (inputs, 2 * inputs):
        raise ValueError(
            f"{name} takes {inputs} channels and returns {outputs}; expected the same number, or twice of it"
        )
    learned = str(plan.config.get("variance_type", "")).startswith("learned")
    if learned and outputs != 2 * inputs:
        raise ValueError(
            f"{both}: variance_type is {plan.config['variance_type']}, and {outputs} channels hold no variance"
        )
    flow = isinstance(process.sde, RectifiedFlow)
    if _kind(model).flow not in (None, flow):
        raise ValueError(f"{both}, which {'is' if not flow else 'is not'} made for flow matching")
    embedding = getattr(config, "time_embedding_type", "positional")
    if (embedding == "fourier") != (process.clock == "sigma"):
        reads = "noise levels" if embedding == "fourier" else "labels"
        raise ValueError(f"{both}: time_embedding_type={embedding!r} reads {reads}")
    rows = getattr(config, "num_train_timesteps", None)
    if embedding == "learned" and isinstance(process.clock, TableLabels) and rows != process.clock.count:
        raise ValueError(f"{both}: {process.clock.count} labels, and {rows} in the network's table")
