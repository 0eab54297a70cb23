"""A network that jumps along the probability flow: consistency maps, TrigFlow and average velocities."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.model import ScoreModel
from scorefield.randomness import Noise
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Field, Hook, Solver
from scorefield.views import View

Kind: TypeAlias = Literal["consistency", "trig", "average"]
ROUNDING = 1e-9
"""How far, relatively, a grid that was made by powers may end above the end of a map."""


class FlowMap(ScoreModel):
    r"""A network read as a jump along the flow of an SDE: x_t -> x_s, without the steps in between.

    It is to the flow what a `ScoreModel` is to the score, and has no score: what needs one is refused. With rho = sigma / alpha
    and y = x / alpha every `GaussianSDE` is the process of Karras et al. 2022, and so the published maps serve all of them.

    Main arguments:
        net: called as net(x, t, **cond) with x scaled to unit variance and t (B,); returns a tensor like x.
        sde: the forward process.
        kind: what the network is:
            "consistency": F in c_skip y + c_out F(c_in y), which is y at `end` (Song et al. 2023, eq. 5 and App. C).
            "trig": F in cos(th) y - sin(th) sigma_d F(y / sigma_d), th the angle of data and noise (Lu & Song 2025, eq. 6).
            "average": the mean velocity u of z = x / (alpha + sigma) between two times (Geng et al. 2025, eq. 5), called as
                net(z, t, span=t - r) with t = sigma / (alpha + sigma); the only kind that jumps to any s.

    Other arguments:
        shape: event shape. sigma_data: standard deviation of the data. end: where "consistency" and "trig" jump to; `sde.t_min`
            for the first and 0 for the others by default.

    Raises:
        ValueError: an unknown kind, an end outside [0, T), or sigma_data that is not positive.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        sde: GaussianSDE,
        kind: Kind = "consistency",
        *,
        shape: Sequence[int] | None = None,
        sigma_data: float = 0.5,
        end: float | None = None,
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(get_args(Kind))}")
        super().__init__(net, sde, "data", shape=shape, sigma_data=sigma_data)
        self.clock = "log_sigma" if kind == "consistency" else "t"
        self.kind: Kind = kind
        self.end = (sde.t_min if kind == "consistency" else 0.0) if end is None else end
        if not 0 <= self.end < sde.T:
            raise ValueError(f"end={end}: a map ends at a time from 0 up to T={sde.T}")

    @classmethod
    def from_model(cls, model: ScoreModel, **options: Any) -> FlowMap:
        """A consistency map that starts from a score model: its weights, copied, under the scalings of the map."""
        net = copy.deepcopy(model.net) if model.predict == "edm" else _AsEDM(copy.deepcopy(model))
        settings = {"shape": model.shape, "sigma_data": model.sigma_data} | options
        started = cls(net, model.sde, "consistency", **settings)
        started.clock = model.clock if model.predict == "edm" else "t"
        return started

    @property
    def source(self) -> ScoreModel | None:
        """The score model whose network is read as that of the map; None where the network is the map's own."""
        return self.net.model if isinstance(self.net, _AsEDM) else None

    @property
    def denoises(self) -> bool:
        return False

    @property
    def own_solver(self) -> Solver | None:
        return Jump()

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """A map has no views of the score.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a flow map has no {name}, and so no likelihood or code: sample it with sf.Jump(), or use its score model"
        )

    def jump(self, x: Tensor, t: Time, s: Time | None = None, **cond: Any) -> Tensor:
        """x_s of the flow through x at time t, like x; t and s are floats or (B,), s is `end` by default.

        Raises:
            ValueError: another s for a map that only knows its end.
        """
        late = batch_time(t, x)
        early = batch_time(self.end if s is None else s, x)
        if self.kind == "average":
            return self._average(x, late, early, cond)
        if not x.is_meta and bool((early != self.end).any()):
            raise ValueError(
                f"s={s}: a {self.kind} map jumps to t={self.end} alone; add noise again, as sf.Jump() does"
            )
        return self._trig(x, late, cond) if self.kind == "trig" else self._consistency(x, late, cond)

    def _consistency(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        alpha, sigma, sd = self.sde.alpha(t), self.sde.sigma(t), self.sigma_data
        last, least = self.sde.alpha(self.end), self.sde.sigma(self.end) / self.sde.alpha(self.end)
        away, total = sigma - least * alpha, torch.sqrt(sigma**2 + (alpha * sd) ** 2)
        # c_skip / alpha and c_out of Song et al. 2023, written so that alpha = 0 is no special case
        skip = last * sd**2 * alpha / (away**2 + (alpha * sd) ** 2)
        y = self._call(expand(1 / total, x) * x, self._read_clock(t, sigma), cond)
        return expand(skip, x) * x + expand(last * sd * away / total, x) * y

    def angle(self, t: Time) -> Tensor:
        """th of x / r = cos(th) x_0 + sin(th) z, z ~ N(0, sigma_data^2): atan2(sigma / sigma_data, alpha), float64."""
        return torch.atan2(self.sde.sigma(t) / self.sigma_data, self.sde.alpha(t))

    def radius(self, t: Time) -> Tensor:
        """r(t) of `angle`, float64."""
        return torch.sqrt(self.sde.alpha(t) ** 2 + (self.sde.sigma(t) / self.sigma_data) ** 2)

    def _trig(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        turn = self.angle(t) - self.angle(self.end)
        y = expand(1 / self.radius(t), x) * x
        out = self._call(y / self.sigma_data, self.angle(t), cond)
        r = self.radius(self.end)
        return expand(r * torch.cos(turn), x) * y - expand(r * torch.sin(turn) * self.sigma_data, x) * out

    def _average(self, x: Tensor, t: Tensor, s: Tensor, cond: dict[str, Any]) -> Tensor:
        whole, left = (self.sde.alpha(u) + self.sde.sigma(u) for u in (t, s))
        late, early = self.sde.sigma(t) / whole, self.sde.sigma(s) / left
        z = expand(1 / whole, x) * x
        u = self.average_velocity(z, late, late - early, cond)
        return expand(left, x) * (z - expand(late - early, x) * u)

    def average_velocity(self, z: Tensor, t: Tensor, span: Tensor, cond: dict[str, Any]) -> Tensor:
        """What the network of an "average" map says of z (B, *) for jumps of length `span` from t, () or (B,), like z."""
        weight = self._weight()
        length = span.to(device=z.device, dtype=z.dtype if weight is None else weight.dtype).expand(len(z))
        return self._call(z, t, cond | {"span": length})


class _AsEDM(nn.Module):
    """A score model as the network F of Karras et al. 2022, Table 1, called with inputs of unit variance and the time."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        model, time = self.model, as_time(t)
        alpha, sigma, sd = model.sde.alpha(time), model.sde.sigma(time), model.sigma_data
        total = torch.sqrt(sigma**2 + (alpha * sd) ** 2)
        state = expand(total, x) * x
        data = model.denoise(state, time, **cond)
        return expand(total / (sigma * sd), x) * (data - expand(alpha * sd**2 / total**2, x) * state)


