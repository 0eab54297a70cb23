"""Work shared by the processes that torchrun or `accelerate launch` started: who does which rows, and how they meet again."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from scorefield.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """One of `count` processes, the one of number `rank`; a process that was started alone is 0 of 1."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """The rows of n that this process works on, in one piece; pieces differ by at most one row."""
        return range(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes in the order of their ranks, on the main process; nothing on the others.

        Items travel by pickle between processes of one job; tensors should be on the CPU.
        """
        if self.count == 1:
            return list(items)
        import torch.distributed as dist

        parts: list[Any] | None = [None] * self.count if self.main else None
        dist.gather_object(list(items), parts)
        return [item for part in parts or [] for item in part]

    def broadcast(self, value: Item) -> Item:
        """The main process's value, on every process."""
        if self.count == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, 0)
        return box[0]


def launched() -> Processes:
    """Rank and number of processes as the launcher states them, without joining the others."""
    count = _number("WORLD_SIZE", 1)
    return Processes(_number("RANK", 0), count) if count > 1 else Processes()


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise InputError(f"the environment variable {variable}={text!r} is no number; unset it, or start with torchrun")
    return int(text) if text else default


def join(device: str | None = None) -> Processes:
    """This process among those that were launched together, able to `gather`.

    Every process of the job must call it. Without a launcher it returns at once.

    Main arguments:
        device: "cpu" or "cuda"; what there is by default.
    """
    if launched().count == 1:
        return Processes()
    import torch
    import torch.distributed as dist
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    if not dist.is_initialized():
        # accelerate remembers for good what it found first, such as one process where there are several by now.
        AcceleratorState._reset_state(reset_partial_state=True)
        atexit.register(_leave)
    state = PartialState(cpu=cpu)
    return Processes(state.process_index, state.num_processes)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
