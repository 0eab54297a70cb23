"""The divergence of a velocity: exact, by Hutchinson, or by Hutch++, from forward- or reverse-mode products."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scorefield.dtypes import wide, wide_dtype
from scorefield.errors import ScorefieldWarning
from scorefield.likelihood.forward import Meter, UnsupportedOperation, pushforward, uncompiled
from scorefield.randomness import Noise

Function: TypeAlias = "Callable[[Tensor], Tensor]"
Mode: TypeAlias = Literal["auto", "forward", "lean", "reverse"]
TraceMethod: TypeAlias = Literal["hutchinson", "exact", "hutch++"]
Distribution: TypeAlias = Literal["rademacher", "gaussian"]
MODES: tuple[str, ...] = ("auto", "forward", "lean", "reverse")
TRACES: tuple[str, ...] = ("hutchinson", "exact", "hutch++")
DISTRIBUTIONS: tuple[str, ...] = ("rademacher", "gaussian")


class Linearized(Protocol):
    """A function near one point: its value there, and products of its Jacobian, or of the transpose, with vectors."""

    value: Tensor

    def products(self, directions: Tensor, last: bool = True) -> Tensor:
        """J e or J^T e for directions (K, B, *), like them; `last` says that no more will be asked for."""
        ...

    def bytes_per_direction(self) -> int:
        """About how much memory one more direction takes."""
        ...


class Forward:
    """Products J e by a pass of value and tangents together; each call evaluates the value again.

    Main arguments:
        instead: called with the first operation that has no tangent rule, for what takes over from there.
    """

    value: Tensor

    def __init__(
        self, function: Function, x: Tensor, instead: Callable[[UnsupportedOperation], Linearized] | None = None
    ) -> None:
        self._function, self._x, self._instead = function, x.detach(), instead
        self._successor: Linearized | None = None

    def products(self, directions: Tensor, last: bool = True) -> Tensor:
        if self._successor is None:
            try:
                return self._push(directions)
            except UnsupportedOperation as error:
                if self._instead is None:
                    raise
                self._successor = self._instead(error)
        moved = self._successor.products(directions, last)
        self.value = self._successor.value
        return moved

    def bytes_per_direction(self) -> int:
        with Meter() as meter:
            self.products(torch.zeros_like(self._x).unsqueeze(0), last=False)
        # Of a value and one tangent: the other half allows for temporaries.
        return meter.peak if self._successor is None else self._successor.bytes_per_direction()

    def _push(self, directions: Tensor) -> Tensor:
        self.value, moved = pushforward(self._function, self._x, directions)
        return moved


class TorchForward(Forward):
    """Products J e by `torch.func.jvp`, one direction at a time: slower, but defined for more operations."""

    def bytes_per_direction(self) -> int:
        return 0

    def _push(self, directions: Tensor) -> Tensor:
        moved = []
        # Fused attention has no forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), uncompiled():
            for e in directions:
                value, tangent = torch.func.jvp(self._function, (self._x,), (e,))[:2]
                self.value = value
                moved.append(tangent)
        return torch.stack(moved)


class Reverse:
    """Products J^T e by the graph of one evaluation."""

    def __init__(self, function: Function, x: Tensor, create_graph: bool = False, batched: bool = False) -> None:
        self._create, self._batched, self._saved = create_graph, batched, 0
        self._x = x if create_graph and x.requires_grad else x.detach().requires_grad_()
        count = torch.autograd.graph.saved_tensors_hooks(self._count, lambda saved: saved)
        # A compiled graph has neither a second derivative nor one over many directions at once.
        compiled = uncompiled() if create_graph or batched else nullcontext()
        with torch.enable_grad(), compiled, count if batched else nullcontext():
            self._y = function(self._x)
        self.value = self._y if create_graph else self._y.detach()

    def products(self, directions: Tensor, last: bool = True) -> Tensor:
        if not self._y.requires_grad:  # a network that says the same whatever x is
            return torch.zeros_like(directions)
        keep = self._create or not last
        if self._batched and len(directions) > 1:
            return self._grad(directions, keep, is_grads_batched=True)
        more = len(directions) - 1
        return torch.stack([self._grad(e, keep or k < more) for k, e in enumerate(directions)])

    def bytes_per_direction(self) -> int:
        return self._saved  # the gradients alive at a time are fewer than the activations kept

    def _grad(self, e: Tensor, keep: bool, **options: Any) -> Tensor:
        options |= {"retain_graph": keep, "create_graph": self._create, "materialize_grads": True}
        (back,) = torch.autograd.grad(self._y, self._x, e, **options)
        return back

    def _count(self, saved: Tensor) -> Tensor:
        self._saved += saved.numel() * saved.element_size()
        return saved


@dataclass
class Linearizer:
    """Chooses how a velocity is differentiated.

    Attributes:
        mode: "forward" ("lean" for half the batch at a time), "reverse", or "auto" for forward until the first operation
            without a tangent rule, and reverse from there on. The trace of a Jacobian and its quadratic forms are those of
            the transpose, so a path on which the way changes is as exact as any other.
        grad: keep the graph of the products, which needs reverse mode.
        chosen: the class in use.
    """

    mode: Mode = "auto"
    grad: bool = False
    chosen: type[Forward] | type[Reverse] = Forward

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        if self.grad and self.mode in ("forward", "lean"):
            raise ValueError(f"mode={self.mode!r} keeps no graph: gradients of the likelihood need mode='reverse'")
        if self.grad or self.mode == "reverse":
            self.chosen = Reverse

    def __call__(self, function: Function, x: Tensor, batched: bool = False) -> Linearized:
        """`function` linearised at x (B, *); `batched` announces many directions at once."""
        if self.chosen is Forward:
            return Forward(function, x, lambda error: self._changed(error)(function, x, batched))
        if issubclass(self.chosen, Forward):
            return self.chosen(function, x)
        # Fused attention has neither a second derivative nor one over many directions at once.
        with sdpa_kernel(SDPBackend.MATH) if self.grad or batched else nullcontext():
            return Reverse(function, x, self.grad, batched)

    def _changed(self, error: UnsupportedOperation) -> Linearizer:
        """From now on the way that knows more operations, which is said once."""
        self.chosen = Reverse if self.mode == "auto" else TorchForward
        way = "in reverse, keeping a graph" if self.mode == "auto" else "by torch.func.jvp, one direction at a time"
        message = f"{error}: the network is differentiated {way}, which is slower"
        warnings.warn(message, ScorefieldWarning, stacklevel=2)
        return self


class Divergence(Protocol):
    """Estimates of div v for a batch, one in each column, whose mean is the estimate."""

    @property
    def columns(self) -> int: ...

    def __call__(self, function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        """(v(x), like x; estimates (B, columns), float64) at x (B, *)."""
        ...


@dataclass
class Exact:
    """The trace of the Jacobian, one product for each dimension, as many at a time as fit in `memory` bytes."""

    linearizer: Linearizer = field(default_factory=Linearizer)
    memory: int = 2**30
    bytes: dict[type, float] = field(default_factory=dict)
    """Measured once: bytes for a direction and an entry of x, by the way of differentiating."""

    columns = 1

    def __call__(self, function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        linear = self.linearizer(function, x, batched=True)
        d = math.prod(x.shape[1:])
        if self.linearizer.chosen not in self.bytes:
            measured = linear.bytes_per_direction()  # which may change the way
            self.bytes[self.linearizer.chosen] = max(measured / x.numel(), 8)
        size = max(1, min(d, int(self.memory / (self.bytes[self.linearizer.chosen] * x.numel()))))
        total = torch.zeros(len(x), dtype=wide_dtype(x), device=x.device)
        for start in range(0, d, size):
            index = torch.arange(start, min(start + size, d), device=x.device)
            basis = torch.nn.functional.one_hot(index, d).to(x.dtype).unsqueeze(1).expand(-1, len(x), -1)
            moved = linear.products(basis.reshape(-1, *x.shape), last=start + size >= d)
            own = moved.flatten(2).gather(2, index.reshape(-1, 1, 1).expand(-1, len(x), 1))
            total = total + wide(own).sum((0, 2))
        return linear.value, total.unsqueeze(1)


@dataclass
class Hutchinson:
    r"""Unbiased by e^T J e with probes e of unit covariance (Skilling 1989, Hutchinson 1990; Song et al. 2021, eq. 40).

    Attributes:
        probes: (K, B, *), held fixed along a trajectory, so that the integral stays unbiased and smooth in t. The
            opposite of a probe gives the same product, so antithetic pairs would bring nothing.
    """

    probes: Tensor
    linearizer: Linearizer = field(default_factory=Linearizer)

    @property
    def columns(self) -> int:
        return len(self.probes)

    def __call__(self, function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        linear = self.linearizer(function, x)
        return _products(linear, self.probes)

    def take(self, index: Tensor, ndim: int = 0) -> Hutchinson:
        return Hutchinson(self.probes[:, index], self.linearizer)


@dataclass
class HutchPlusPlus:
    r"""Hutch++ (Meyer et al. 2021): exact on the range of a sketch J S, Hutchinson on its complement, for every sample.

    tr J = tr(Q^T J Q) + E e^T P J P e,   Q an orthonormal basis of J S,   P = I - Q Q^T

    3 K products for K columns. It wins where few directions carry most of the trace, and is exact for K >= D.

    Attributes:
        probes, sketch: (K, B, *), both held fixed along a trajectory; given the sketch, the estimate is unbiased.
    """

    probes: Tensor
    sketch: Tensor
    linearizer: Linearizer = field(default_factory=Linearizer)

    @property
    def columns(self) -> int:
        return len(self.probes)

    def __call__(self, function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        linear = self.linearizer(function, x)
        image = wide(linear.products(self.sketch, last=False)).flatten(2)  # (K, B, D)
        q = torch.linalg.qr(image.permute(1, 2, 0)).Q  # (B, D, min(K, D))
        e = wide(self.probes).flatten(2).permute(1, 2, 0)
        e = e - q @ (q.mT @ e)
        sides = torch.cat([q, e], 2).permute(2, 0, 1).reshape(-1, *x.shape)
        value, columns = _products(linear, sides.to(x.dtype))
        k = q.shape[2]
        return value, columns[:, :k].sum(1, keepdim=True) + columns[:, k:]

    def take(self, index: Tensor, ndim: int = 0) -> HutchPlusPlus:
        return HutchPlusPlus(self.probes[:, index], self.sketch[:, index], self.linearizer)


def estimator(
    trace: TraceMethod,
    x: Tensor,
    noise: Noise,
    probes: int = 1,
    distribution: Distribution = "rademacher",
    linearizer: Linearizer | None = None,
    memory: int = 2**30,
) -> Divergence:
    """The estimator that `log_prob` is asked for, with its probes drawn from `noise` for the samples x (B, *).

    Raises:
        ValueError: an unknown name, or fewer than one probe.
    """
    if trace not in TRACES:
        raise ValueError(f"trace={trace!r} is unknown; choose one of {', '.join(TRACES)}")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r} is unknown; choose one of {', '.join(DISTRIBUTIONS)}")
    if probes < 1:
        raise ValueError(f"probes={probes}: at least one probe is needed")
    linearizer = Linearizer() if linearizer is None else linearizer
    if trace == "exact":
        return Exact(linearizer, memory)
    draw = noise.rademacher if distribution == "rademacher" else noise.like
    first = torch.stack([draw(x) for _ in range(probes)])
    if trace == "hutchinson":
        return Hutchinson(first, linearizer)
    # Signs in few dimensions are often the same but for one sign, and rounding would choose the rest of the basis.
    return HutchPlusPlus(first, torch.stack([noise.like(x) for _ in range(probes)]), linearizer)


def _products(linear: Linearized, sides: Tensor) -> tuple[Tensor, Tensor]:
    moved = linear.products(sides)
    return linear.value, (wide(moved) * wide(sides)).flatten(2).sum(2).T
