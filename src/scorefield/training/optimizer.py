"""The machinery around a training loop: optimiser, accelerator, the run's folder, random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scorefield.errors import InputError
from scorefield.training.config import TrainConfig
from scorefield.training.interrupt import only_process
from scorefield.training.muon import Muon


def make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW, fused where there is a fused one; or Muon."""
    optim = config.optim
    betas = (optim.beta1, optim.beta2)
    if optim.name == "muon":
        return Muon(parameters, lr=optim.lr, betas=betas, eps=optim.eps)
    cls = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
    return cls(
        parameters,
        lr=optim.lr,
        betas=betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=fused or None,
    )


def make_accelerator(config: TrainConfig, device: str | None) -> Any:
    """An accelerate.Accelerator for a device and precision.

    What a configuration of accelerate says about precision and accumulation does not count: a run does what run.json says.

    Raises:
        InputError: the device does not exist here, or accelerate is configured for a way of sharding of its own.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    if not torch.distributed.is_initialized():
        # accelerate keeps the precision and device of the first run of a process for all later ones.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        kind = torch.device(device).type if device else None
    except (RuntimeError, TypeError):
        raise InputError(f"device={device!r} is unknown; choose cpu, cuda, cuda:1 or mps, or leave it out") from None
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"device={device} is not available here; use cpu")
        if torch.device(device or "").index is not None:
            torch.cuda.set_device(torch.device(device or ""))
    precision = "no" if config.precision == "fp32" else config.precision
    # Processes without a GPU find each other only if accelerate is told that it is the CPU they work on.
    cpu = kind == "cpu" or (kind is None and not torch.cuda.is_available() and not torch.backends.mps.is_available())
    whole = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, gradient_accumulation_plugin=whole)
    check_plain(accelerator)
    if kind and accelerator.device.type != kind:
        raise InputError(f"device={device} is not available here; this machine offers {accelerator.device.type}")
    return accelerator


def check_plain(accelerator: Any) -> None:
    """Refuse accelerate's own FSDP, DeepSpeed and the like, whose weights the averages and checkpoints would not see whole.

    Raises:
        InputError: accelerate is configured for one of them.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise InputError(f"accelerate is configured for {kind}; leave that out and give shard=True (--shard) instead")


@contextmanager
def held(folder: Path, accelerator: Any) -> Iterator[None]:
    """Hold the run's folder on the main process."""
    if accelerator.is_main_process:
        with only_process(folder):
            yield
    else:
        yield


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's global generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
