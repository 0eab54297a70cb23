"""Weights, averages and optimiser state spread over processes (FSDP), each holding a part and gathering it to save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.errors import InputError
from scorefield.training.config import TrainConfig


def check_shardable(config: TrainConfig) -> None:
    """Refuse what works on whole matrices or needs a scaler of its own.

    Raises:
        InputError: the configuration cannot be sharded.
    """
    if config.optim.name == "muon":
        raise InputError("shard=True is not for optim.name=muon, which works on whole matrices; use adam or adamw")
    if config.precision == "fp16":
        raise InputError("shard=True is not for precision=fp16; use bf16 or fp32")


def spread(module: nn.Module, device: torch.device) -> None:
    """Cut the parameters of a module over all processes, in place; those of the first process count.

    The module gathers them for its forward and backward pass, and adds up gradients so that each process has its part.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with torch.no_grad():
        for value in module.state_dict().values():
            torch.distributed.broadcast(value, 0)
    fully_shard(module, mesh=init_device_mesh(device.type, (torch.distributed.get_world_size(),)))


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor: a view."""
    return value.to_local() if _spread(value) else value  # type: ignore[attr-defined]


def whole(value: Tensor) -> Tensor:
    """The whole tensor on every process; all must ask for it."""
    return value.full_tensor() if _spread(value) else value  # type: ignore[attr-defined]


def cut(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as another one is."""
    if not _spread(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    place: Any = like
    return distribute_tensor(value.to(local(like).device), place.device_mesh, place.placements)


def gathered(locals_: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors from what every process holds, cut as the tensors of the same names."""
    return {name: _joined(value, like[name]) for name, value in locals_.items()}


def _joined(value: Tensor, like: Tensor) -> Tensor:
    if not _spread(like):
        return value
    from torch.distributed.tensor import DTensor

    place: Any = like
    spread = DTensor.from_local(
        value, place.device_mesh, place.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return whole(spread)


def _spread(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")
