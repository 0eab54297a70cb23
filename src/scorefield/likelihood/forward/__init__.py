"""Forward-mode differentiation of networks: a tensor that carries tangents, and the rules by which operations move them.

A network with an operation of its own gets a rule by `rules = Rules()`, `@rules.operator(torch.ops.mine.op.default)` and
`register(rules)`; the files of rules here show how one is written.
"""

from scorefield.likelihood.forward.dual import (
    Dual,
    Meter,
    Rules,
    UnsupportedOperation,
    pushforward,
    register,
    uncompiled,
)
from scorefield.likelihood.forward.linear_rules import LINEAR
from scorefield.likelihood.forward.pointwise_rules import POINTWISE

register(LINEAR)
register(POINTWISE)

__all__ = ["Dual", "Meter", "Rules", "UnsupportedOperation", "pushforward", "register", "uncompiled"]
