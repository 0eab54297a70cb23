"""Discrete flow matching: jumps towards a draw of the data, along the marginals of a process that redraws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.coefficients import expand
from scorefield.discrete.process import Redraw
from scorefield.discrete.solve import Independent, Tweedie, jump_model, with_rest
from scorefield.dtypes import onto
from scorefield.solve.integrate import Field


@dataclass(frozen=True)
class FlowMatching(Independent):
    r"""Each position draws x_0 from p(x_0 | x) and jumps to it at the rate -alpha' / (1 - alpha) (Gat et al. 2024, sec. 3).

    In the law that reaches time s the draw is summed over. The path alpha delta(x_0) + (1 - alpha) pi is that of `Uniform` and
    `Absorbing`, so any of their models will do, and all marginals are right as steps grow; only the jumps are others than those
    of the reversed process. On masked data it is `Ancestral` with the rate held fixed over a step. At the first time of a
    schedule whose rate is infinite there, and in the last step to 0, the step is that of `Tweedie`.

    Main arguments:
        stochasticity: e, of further jumps there and back that leave the marginals as they are: at the rates
            e alpha / (1 - alpha) beta to x_0 and e beta pi to anything (Campbell et al. 2024, sec. 3.2). They let what was
            drawn early be drawn again, and need shorter steps.

    Raises:
        ValueError: a negative stochasticity, or, when it is used, a process of another kind.
    """

    stochasticity: float = 0.0

    def __post_init__(self) -> None:
        if not (self.stochasticity >= 0 and math.isfinite(self.stochasticity)):
            raise ValueError(f"stochasticity={self.stochasticity}: give 0 or a positive strength")

    def law(self, field: Field, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        schedule = jump_model(field).process.schedule
        towards, anywhere = self.rates(field, t)
        if float(schedule.total(s)) == 0 or not bool(torch.isfinite(towards + anywhere)):
            return Tweedie().law(field, x, t, s)
        field.calls += 1
        p, h = jump_model(field).posterior(x, t, **field.cond), t - s
        own, pi = x.long().unsqueeze(-1), onto(jump_model(field).process.stationary, p)
        here = p.gather(-1, own)  # the chance that the draw of x_0 is where the position is
        away = 1 - pi[x.long()].unsqueeze(-1)
        a, b, length = (expand(v, p) for v in (towards, anywhere, h))
        fast, slow = a + b * away, b * away
        moved = -torch.expm1(-length * fast) / fast * (a * p + b * pi * (1 - here))
        stirred = -torch.expm1(-length * slow) / away.clamp_min(1e-30) * here * pi
        return with_rest((moved + stirred).scatter(-1, own, 0.0), x)

    def rates(self, field: Field, t: Tensor) -> tuple[Tensor, Tensor]:
        """Rates of jumps to the drawn x_0 and, times pi, to any state, per unit of time; of the shape of t.

        Raises:
            ValueError: the process does not redraw its states from one law.
        """
        process = jump_model(field).process
        if not isinstance(process, Redraw):
            raise ValueError(
                f"FlowMatching follows a process that redraws, Uniform or Absorbing, not {type(process).__name__}; "
                "use Tweedie()"
            )
        e, schedule = self.stochasticity, process.schedule
        return (1 + e) * schedule.hazard(t), e * schedule.rate(t) if e else torch.zeros_like(t)
