"""Averages of any length, made after training from snapshots of two or more power-function averages."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.errors import CheckpointError, ScorefieldWarning
from scorefield.model import ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.training.averages import power_of_width
from scorefield.training.checkpoint import list_checkpoints, read_checkpoint, read_state, save_checkpoint
from scorefield.training.describe import build_model
from scorefield.training.run import load_weights, read_run

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
                total[name] = total.get(name, 0.0) + float(share) * value.double()
            else:
                total[name] = value
    return total
