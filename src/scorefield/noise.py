"""Randomness as an argument: one seed, one seed per sample, a generator, or a callable that hands out recorded draws."""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Seed: TypeAlias = "int | Sequence[int] | Tensor | torch.Generator | None"
NoiseFn: TypeAlias = "Callable[..., Tensor]"


@dataclass(frozen=True)
class Noise:
    """Source of standard-normal draws for a batch of `size` samples.

    With integer seeds every sample owns a counter-based stream (Philox, key = (seed, index)), drawn on the CPU, so a
    sample depends neither on its batch-mates, nor on the batch size, nor on the device.
    """

    size: int
    streams: tuple[np.random.Generator, ...] | None = None
    generator: torch.Generator | None = None
    function: NoiseFn | None = None

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard-normal tensor of `shape` = (size, *), the next of each sample's stream."""
        if shape[0] != self.size:
            raise ValueError(f"noise for {self.size} samples was asked for a batch of {shape[0]}")
        if self.function is not None:
            z = torch.as_tensor(_call_with_shape(self.function, torch.Size(shape)))
            if tuple(z.shape) != tuple(shape):
                raise ValueError(f"noise= returned shape {tuple(z.shape)}; expected {tuple(shape)}")
            return z.to(device=device, dtype=dtype)
        if self.generator is not None:
            source = self.generator
            return torch.randn(tuple(shape), generator=source, device=source.device, dtype=dtype).to(device)
        assert self.streams is not None
        wide = np.float64 if dtype == torch.float64 else np.float32
        block = np.empty((self.size, math.prod(shape[1:])), dtype=wide)
        for row, stream in zip(block, self.streams, strict=True):
            stream.standard_normal(out=row, dtype=wide)
        return torch.from_numpy(block).reshape(tuple(shape)).to(device=device, dtype=dtype)

    def like(self, x: Tensor) -> Tensor:
        """Standard-normal tensor of the shape, dtype and device of x."""
        return self.normal(x.shape, x.dtype, x.device)

    def rademacher(self, x: Tensor) -> Tensor:
        """Random signs of the shape, dtype and device of x."""
        return torch.copysign(torch.ones_like(x), self.like(x))

    def rows(self, index: Tensor) -> Noise:
        """The source for a subset of the samples; streams go on where they are."""
        if self.streams is None:
            return Noise(len(index), None, self.generator, self.function)
        return Noise(len(index), tuple(self.streams[i] for i in index.tolist()))


def chunks(seed: Seed, noise: NoiseFn | None, n: int, batch_size: int) -> Iterator[tuple[slice, Noise]]:
    """Slices of range(n) of at most `batch_size` rows, each with its own source of noise.

    Raises:
        ValueError: both `seed` and `noise` are given, a seed is negative, or their number is not n.
    """
    if noise is not None:
        if seed is not None:
            raise ValueError("give either seed= or noise=, not both")
        if batch_size < n:
            raise ValueError(f"noise= hands out whole batches: batch_size must be at least {n}, not {batch_size}")
    keys = None if noise is not None or isinstance(seed, torch.Generator) else _keys(seed, n)
    for start in range(0, n, batch_size):
        part = slice(start, min(start + batch_size, n))
        size = part.stop - part.start
        if keys is None:
            yield part, Noise(size, None, seed if isinstance(seed, torch.Generator) else None, noise)
        else:
            yield part, Noise(size, tuple(_stream(*key) for key in keys[part]))


def source(seed: Seed, n: int, noise: NoiseFn | None = None) -> Noise:
    """One source for a batch of n samples (see `chunks`)."""
    return next(iter(chunks(seed, noise, n, max(n, 1))))[1]


def generator(seed: int | torch.Generator | None) -> torch.Generator:
    """A CPU generator for draws that belong to a whole batch, such as those of a training step."""
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed)


def _keys(seed: Seed, n: int) -> list[tuple[int, int]]:
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, int | np.integer) or (isinstance(seed, Tensor) and seed.ndim == 0):
        keys = [(int(seed), i) for i in range(n)]
    else:
        # A sample with a seed of its own is sample 0 of that seed, whatever its place in the batch.
        keys = [(int(s), 0) for s in seed]  # type: ignore[union-attr]
        if len(keys) != n:
            raise ValueError(f"seed: {len(keys)} seeds for {n} samples; give one integer or one seed per sample")
    if any(not 0 <= s < 2**64 for s, _ in keys):
        raise ValueError("seed: seeds are integers from 0 to 2**64 - 1")
    return keys


def _stream(seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))


def _call_with_shape(function: NoiseFn, shape: torch.Size) -> Tensor:
    """Call a user's noise function with the wanted shape if it takes an argument, without if it does not."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wants = any(p.default is p.empty or p.name in ("shape", "size") for p in positional)
    if wants or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return function(shape)
    return function()
