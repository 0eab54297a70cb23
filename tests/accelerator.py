"""A device that is not there: tensors whose values lie on the CPU, and which obey the rules of an accelerator without float64.

They mix with CPU tensors of shape () alone, come back only where they are read, and every float64 tensor among them is an
error. What a real device would launch, read back and be sent is counted.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
"""The name of the device: the one that needs no driver, and whose own tensors have no values to be used by mistake."""
INDEXING = ("aten.index", "aten.index_put", "aten.index_put_", "aten.copy_")


class OnDevice(Tensor):
    """A tensor of the device."""

    is_meta = False

    @staticmethod
    def __new__(cls, values: Tensor) -> OnDevice:
        return Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )

    def __init__(self, values: Tensor) -> None:
        self.values_here = values

    def __repr__(self) -> str:
        return f"OnDevice({self.values_here})"

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return ACTIVE[-1].run(func, args, kwargs or {})


ACTIVE: list[Accelerator] = []


class Accelerator(TorchDispatchMode):
    """The device, while it is switched on; `float64=True` lets it have that dtype."""

    def __init__(self, float64: bool = False) -> None:
        super().__init__()
        self.float64 = float64
        self.launched: Counter[str] = Counter()
        self.read, self.sent = 0, 0

    def __enter__(self):
        ACTIVE.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        ACTIVE.pop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(type(leaf) not in (Tensor, nn.Parameter, OnDevice) for leaf in leaves):
            return NotImplemented  # a tensor of the library's own, which asks for operations on what it holds
        here = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
        self._check_mixture(func, leaves, here)
        target = kwargs.get("device")
        target = None if target is None else torch.device(target).type
        known = {id(leaf.values_here): leaf for leaf in here}
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        if target == DEVICE:
            plain_kwargs["device"] = "cpu"
        out = func(*plain_args, **plain_kwargs)
        on_device = bool(here) if target is None else target == DEVICE
        if func is torch.ops.aten._local_scalar_dense.default or (here and not on_device):
            self.read += len(here)
        elif on_device and not here and leaves:
            self.sent += 1
        elif on_device and not _is_view(func):
            self.launched[str(func)] += 1
        if not on_device:
            return out

        def wrap(value):
            if not isinstance(value, Tensor):
                return value
            if id(value) in known:
                return known[id(value)]
            if value.dtype in (torch.float64, torch.complex128) and not self.float64:
                raise AssertionError(
                    f"{func} makes {value.dtype}, shape {tuple(value.shape)}, on a device that has none"
                )
            return OnDevice(value)

        return tree_map(wrap, out)

    def _check_mixture(self, func, leaves, here):
        if any(leaf.device.type == DEVICE and not isinstance(leaf, OnDevice) for leaf in leaves):
            raise AssertionError(f"{func} is given a tensor that was made on the device by a list of numbers")
        apart = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim]
        if here and apart and str(func).rsplit(".", 1)[0] not in INDEXING:
            raise AssertionError(f"{func} mixes the device with a CPU tensor of shape {tuple(apart[0].shape)}")


def _plain(value):
    return value.values_here if isinstance(value, OnDevice) else value


def _is_view(func):
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
