"""Whether the dtype of a model has digits enough for its noise levels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.diagnose.calibration import noise_levels
from scorefield.inputs import as_tensor, whole
from scorefield.model import ScoreModel


@dataclass(frozen=True)
class Rounding:
    """What the dtype of a model costs at one noise level.

    Attributes:
        t: time. log_snr: of it.
        error: root mean square over items and entries of E[eps | x_t] as it is computed, against the same weights in float64;
            in units of the noise, so that 1 is no prediction at all. Not finite where the dtype overflows.
    """

    t: float
    log_snr: float
    error: float


@torch.no_grad()
def rounding(model: ScoreModel, data: Tensor, *, levels: int = 8, seed: int = 0) -> list[Rounding]:
    """A model in its own dtype beside itself in float64, at levels that are even in log-SNR.

    An error e adds e^2 / 2 nats for each entry and unit of log-SNR to what the score costs (Girsanov's theorem).

    Main arguments:
        data: (N, *), in the model's range. levels: how many. seed: of the noise.
    """
    items, draws = as_tensor(data, "data").double().cpu(), torch.Generator().manual_seed(seed)
    fine, found = copy.deepcopy(model).cpu().double(), []
    for t in noise_levels(model, whole(levels, "levels", "the number of noise levels")):
        x = model.sde.perturb(
            items, t, torch.randn(items.shape, generator=draws, dtype=torch.float64, device=draws.device)
        )
        state = x.to(torch.promote_types(model.dtype, torch.float32)).to(model.device)  # as `sample` keeps it
        own = model.noise(state, t).cpu().double()
        error = float(torch.square(own - fine.noise(x, t)).mean().sqrt())
        found.append(Rounding(float(t), float(model.sde.log_snr(t)), error))
    return found
