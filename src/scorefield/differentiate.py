"""Differentiating wherever the caller is, under `torch.no_grad()` and `torch.inference_mode()` too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def differentiation(enabled: bool = True) -> Iterator[None]:
    """A block in which torch records what it does; `torch.enable_grad()` alone would not leave inference mode."""
    with torch.inference_mode(False), torch.set_grad_enabled(enabled):
        yield


@contextmanager
def differentiation_twice() -> Iterator[None]:
    """The same, with attention that has a second derivative: the fused kernels have none."""
    with differentiation(), sdpa_kernel(SDPBackend.MATH):
        yield


def variable(x: Tensor, track: bool = False) -> Tensor:
    """x to differentiate by: x itself where it is part of a graph that is to be kept, else apart from any."""
    if track and x.requires_grad:
        return x
    return ordinary(x).detach().requires_grad_()


def ordinary(x: Tensor) -> Tensor:
    """x, or a copy that a graph may save where x was made in inference mode."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()