@dataclass(frozen=True)
class Jump(Solver):
    """Multistep consistency sampling (Song et al. 2023, Alg. 1); one evaluation a step, for a `FlowMap`.

    x_end = map(x_t), then noise by the forward transition up to s; the last step stays at the end. Maps of average velocities
    jump to s directly, without noise.

    One step starts from noise alone. More steps repair what a single jump gets wrong by chance, not the bias of the map.
    Hooks such as `Replace` edit without training (Alg. 4 there): what is known takes its place after every step.

    Main arguments:
        low, high: range to which the map's answers are cut, as the authors' code does with that of images; none by default.

    Raises:
        ValueError: low is not below high.
    """

    low: float = -math.inf
    high: float = math.inf

    order: ClassVar[float] = 1
    grid: ClassVar[str] = "log_snr"
    default_steps: ClassVar[int] = 2
    denoises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high")

    def ended(self, field: Field, x: Tensor, t: float, hooks: Sequence[Hook]) -> Tensor:
        """What a map ends at counts as data, so that hooks put what they know into it without noise."""
        model: Any = field.model
        for hook in hooks if t <= model.end * (1 + ROUNDING) else ():
            x = getattr(hook, "finish", lambda same: same)(x)
        return x

    def step(self, field: Field, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: Noise) -> tuple[Tensor, Any]:
        model: Any = field.model
        if not hasattr(model, "jump"):
            raise ValueError(f"Jump() needs a FlowMap, not {type(model).__name__}: sf.FlowMap, or scorefield distill")
        field.calls += 1
        if model.kind == "average":
            return model.jump(x, t, s, **field.cond), None
        end = model.jump(x, t, **field.cond).clamp(self.low, self.high)
        if float(s) <= model.end * (1 + ROUNDING):
            return end, None
        a, v = field.sde.transition_coefficients(model.end, s)
        return expand(a, x) * end + expand(v.sqrt(), x) * noise.like(x), None


def exact_gaussian_map(x: Tensor, t: Time, s: Time, sde: GaussianSDE, mean: float, variance: float) -> Tensor:
    """The flow of N(mean, variance) data, entry by entry: alpha_s m + (C_s / C_t)^{1/2} (x - alpha_t m), like x."""
    late, early = batch_time(t, x), batch_time(s, x)
    spread = [torch.sqrt(sde.alpha(u) ** 2 * variance + sde.sigma(u) ** 2) for u in (late, early)]
    centre = x - expand(sde.alpha(late) * mean, x)
    return expand(sde.alpha(early) * mean, x) + expand(spread[1] / spread[0], x) * centre


def fixed_point_bias(rho: Tensor, sigma_data: float, solver: Literal["euler", "heun"] = "euler") -> float:
    r"""How much too narrow (below 0) or too wide a consistency map is at the fixed point of its training on N levels of noise.

    For Gaussian data the map that training (with a stop-gradient) and distillation by Euler's rule agree on has the slope
    prod_n (s^2 + rho_n rho_{n+1}) / (s^2 + rho_{n+1}^2), the exact one ((s^2 + rho_1^2) / (s^2 + rho_N^2))^{1/2}. The slope by
    another rule is the product of what its steps make of y, whose flow is dy / d rho = rho y / (s^2 + rho^2).

    Main arguments:
        rho: rising noise levels sigma / alpha, (N,). solver: the teacher's step; "euler" also for training without one.
    """
    s2, early, late = sigma_data**2, rho[:-1], rho[1:]
    first = 1 + (early - late) * late / (s2 + late**2)
    factor = first
    if solver == "heun":
        factor = 1 + 0.5 * (early - late) * (late / (s2 + late**2) + first * early / (s2 + early**2))
    return float(torch.prod(factor) / math.sqrt((s2 + float(rho[0]) ** 2) / (s2 + float(rho[-1]) ** 2))) - 1
