"""Randomness of training as a function of (seed, step): a run carries no random state that could be lost."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


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
        return torch.randperm(size, generator=draws)
    ends = torch.tensor(groups).cumsum(0)
    runs = [torch.arange(int(ends[g]) - groups[g], int(ends[g])) for g in torch.randperm(len(groups), generator=draws)]
    windows = [torch.cat(runs[k : k + WINDOW]) for k in range(0, len(runs), WINDOW)]
    return torch.cat([items[torch.randperm(len(items), generator=draws)] for items in windows])


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
