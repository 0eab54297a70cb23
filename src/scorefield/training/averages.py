"""Averages of the weights: moving ones, exponential or power functions of the step; and any other made of their snapshots."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.dtypes import wide
from scorefield.errors import CheckpointError, ScorefieldWarning
from scorefield.model import ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.training.checkpoint import list_checkpoints, read_checkpoint, read_state, save_checkpoint
from scorefield.training.describe import build_model
from scorefield.training.run import load_weights, read_run
from scorefield.training.sharding import local

Decay = Callable[[int], float]
"""The decay d of the n-th update, n = 1, 2, ...: the average moves by 1 - d of its distance from the weights."""


def warmed_up(rate: float) -> Decay:
    """d = min(rate, (1 + n) / (10 + n)), as in the paper's code: early on, when the weights move fast, it forgets fast.

    Main arguments:
        rate: the largest decay, from 0 up to 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate} is impossible; expected a number from 0 up to 1, such as 0.999")
    return lambda n: min(rate, (1 + n) / (10 + n))


def power_function(sigma_rel: float) -> Decay:
    """d = (1 - 1 / n)^(gamma + 1), which gives step k of n the weight (k^(gamma+1) - (k-1)^(gamma+1)) / n^(gamma+1).

    The average has the profile (k / n)^gamma, of one shape however long the training is (Karras et al. 2024, sec. 3.1).

    Main arguments:
        sigma_rel: standard deviation of the profile relative to the length of training, such as 0.05.
    """
    exponent = power_of_width(sigma_rel) + 1
    return lambda n: (1 - 1 / n) ** exponent


def power_of_width(sigma_rel: float) -> float:
    """The gamma whose profile t^gamma on [0, 1] has this standard deviation (Karras et al. 2024, sec. 3.1).

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel={sigma_rel} is impossible; expected a number between 0 and 0.288, such as 0.05")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real[np.abs(roots.imag) < 1e-9 * np.abs(roots)].max())


class EMA:
    """Running average of a module's floating-point parameters and buffers; the rest is copied.

    Of a module that is spread over processes each averages its own part.

    Main arguments:
        module: whose weights to follow; the average starts at them.
        decay: of each update; a number is the rate of `warmed_up`.
    """

    def __init__(self, module: nn.Module, decay: float | Decay = 0.999) -> None:
        self.decay: Decay = decay if callable(decay) else warmed_up(decay)
        self.updates = 0
        self._live = dict(_state(module))
        # preserve_format keeps channels_last, without which the fused averages below fall back to a slow path
        self.tensors = {
            name: value.detach().clone(memory_format=torch.preserve_format) for name, value in self._live.items()
        }
        self._floats = [name for name, value in self.tensors.items() if value.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights of the module."""
        self.updates += 1
        move = 1 - self.decay(self.updates)
        average = [self.tensors[name] for name in self._floats]
        torch._foreach_lerp_(average, [self._live[name] for name in self._floats], move)
        for name, value in self._live.items():
            if not value.is_floating_point():
                self.tensors[name].copy_(value)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Continue from stored averages."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.updates = updates


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict(keep_vars=True)
    for name, value in kept.items():
        if isinstance(value, Tensor):
            yield name, local(value.detach())


FOLDER = "snapshots"
POOR_FIT = 0.1
"""Relative error of the profile from which on its user is told."""


def save_snapshot(run: Path, step: int, averages: Mapping[float, Mapping[str, Tensor]]) -> Path:
    """Write `run`/snapshots/step-NNNNNN with the power-function averages, by their widths.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    tensors = {str(width): average for width, average in averages.items()}
    return save_checkpoint(run / FOLDER, step, tensors, {"widths": list(averages)}, keep=None)


def post_hoc_ema(
    run: str | Path,
    sigma_rel: float,
    *,
    step: int | None = None,
    net: nn.Module | None = None,
    sde: GaussianSDE | None = None,
    clock: Any = None,
    device: str | torch.device = "cpu",
) -> ScoreModel:
    """The model of a run with the power-function average of a width that was not followed in training.

    The average is the combination of snapshots whose profile over the steps of training is nearest in the mean square to
    the wanted one (Karras et al. 2024, App. C). Twenty snapshots of two widths, such as power_ema=(0.05, 0.1), give
    widths between 0.04 and 0.2 to a few parts in a thousand.

    Main arguments:
        run: the folder of a run that was trained with `power_ema`.
        sigma_rel: standard deviation of the profile, relative to the steps of training: 0.05 averages over about the
            last tenth.
        step: where the average ends; the last snapshot by default.

    Other arguments:
        net, sde, clock, device: as for `scorefield.load`.

    Raises:
        ValueError: `sigma_rel` out of range.
        CheckpointError: the run has no snapshots up to that step, or one of them is damaged.
    """
    gamma, place = power_of_width(sigma_rel), Path(run) / FOLDER
    info = read_run(run)
    paths = [p for p in list_checkpoints(place) if step is None or int(p.name[5:]) <= step]
    if not paths:
        up_to = "" if step is None else f" up to step {step}"
        raise CheckpointError(f"{run} has no snapshots{up_to}; train it with power_ema=(0.05, 0.1)")
    end = int(paths[-1].name[5:]) if step is None else step
    held = [(path, int(path.name[5:]), float(width)) for path in paths for width in read_state(path)["widths"]]
    shares, error = combination([(at, power_of_width(width)) for _, at, width in held], (end, gamma))
    if error > POOR_FIT:
        warnings.warn(
            f"{run}: {len(held)} snapshots give an average of width {sigma_rel} only to {error:.0%}; "
            "take more snapshots, or a width between those followed",
            ScorefieldWarning,
            stacklevel=2,
        )
    model = build_model(info.model, net=net, sde=sde, clock=clock, where=str(run))
    load_weights(model, _combined(held, shares), str(place))
    return model.to(device).eval()


def combination(snapshots: list[tuple[int, float]], target: tuple[int, float]) -> tuple[np.ndarray, float]:
    """Shares, adding up to 1, in which averages of profile (step, gamma) are nearest to a target one; the relative error.

    A profile is (gamma + 1) k^gamma / step^(gamma + 1) on 0 < k < step.
    """
    steps, gammas = (np.array(values, dtype=np.float64) for values in zip(*snapshots, strict=True))
    step, gamma = target
    n = len(snapshots)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = _product(steps[:, None], gammas[:, None], steps, gammas)
    system[:n, n] = system[n, :n] = scale = system[:n, :n].max()
    wanted = _product(steps, gammas, step, gamma)
    shares = np.linalg.lstsq(system, np.append(wanted, scale), rcond=1e-13)[0][:n]
    own = float(_product(step, gamma, step, gamma))
    left = own - 2 * shares @ wanted + shares @ system[:n, :n] @ shares
    return shares, math.sqrt(max(left, 0.0) / own)


def _product(step_a: Any, gamma_a: Any, step_b: Any, gamma_b: Any) -> Any:
    """Integral of the product of two profiles."""
    longer = np.where(step_a > step_b, gamma_a, gamma_b)
    short, long = np.minimum(step_a, step_b), np.maximum(step_a, step_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * (short / long) ** longer / long


def _combined(held: list[tuple[Path, int, float]], shares: np.ndarray) -> dict[str, Tensor]:
    # In float64: the shares have both signs.
    total: dict[str, Tensor] = {}
    for (path, _, width), share in zip(held, shares, strict=True):
        for name, value in read_checkpoint(path, (str(width),)).tensors[str(width)].items():
            if value.is_floating_point():
                total[name] = total.get(name, 0.0) + float(share) * wide(value)
            else:
                total[name] = value
    return total
