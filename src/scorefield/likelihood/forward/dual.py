"""Forward-mode differentiation with a batch of tangents: value and directional derivatives in one pass, no graph kept.

`torch.func.jvp` runs every operation twice and decomposes normalisations and attention into many small ones. Here a value
and its tangents lie next to each other in memory, so that a convolution sees them as one larger batch, and every
non-linearity gets its tangent in closed form. On a U-Net a value with one tangent then costs about two evaluations.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Rule = Callable[..., Any]


class UnsupportedOperation(RuntimeError):
    """A network used an operation that has no rule here."""


@dataclass
class Rules:
    """Tangent rules, which `register` enters.

    Attributes:
        operators: rules of operators, called as rule(operator, *arguments).
        functions: rules of functions that are taken whole, before torch splits them into operators.
    """

    operators: dict[Any, Rule] = field(default_factory=dict)
    functions: dict[Any, Rule] = field(default_factory=dict)

    def operator(self, *operators: Any) -> Callable[[Rule], Rule]:
        """The decorator of a rule for these operators: names in aten, where this torch has them, or overloads themselves."""

        def enter(rule: Rule) -> Rule:
            for chosen in operators:
                found = _aten(chosen) if isinstance(chosen, str) else chosen
                if found is not None:
                    self.operators[found] = rule
            return rule

        return enter


_KNOWN = Rules()


def register(rules: Rules) -> None:
    """Let `Dual` follow these rules too; a rule for the same operator takes the place of the earlier one."""
    _KNOWN.operators.update(rules.operators)
    _KNOWN.functions.update(rules.functions)


def rule_of(operator: Any) -> Rule:
    """The rule of an operator.

    Raises:
        UnsupportedOperation: it has none.
    """
    found = _KNOWN.operators.get(operator)
    if found is None:
        raise UnsupportedOperation(f"{operator} has no tangent rule")
    return found


def pushforward(function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """(function(x), J e_k for every k), J the Jacobian of `function` at x, in one pass that keeps no graph.

    The derivative is that of the function which is computed: a `detach()` inside hides nothing from it, and what is cast
    to integers or compared has none.

    Main arguments:
        x: (B, *). directions: (K, B, *), of the dtype of x.

    Raises:
        UnsupportedOperation: the function uses an operation without a tangent rule, or loses the tangents.
    """
    try:
        with torch.no_grad(), uncompiled():
            y = function(Dual(torch.cat([x.unsqueeze(0), directions])))
    except RuntimeError as error:
        if isinstance(error, UnsupportedOperation) or "storage" not in str(error):
            raise
        raise UnsupportedOperation("a kernel outside torch, which reads memory, has no tangent rule") from error
    if not isinstance(y, Dual):
        raise UnsupportedOperation("the tangents were lost: the result does not depend on x, or left torch")
    return y.packed[0], y.packed[1:]


def uncompiled() -> AbstractContextManager[object]:
    """Calls what `torch.compile` wraps as it was before: a compiled graph takes no duals, and has one derivative at most."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


class Dual(torch.Tensor):
    """A tensor of shape (*) that carries K tangents: `packed` is (1 + K, *), the value first.

    Networks take it for a plain tensor of the value's shape. An operation without a rule raises `UnsupportedOperation`.
    """

    packed: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor) -> Dual:
        made: Dual = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, packed.shape[1:], strides=packed.stride()[1:], dtype=packed.dtype, device=packed.device
        )
        return made

    def __init__(self, packed: Tensor) -> None:
        self.packed = packed
        for meter in _METERS:
            meter.enter(self)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Dual({tuple(self.packed.shape[1:])}, tangents={len(self.packed) - 1})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_grad_enabled():
            # Rules of whole functions would be missing from the inner graph, and its gradient silently wrong.
            raise UnsupportedOperation("the network or its guidance differentiates inside, which has no tangent rule")
        if func in _LEAVING:
            raise UnsupportedOperation(f"{func.__name__}() leaves torch, where there are no tangents")
        if func in _KNOWN.functions:
            return _KNOWN.functions[func](*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = rule_of(func)
        try:
            return rule(func, *args, **(kwargs or {}))
        except (TypeError, AttributeError) as error:  # a rule does not foresee every argument that may depend on x
            raise UnsupportedOperation(f"{func} with these arguments has no tangent rule") from error


_LEAVING = (Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.__array__)


class Meter:
    """Counts the bytes that duals hold while it is open; `peak` is the most at one time."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._owners: Counter[int] = Counter()

    def __enter__(self) -> Meter:
        _METERS.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _METERS.remove(self)

    def enter(self, dual: Dual) -> None:
        """Count a dual until it is freed; views share their storage."""
        storage = dual.packed.untyped_storage()
        self._owners[storage.data_ptr()] += 1
        if self._owners[storage.data_ptr()] == 1:
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        weakref.finalize(dual, self._leave, storage.data_ptr(), storage.nbytes())

    def _leave(self, key: int, size: int) -> None:
        self._owners[key] -= 1
        if self._owners[key] == 0:
            self.live -= size


_METERS: list[Meter] = []


def _aten(name: str) -> Any:
    base, _, overload = name.partition(".")
    packet = getattr(aten, base, None)
    found = packet is not None and (overload or "default") in packet.overloads()
    return getattr(packet, overload or "default") if found else None


def slots_of(*values: Any) -> int:
    """1 + K of the first dual among the values."""
    return next(len(v.packed) for v in values if isinstance(v, Dual))


def lift(x: Any, slots: int, ndim: int) -> Tensor:
    """Packed form of a dual or (with zero tangents) of a plain tensor, with `ndim` dimensions after the slots."""
    if isinstance(x, Dual):
        p = x.packed
        return p if p.ndim == ndim + 1 else p.reshape(len(p), *[1] * (ndim + 1 - p.ndim), *p.shape[1:])
    packed: Tensor = x.new_zeros((slots, *[1] * (ndim - x.ndim), *x.shape))
    packed[0] = x
    return packed


def ndim_of(x: Any) -> int:
    """Dimensions of a tensor; 0 for a number."""
    return x.ndim if isinstance(x, Tensor) else 0


def packed_dim(dim: int) -> int:
    """The same dimension of the packed form."""
    return dim + 1 if dim >= 0 else dim


def packed_dims(dim: int | Sequence[int] | None, x: Dual) -> list[int]:
    """The same dimensions of the packed form; all but the slots for None."""
    chosen = [dim] if isinstance(dim, int) else list(dim or range(x.ndim))
    return [packed_dim(d) for d in chosen]


def plain(*values: Any) -> None:
    """Refuse duals where only tensors that do not depend on x are allowed."""
    if any(isinstance(v, Dual) for v in values):
        raise UnsupportedOperation("a weight or an index depends on x")
