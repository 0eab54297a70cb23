"""Classes: those of data against those that a network says it knows."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn

from scorefield.data.dataset import Dataset
from scorefield.errors import InputError, ScorefieldWarning


def class_count(net: Any) -> int:
    """The classes that a network knows, 0 for none."""
    count = getattr(net, "num_classes", 0)
    return int(count) if isinstance(count, int) else 0


def learns_classes(net: Any, *parts: Dataset | None) -> bool:
    """Whether labels take part: the data, the first of the parts, has some and the network says how many classes it knows.

    Warns of a network that takes labels and does not say so: it is trained without.

    Raises:
        InputError: a class that the network does not know.
    """
    data, classes = parts[0], class_count(net)
    if data is None or data.labels is None:
        return False
    if not classes and _takes_labels(net):
        count, name = int(data.labels.max()) + 1, type(net).__name__
        warnings.warn(
            f"{data.name} has labels and {name} takes `label` but has no num_classes, so it is trained without them; write "
            f"self.num_classes = {count} in it for classes (label is then (B,) with -1 for no label), or 0 for none",
            ScorefieldWarning,
            stacklevel=5,
        )
    for part in parts if classes else ():
        if part is not None and part.labels is not None and int(part.labels.max()) >= classes:
            raise InputError(
                f"{part.name} has class {int(part.labels.max())} and the network knows {classes} classes, from 0; "
                "build it with more"
            )
    return classes > 0


def _takes_labels(net: Any) -> bool:
    """Whether a network can be given `label` and says nothing of classes. One of this library that passes conditions on does
    so where something in it has classes."""
    if hasattr(net, "num_classes"):
        return False
    try:
        known = inspect.signature(net.forward if isinstance(net, nn.Module) else net).parameters
    except (TypeError, ValueError):
        return False
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    if anything and type(net).__module__.startswith("scorefield."):
        return any(class_count(part) for part in net.modules())
    return anything or "label" in known
