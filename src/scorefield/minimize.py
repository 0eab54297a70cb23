"""Least-squares fits of small networks in memory: what a room uses that learns a drift, a flow map or a value function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from scorefield.differentiate import differentiation
from scorefield.progress import Bar


def minimize(
    loss: Callable[[int], Tensor],
    parameters: Iterable[Tensor],
    steps: int,
    *,
    lr: float = 1e-3,
    average: float = 0.0,
    clip: float = 1.0,
    progress: bool | None = None,
    name: str = "training",
) -> list[float]:
    """Adam with a cosine schedule on a loss of any kind; for runs with data sets, checkpoints and resuming use `train`.

    Main arguments:
        loss: loss(step) -> a number to be differentiated, on a batch of its own choosing.
        parameters: tensors to be moved, in place. steps: number of steps.

    Other arguments:
        average: decay of a running average of the parameters, which they take at the end; 0 for the last ones.
        clip: largest norm of the gradient, 0 for any.

    Returns:
        The losses of all steps.

    Raises:
        ValueError: fewer than one step, no parameters or some that cannot learn, or a loss that is not finite.
    """
    moved = _that_learn(parameters, steps)
    optimizer = torch.optim.Adam(moved, lr=lr, betas=(0.9, 0.99))
    mean = [p.detach().clone() for p in moved]
    losses = []
    with differentiation(), Bar(name, progress) as bar:
        for step in range(steps):
            value = loss(step)
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {step}: lower lr={lr}, or look at the data")
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            if clip:
                torch.nn.utils.clip_grad_norm_(moved, clip)
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.step()
            decay = min(average, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, [p.detach() for p in moved], 1 - decay)
            bar((step + 1) / steps)
    if average:
        with torch.no_grad():
            for p, m in zip(moved, mean, strict=True):
                p.copy_(m)
    return losses


def _that_learn(parameters: Iterable[Tensor], steps: int) -> list[Tensor]:
    moved = [p for p in parameters if p.requires_grad]
    if steps < 1 or not moved:
        raise ValueError(f"steps={steps} of {len(moved)} parameters: give at least one of each")
    if any(p.is_inference() for p in moved):
        raise ValueError(
            "the network was made under torch.inference_mode(), where weights cannot learn: make it outside"
        )
    return moved
