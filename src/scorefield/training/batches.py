"""What a training step sees, as a function of (seed, step): items, times, noise, flips."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scorefield.data.dataset import Dataset, flip_where, to_range
from scorefield.data.libraries import kept_randomness, seed_all
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.sde import GaussianSDE
from scorefield.times import low_discrepancy
from scorefield.training.config import TrainConfig

Raw = tuple[Tensor, "Tensor | None"]


@dataclass(frozen=True)
class Batch:
    """Input of the loss on one process: data (b, *), noise like data, labels, and what is to be restored, like data; times
    (b,) and weights on the CPU."""

    x0: Tensor
    t: Tensor
    weight: Tensor
    noise: Tensor
    label: Tensor | None
    y: Tensor | None = None

    def parts(self, count: int) -> list[Batch]:
        """The batch cut into `count` equal pieces."""
        if count == 1:
            return [self]
        given = ([None] * count if v is None else v.chunk(count) for v in (self.label, self.y))
        rest = (v.chunk(count) for v in (self.x0, self.t, self.weight, self.noise))
        return [Batch(*values) for values in zip(*rest, *given, strict=True)]


@dataclass(frozen=True)
class Feed:
    """Batches of a run for one of `world` processes.

    Draws are made for the whole batch and then cut, so that two processes see what one would with the same batch.
    """

    data: Dataset
    config: TrainConfig
    sde: GaussianSDE
    labels: bool = False
    rank: int = 0
    world: int = 1

    def raw(self, start: int, stop: int) -> Generator[Raw, None, None]:
        """Raw items and labels of this process for steps start .. stop - 1, slow data read ahead by threads."""
        share = self._share()

        def pick(step: int) -> list[int]:
            order = batch_indices(self.config.seed, step, self.config.batch_size, self.data.size, self.data.groups)
            return order[share]

        def read(step: int) -> Raw:
            indices = pick(step)
            labels = (
                self.data.labels[torch.tensor(indices, device="cpu")]
                if self.labels and self.data.labels is not None
                else None
            )
            items = self._augmented(step, indices) if self.data.random else self.data.read(indices)
            if items.is_floating_point() and not bool(torch.isfinite(items).all()):
                bad = next(i for i, x in zip(indices, items, strict=True) if not bool(torch.isfinite(x).all()))
                raise InputError(
                    f"item {self.data.item_name(bad)} of {self.data.name} holds a value that is not finite; "
                    "remove or repair it"
                )
            return items, labels

        # Augmentation draws from the global generators, which only one thread can start from a seed at a time.
        ahead = self.data.slow and not self.data.random
        return _read_ahead(read, range(start, stop), self.config.workers if ahead else 0)

    def _augmented(self, step: int, indices: list[int]) -> Tensor:
        """Items whose random numbers are a function of (seed, step, place in the batch), on any number of processes."""
        first = step * self.config.batch_size + self._share().start
        items = []
        with kept_randomness():
            for place, index in enumerate(indices, first):
                seed_all(derived_seed(self.config.seed, "item", place))
                items.append(self.data.read([index]))
        return torch.cat(items)

    def batch(self, step: int, raw: Raw, device: torch.device) -> Batch:
        """The input of the loss at a step."""
        config, share = self.config, self._share()
        items, label = raw
        draws = step_generator(config.seed, "noise", step)
        size = (config.batch_size, *self.data.shape)
        u = (
            low_discrepancy(size[0], draws)
            if config.stratify
            else torch.rand(size[0], generator=draws, device=draws.device).double()
        )
        t, weight = config.times(u, self.sde)
        noise = torch.randn(size, generator=draws, device=draws.device)[share]
        uniform = torch.rand(size, generator=draws, device=draws.device)[share] if config.dequantize else None
        flips = torch.rand(size[0], generator=draws, device=draws.device)[share] < 0.5 if config.flip else None
        if label is not None:
            dropped = torch.rand(size[0], generator=draws, device=draws.device)[share] < config.label_dropout
            label = torch.where(dropped, -1, label).to(device)
        raw_items = items if self.data.scale is not None else items.to(device)  # tables are scaled in float64
        x0 = to_range(raw_items, self.data, self.sde.range, None if uniform is None else uniform.to(device)).to(device)
        if flips is not None:
            x0 = flip_where(flips.to(device), x0)
        x0, y = x0.chunk(2, 1) if self.data.paired else (x0, None)
        noise = noise.to(device)
        if config.channels_last and x0.ndim == 4:
            x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
        return Batch(x0, t[share], weight[share], noise, label, y)

    def _share(self) -> slice:
        size = self.config.batch_size // self.world
        return slice(self.rank * size, (self.rank + 1) * size)


def _read_ahead(read: Callable[[int], Raw], steps: range, workers: int) -> Generator[Raw, None, None]:
    done = steps.start
    if workers:
        waiting: deque[Future[Raw]] = deque()
        pool = ThreadPoolExecutor(workers, "scorefield-data")
        try:
            for step in steps:
                waiting.append(pool.submit(read, step))
                if len(waiting) > 2 * workers:
                    batch = waiting.popleft().result()
                    done += 1
                    yield batch
            while waiting:
                batch = waiting.popleft().result()
                done += 1
                yield batch
            return
        except (InputError, GeneratorExit):
            raise
        except Exception as error:  # what belongs to one thread, such as a connection to a database
            first = read(done)  # raises again unless it was that
            told = f"data cannot be read by another thread ({error}); reading it between the steps"
            warnings.warn(told, ScorefieldWarning, stacklevel=2)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        yield first
        done += 1
    yield from (read(step) for step in range(done, steps.stop))


def derived_seed(seed: int, purpose: str, index: int) -> int:
    """A seed for one purpose at one step, unrelated to that of every other purpose and step."""
    words = [seed & 0xFFFFFFFF, seed >> 32, index & 0xFFFFFFFF, index >> 32, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def step_generator(seed: int, purpose: str, step: int) -> torch.Generator:
    """A CPU generator for one purpose at one step."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, step))


WINDOW = 8
"""Shards that are read from at a time."""


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int, groups: tuple[int, ...]) -> Tensor:
    draws = step_generator(seed, "order", epoch)
    if len(groups) <= WINDOW:
        return torch.randperm(size, generator=draws, device=draws.device)
    ends = torch.tensor(groups, device="cpu").cumsum(0)
    runs = [
        torch.arange(int(ends[g]) - groups[g], int(ends[g]), device="cpu")
        for g in torch.randperm(len(groups), generator=draws, device=draws.device)
    ]
    windows = [torch.cat(runs[k : k + WINDOW]) for k in range(0, len(runs), WINDOW)]
    return torch.cat([items[torch.randperm(len(items), generator=draws, device=draws.device)] for items in windows])


def batch_indices(seed: int, step: int, batch_size: int, size: int, groups: tuple[int, ...] = ()) -> list[int]:
    """Which of `size` items make up the batch of a step.

    The items are visited in one random order after another without regard to where batches begin, so that every item is
    seen once an epoch whatever the sizes. Where items lie together in `groups` of these sizes, in their order, the
    groups are visited in random order, a few at a time, whose items are mixed.
    """
    first = step * batch_size
    picked: list[int] = []
    while len(picked) < batch_size:
        epoch, start = divmod(first + len(picked), size)
        order = _permutation(seed, epoch, size, groups)
        picked += order[start : start + batch_size - len(picked)].tolist()
    return picked
