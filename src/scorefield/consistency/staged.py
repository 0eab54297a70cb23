"""A loss of this folder as `sf.train` calls it: told the step, and with a target that follows the weights."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.flowmap import FlowMap


class Staged(nn.Module):
    """`sf.train(fm, data, out=..., loss=Staged(consistency_loss, fm, pairs=Curriculum()))`: what depends on the step, does.

    The trainer calls `before` ahead of every step. A curriculum that was published for `pairs.total` steps is stretched over
    the steps of the run; `Easy` counts real ones. The target is a part of the run's checkpoints, so that a run that was stopped
    goes on as if it had not been.

    Main arguments:
        loss: `consistency_loss`, `scm_loss`, `meanflow_loss` or `shortcut_loss`, or one with the same arguments.
        fm: the map that is to be trained, which the target starts from.
        follow: decay of the running average of weights that is the loss's `target`; by default what the curriculum says
            (`Progressive`), else none: the target is the map itself, without a gradient.
        warmup: steps over which `warmup` of `scm_loss` rises to 1.
        options: of the loss, such as teacher, pairs, distance.

    Raises:
        ValueError: follow or warmup for a loss that takes none, or outside of its range.
    """

    def __init__(
        self, loss: Callable[..., Tensor], fm: FlowMap, *, follow: float | None = None, warmup: int = 0, **options: Any
    ) -> None:
        super().__init__()
        known, name = inspect.signature(loss).parameters, getattr(loss, "__name__", "the loss")
        if follow is not None and ("target" not in known or not 0 <= follow < 1):
            raise ValueError(
                f"follow={follow}: give {name} a target (a loss that takes one), and a decay from 0 up to 1"
            )
        if warmup and ("warmup" not in known or warmup < 0):
            raise ValueError(f"warmup={warmup}: {name} takes no such; it is a number of steps for scm_loss")
        self._loss, self._options, self._warmup, self._follow = loss, options, warmup, follow
        self._knows_steps = "step" in known
        self._at = self._place = 0
        follows = follow or (follow is None and hasattr(options.get("pairs"), "target_decay"))
        self.target: FlowMap | None = copy.deepcopy(fm).requires_grad_(False) if follows else None

    def place(self, step: int, steps: int) -> int:
        """Where the curriculum is at a step of a run, in units of its own length."""
        total = getattr(self._options.get("pairs"), "total", None)
        return step if total is None else step * int(total) // steps

    @torch.no_grad()
    def before(self, step: int, steps: int, model: FlowMap) -> None:
        """Ahead of a step of `sf.train`: `step` of `steps` are done, and the weights are those of `model`."""
        self._at, self._place = step, self.place(step, steps)
        if not step or self.target is None:
            return
        pairs, decay = self._options.get("pairs"), self._follow
        if decay is None and pairs is not None:
            decay = pairs.target_decay(self.place(step - 1, steps))
        for kept, now in zip(self.target.state_dict().values(), model.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(now, 1 - float(decay or 0.0))
            else:
                kept.copy_(now)

    def forward(self, model: FlowMap, x0: Tensor, *, noise: Tensor | None = None, t: Any = None, **cond: Any) -> Tensor:
        """The loss (B,) on data (B, *) and noise like it; levels and masks are drawn from the global generator, which the
        loop seeds at every step. The loop's times `t` are not those of pairs."""
        options = dict(self._options)
        if self._knows_steps:
            options["step"] = self._place
        if self._warmup:
            options["warmup"] = min(1.0, self._at / self._warmup)
        if self.target is not None:
            options["target"] = self.target.train(model.training)
        if isinstance(teacher := options.get("teacher"), nn.Module):
            teacher.to(x0.device)
        seed = int(torch.randint(2**62, (), device="cpu"))
        return self._loss(model, x0, noise=noise, seed=seed, **options, **cond)
