"""Randomness as an argument: one seed, one seed per sample, a generator, or a callable that hands out recorded draws."""

from __future__ import annotations

import inspect
import math
import operator
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from scorefield.dtypes import EXACT

Seed: TypeAlias = "int | Sequence[int] | Tensor | torch.Generator | SeedRows | None"
NoiseFn: TypeAlias = "Callable[..., Tensor]"


@dataclass(frozen=True)
class SeedRows:
    """The samples of the given numbers under an int seed, for a process or a call that draws only these."""

    seed: int
    numbers: Sequence[int]


class Noise(ABC):
    """Source of standard-normal draws for a batch of `size` samples."""

    size: int

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard-normal tensor of `shape` = (size, *), the next of each sample's stream."""
        if shape[0] != self.size:
            raise ValueError(f"noise for {self.size} samples was asked for a batch of {shape[0]}")
        return self._draw(torch.Size(shape), dtype, device)

    def like(self, x: Tensor) -> Tensor:
        """Standard-normal tensor of the shape, dtype and device of x."""
        return self.normal(x.shape, x.dtype, x.device)

    def rademacher(self, x: Tensor) -> Tensor:
        """Random signs of the shape, dtype and device of x."""
        return torch.copysign(torch.ones_like(x), self.like(x))

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in (0, 1), float64 on the CPU: small ones to their last digit, as rare events need them."""
        u: Tensor = torch.special.ndtr(self.normal(shape, torch.float64, torch.device("cpu")))
        return u

    def take(self, index: Tensor, ndim: int = 0) -> Noise:
        """The source for some of the samples; streams go on where they are."""
        part: Noise = replace(self, size=len(index))  # type: ignore[type-var]
        return part

    @abstractmethod
    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor: ...


@dataclass
class Streams(Noise):
    """A counter-based stream (Philox) for every sample, its key being (seed, index), drawn on the CPU.

    So a sample depends neither on its batch-mates, nor on the batch size, nor on the device. Single and double
    precision have streams of their own.
    """

    keys: tuple[tuple[int, int], ...]
    blocks: dict[type, _Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = len(self.keys)

    def take(self, index: Tensor, ndim: int = 0) -> Streams:
        chosen = index.tolist()
        blocks = {
            kind: _Block([b.streams[i] for i in chosen], b.ahead[chosen], b.position) for kind, b in self.blocks.items()
        }
        return Streams(tuple(self.keys[i] for i in chosen), blocks)

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        kind = np.float64 if dtype == torch.float64 else np.float32
        if kind not in self.blocks:
            lane = 0 if kind is np.float32 else 1 << 63
            streams = [
                np.random.Generator(np.random.Philox(key=np.array([s, i | lane], np.uint64))) for s, i in self.keys
            ]
            self.blocks[kind] = _Block(streams, np.empty((self.size, 0), kind), 0)
        values = self.blocks[kind].draw(math.prod(shape[1:]))
        return torch.from_numpy(values).reshape(shape).to(device=device, dtype=dtype)


@dataclass
class _Block:
    """Numbers drawn ahead, many at a time, since a call for each sample at each step is slow for small samples."""

    streams: list[np.random.Generator]
    ahead: np.ndarray
    position: int

    def draw(self, count: int) -> np.ndarray:
        left = self.ahead.shape[1] - self.position
        if left < count:
            size = max(count, min(512, 2**22 // max(len(self.streams), 1)))
            fresh = np.empty((len(self.streams), size), self.ahead.dtype)
            for row, stream in zip(fresh, self.streams, strict=True):
                stream.standard_normal(out=row, dtype=fresh.dtype.type)
            self.ahead = np.concatenate([self.ahead[:, self.position :], fresh], 1) if left else fresh
            self.position = 0
        part = self.ahead[:, self.position : self.position + count]
        self.position += count
        return np.ascontiguousarray(part)


@dataclass
class FromGenerator(Noise):
    """Whole batches from one torch.Generator, on its own device."""

    size: int
    generator: torch.Generator

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        home = self.generator.device
        kind = torch.float32 if dtype == torch.float64 and home.type not in EXACT else dtype
        return torch.randn(shape, generator=self.generator, device=home, dtype=kind).to(device).to(dtype)


@dataclass
class FromFunction(Noise):
    """Whole batches from a function of the user's, called with the wanted shape if it takes an argument."""

    size: int
    function: NoiseFn

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        z = torch.as_tensor(_call_with_shape(self.function, shape))
        if z.shape != shape:
            raise ValueError(f"noise= returned shape {tuple(z.shape)}; expected {tuple(shape)}")
        return z.to(device=device, dtype=dtype)


@dataclass
class NoNoise(Noise):
    """Refuses to draw, where the probability flow is to be followed."""

    size: int

    def _draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        raise ValueError(
            "solver: codes and likelihoods follow the probability flow; give a solver without noise, as Dopri5()"
        )


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
        if noise is not None:
            yield part, FromFunction(size, noise)
        elif isinstance(seed, torch.Generator):
            yield part, FromGenerator(size, seed)
        else:
            assert keys is not None
            yield part, Streams(tuple(keys[part]))


def source(seed: Seed, n: int, noise: NoiseFn | None = None) -> Noise:
    """One source for a batch of n samples (see `chunks`)."""
    return next((draws for _, draws in chunks(seed, noise, n, max(n, 1))), Streams(()))


def generator(seed: int | torch.Generator | None) -> torch.Generator:
    """A CPU generator for draws that belong to a whole batch, such as those of a training step.

    Raises:
        ValueError: the seed is no integer.
    """
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(secrets.randbits(63) if seed is None else whole_seed(seed))


def whole_seed(seed: object) -> int:
    """A seed that decides everything, as an int of Python's own.

    Raises:
        ValueError: it is no integer, or negative.
    """
    try:
        found = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"seed={seed!r}: give an integer, which decides all that is random") from None
    if not 0 <= found < 2**63:
        raise ValueError(f"seed={found}: seeds are integers from 0 to 2**63 - 1")
    return found


def _keys(seed: Seed, n: int) -> list[tuple[int, int]]:
    if seed is None:
        seed = secrets.randbits(63)
    assert not isinstance(seed, torch.Generator)
    if isinstance(seed, SeedRows):
        first, numbers = seed.seed, seed.numbers
        if len(numbers) != n:
            raise ValueError(f"seed: {len(numbers)} numbers for {n} samples; give one for each sample")
        return [(key, number) for (key, _), number in zip(_keys([first] * n, n), numbers, strict=True)]
    values = torch.as_tensor(seed).tolist() if isinstance(seed, Tensor) else seed
    try:
        if isinstance(values, Iterable):
            # A sample with a seed of its own is sample 0 of that seed, whatever its place in the batch.
            keys = [(operator.index(s), 0) for s in values]
        else:
            keys = [(operator.index(values), i) for i in range(n)]
    except TypeError:
        raise ValueError(f"seed={seed!r}: give an integer, one integer per sample, or a torch.Generator") from None
    if len(keys) != n:
        raise ValueError(f"seed: {len(keys)} seeds for {n} samples; give one integer or one seed per sample")
    if any(not 0 <= s < 2**64 for s, _ in keys):
        raise ValueError("seed: seeds are integers from 0 to 2**64 - 1")
    return keys


def _call_with_shape(function: NoiseFn, shape: torch.Size) -> Tensor:
    """Call a user's noise function with the wanted shape if it takes an argument, without if it does not."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(shape)  # written in C, such as torch.randn
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wants = any(p.default is p.empty or p.name in ("shape", "size") for p in positional)
    if wants or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return function(shape)
    return function()
