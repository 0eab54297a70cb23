"""A model as a `torch.distributions.Distribution`, for programs that are written against those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from scorefield.dtypes import check_finite, check_real
from scorefield.inputs import as_tensor
from scorefield.likelihood.log_prob import log_prob
from scorefield.likelihood.trace import TraceMethod
from scorefield.model import ScoreModel
from scorefield.prior import PriorLike
from scorefield.sampling import LIKELIHOOD_T_MIN, sample
from scorefield.solve.integrate import Solver
from scorefield.solve.ode import Dopri5

EXACT_UP_TO = 64
"""Dimensions up to which the divergence is exact unless told otherwise."""


def as_distribution(
    model: ScoreModel,
    *,
    batch_shape: Sequence[int] = (),
    shape: Sequence[int] | None = None,
    solver: Solver | None = None,
    trace: TraceMethod | None = None,
    probes: int = 1,
    prior: PriorLike | Literal["nominal", "exact"] = "nominal",
    t_min: float = LIKELIHOOD_T_MIN,
    validate_args: bool | None = None,
    **cond: Any,
) -> ModelDistribution:
    """The law of a model's probability flow at t_min, with `sample`, `log_prob`, `expand` and the shapes of torch.

    Samples and densities belong to the same flow, so that they agree to the solver's tolerance.

    Main arguments:
        batch_shape: of the conditions: a tensor in `cond` whose shape begins with it has one condition for each of its
            places; any other holds for all. `sample` returns sample_shape + batch_shape + event_shape.
        shape: event shape, where the model does not know it.

    Other arguments:
        solver: of the flow, both ways; Dopri5(1e-5, 1e-5) by default.
        trace, probes: of `log_prob`: exact up to 64 dimensions, else Hutchinson's with probes that are always the same,
            so that a density is a function.
        prior, t_min: as in `log_prob`. cond: passed to the network.

    Raises:
        ValueError: the event shape is not known, or no condition has the batch shape.
    """
    event = tuple(shape) if shape is not None else model.shape
    if event is None:
        raise ValueError("the model does not know its event shape; give shape=, such as shape=(3, 32, 32)")
    places = torch.Size(batch_shape)
    batched = {
        name: value
        for name, value in cond.items()
        if places and isinstance(value, Tensor) and value.shape[: len(places)] == places
    }
    if places and not batched:
        raise ValueError(f"batch_shape={tuple(places)}: no condition has a shape that begins with it")
    chosen = trace or ("exact" if math.prod(event) <= EXACT_UP_TO else "hutchinson")
    flow = {"solver": solver or Dopri5(), "prior": prior, "t_min": t_min}
    shared = {name: value for name, value in cond.items() if name not in batched}
    return ModelDistribution(model, places, event, batched, shared, flow, (chosen, probes), validate_args)


class ModelDistribution(Distribution):
    """What `as_distribution` returns. `sample` draws from torch's global generator, as every torch distribution does."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(
        self,
        model: ScoreModel,
        batch_shape: torch.Size,
        event_shape: tuple[int, ...],
        batched: dict[str, Tensor],
        shared: dict[str, Any],
        flow: dict[str, Any],
        trace: tuple[TraceMethod, int],
        validate_args: bool | None = None,
    ) -> None:
        self.model, self._batched, self._shared, self._flow, self._trace = model, batched, shared, flow, trace
        super().__init__(batch_shape, torch.Size(event_shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All real values of the event shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws, sample_shape + batch_shape + event_shape, without gradients."""
        places = torch.Size(sample_shape) + self.batch_shape
        n = places.numel()
        if n == 0:
            return torch.empty(places + self.event_shape, dtype=self.model.dtype, device=self.model.device)
        seed = int(torch.randint(2**62, (), device="cpu"))
        with torch.no_grad():
            found = sample(self.model, n, shape=self.event_shape, seed=seed, **self._flow, **self._cond(places))
        draws: Tensor = found.reshape(places + self.event_shape)
        return draws

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Refused: `sample` of scorefield takes `grad=True` where a graph through the flow is wanted."""
        raise NotImplementedError("rsample: a model's draws have no reparametrised gradient; use sample()")

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of value (*, *event_shape), broadcast against the batch, with its gradient if it wants one."""
        value = as_tensor(value, "value")
        check_real(value, "value")
        tail = value.shape[value.ndim - len(self.event_shape) :]
        if tail != self.event_shape:
            raise ValueError(
                f"value has shape {tuple(value.shape)}, which must end in the event_shape {tuple(self.event_shape)}"
            )
        if self._validate_args:
            check_finite(value.reshape(-1, *self.event_shape), "value")
        lead = value.ndim - len(self.event_shape)
        places = torch.broadcast_shapes(value.shape[:lead], self.batch_shape)
        x = value.expand(places + self.event_shape).reshape(-1, *self.event_shape)
        if len(x) == 0:
            return value.new_empty(places)
        trace, probes = self._trace
        options = (
            self._flow | self._cond(places) | {"seed": [0] * len(x), "progress": False, "grad": value.requires_grad}
        )
        found = log_prob(self.model, x, trace, probes, **options)
        return found.nats.reshape(places).to(value.dtype)

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> ModelDistribution:
        """The same law at every place of a larger batch; conditions are views."""
        made: ModelDistribution = self._get_checked_instance(ModelDistribution, _instance)
        places, old = torch.Size(batch_shape), len(self.batch_shape)
        made.model, made._shared, made._flow, made._trace = self.model, self._shared, self._flow, self._trace
        made._batched = {k: _lead(v, old, places) for k, v in self._batched.items()}
        Distribution.__init__(made, places, self.event_shape, validate_args=False)
        made._validate_args = self._validate_args
        return made

    def __repr__(self) -> str:
        return f"ModelDistribution(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"

    def _cond(self, places: torch.Size) -> dict[str, Any]:
        """The conditions of samples at these places, one row each."""
        old = len(self.batch_shape)
        rows = {k: _lead(v, old, places).reshape(-1, *v.shape[old:]) for k, v in self._batched.items()}
        return self._shared | rows


def _lead(value: Tensor, old: int, places: torch.Size) -> Tensor:
    """value with its `old` leading dimensions expanded to `places`."""
    extra = value.reshape(*[1] * (len(places) - old), *value.shape)
    return extra.expand(places + value.shape[old:])
