"""The model in training with its optimiser and its averages: updated by batches, gathered for checkpoints, restored."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.errors import InputError
from scorefield.model import ScoreModel
from scorefield.nn.precision import copied
from scorefield.training.averages import EMA, power_function
from scorefield.training.batches import Batch
from scorefield.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from scorefield.training.config import TrainConfig
from scorefield.training.describe import bare
from scorefield.training.loss import Loss, Objective
from scorefield.training.optimizer import make_optimizer
from scorefield.training.run import load_weights
from scorefield.training.sharding import check_shardable, cut, gathered, local, spread, whole

LOSS = "loss"
"""The group of a checkpoint that holds what a loss remembers, where it does."""
POWER = "power-"
"""Begins the names of the groups of a checkpoint that hold power-function averages."""


class Weights:
    """Everything of a run that learns.

    With `config.shard` and several processes each holds a part, and `groups`, `snapshot`, `averaged` and `finish` must be
    called by all of them.

    Raises:
        InputError: the model has nothing to train, or cannot be sharded.
    """

    def __init__(self, model: ScoreModel, config: TrainConfig, loss: Loss | None, accelerator: Any) -> None:
        self.config, self.accelerator = config, accelerator
        self.sharded: bool = config.shard and accelerator.num_processes > 1
        self._take_loss(loss)
        self._given = model
        if self.sharded:
            check_shardable(config)
            model = copied(model)
        model.to(accelerator.device)
        if config.channels_last and len(model.shape or ()) == 3:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile and isinstance(model.net, nn.Module):
            model.net.compile()
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError("the model has no parameters to train; give it a network")
        objective = Objective(model, config, loss)
        if self.sharded:
            spread(objective, accelerator.device)
        self.live, self.model = model, bare(model)  # what computes, and what is saved
        self.parameters = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(list(self.parameters), config)
        self._stepper = accelerator.prepare(self.optimizer)
        # What accelerate prepares adds up gradients over processes, which FSDP does by itself.
        self._objective = objective if self.sharded else accelerator.prepare(objective)
        self.ema = EMA(self.model, config.ema)
        self.power = {width: EMA(self.model, power_function(width)) for width in config.power_ema}

    def _take_loss(self, loss: Loss | None) -> None:
        """Note whether a loss wants to know the step, and whether it has weights."""
        self._staged: Any = loss if hasattr(loss, "before") else None
        self._memory = loss if isinstance(loss, nn.Module) and loss.state_dict() else None
        if self._staged is not None and self.config.minutes is not None:
            raise InputError("minutes and a loss that changes with the steps do not go together; give steps=")
        if self._memory is not None and self.sharded:
            raise InputError("a loss with weights of its own cannot be spread over processes; leave out shard=True")

    def tell(self, step: int, steps: int) -> None:
        """Tell a loss that wants to know how many steps are done, and of how many."""
        if self._staged is not None:
            self._staged.before(step, steps, self.model)

    def backward(self, batch: Batch, lr: float) -> tuple[Tensor, float]:
        """Gradients of the mean loss of a batch, clipped; the losses (b,) and the norm before clipping."""
        accelerator, count = self.accelerator, self.config.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._stepper.zero_grad()
        losses: list[Tensor] = []
        for part in batch.parts(count):
            # Processes need to add up their gradients only once a step, with the last part.
            last = len(losses) + 1 == count or self.sharded
            with nullcontext() if last else accelerator.no_sync(self._objective):
                with accelerator.autocast():
                    losses.append(self._objective(part))
                accelerator.backward(losses[-1].mean() / count)
        norm = accelerator.clip_grad_norm_(list(self.parameters), self.config.optim.clip or math.inf)
        return torch.cat([loss.detach() for loss in losses]), float(whole(norm))

    def update(self) -> None:
        """Take the step of the gradients, and move the averages."""
        self._stepper.step()
        self.ema.update()
        for average in self.power.values():
            average.update()

    def averaged(self) -> ScoreModel:
        """A copy of the model with the averaged weights, in eval mode."""
        model = copied(bare(self._given)).to(self.accelerator.device)
        model.load_state_dict(self._join(self.ema))
        return model.eval()

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of a checkpoint."""
        return {
            "model": {name: whole(value) for name, value in self.model.state_dict().items()},
            "ema": self._join(self.ema),
            "optimizer": optimizer_tensors(self.optimizer, self.parameters),
            **{f"{POWER}{width}": tensors for width, tensors in self.snapshot().items()},
            **({} if self._memory is None else {LOSS: self._memory.state_dict()}),
        }

    def snapshot(self) -> dict[float, dict[str, Tensor]]:
        """The power-function averages by their widths."""
        return {width: self._join(average) for width, average in self.power.items()}

    def names(self) -> tuple[str, ...]:
        """The names of `groups`."""
        own = () if self._memory is None else (LOSS,)
        return ("model", "ema", "optimizer", *(f"{POWER}{width}" for width in self.power), *own)

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from the tensors of a checkpoint.

        Raises:
            CheckpointError: they belong to another network.
        """
        tensors, updates = checkpoint.tensors, checkpoint.state["ema_updates"]
        load_weights(self._given, tensors["model"], str(checkpoint.path))
        if self.sharded:
            for name, value in self.model.state_dict().items():
                value.copy_(cut(tensors["model"][name], value))
        if self._memory is not None:
            self._memory.load_state_dict(tensors[LOSS])
        self.optimizer.state.clear()
        load_optimizer(self.optimizer, self.parameters, tensors["optimizer"])
        averages = {"ema": self.ema} | {f"{POWER}{width}": average for width, average in self.power.items()}
        live = self.model.state_dict()
        for group, average in averages.items():
            average.load({name: local(cut(tensors[group][name], live[name])) for name in average.tensors}, updates)

    def finish(self) -> None:
        """Give the trained weights to the model that was to be trained, where it is not that itself."""
        if self.sharded:
            bare(self._given).load_state_dict({name: whole(value) for name, value in self.model.state_dict().items()})

    def _join(self, average: EMA) -> dict[str, Tensor]:
        return gathered(average.tensors, self.model.state_dict()) if self.sharded else average.tensors
