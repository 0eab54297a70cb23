"""A network read through a jump process: three exact views of one prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time
from scorefield.discrete.process import JumpProcess
from scorefield.model import Guided, ScoreModel
from scorefield.views import View

Predict: TypeAlias = Literal["data", "ratio", "marginal", "hollow"]
Clock: TypeAlias = "Literal['t', 'total'] | Callable[[Tensor], Tensor] | None"

PREDICTIONS: tuple[str, ...] = ("data", "ratio", "marginal", "hollow")


class JumpModel(ScoreModel):
    r"""A network and a jump process, seen as ratios, as posterior of the data, or as marginal of one position.

    With p the law of x_t at one position given the states of all others, K = p(x_t | x_0) and x the present state,
        ratio(y)      = p(y) / p(x) = sum_i P(i) K[i, y] / K[i, x]      (Campbell et al. 2022, Prop. 3)
        posterior P(i) = (K^-T ratio)(i) K[i, x]                        (Lou et al. 2024, Thm. 4.1)
        marginal(y)   = ratio(y) / sum_z ratio(z)                       (Sun et al. 2023)
    so that whatever the network predicts gives all three. `denoise` is the most probable x_0 of each position by itself.

    Main arguments:
        net: called as net(x, t, **cond), or net(x, **cond) without a clock, with x (B, *) int64 and t (B,) float32; it
            returns logits (B, *, S), or (B, *, data states) where the process has a mask.
        process: the forward process.
        shape: event shape, without the batch; needed only to sample without `shape=`.

    Other arguments:
        predict: what the network returns: "data", the logits of p(x_0 | x_t); "ratio", log-ratios, of which that of x
            itself is not read; "hollow", the logits of p(x_0 at a position | x_t elsewhere), or "marginal", those of
            p(x_t at a position | x_t elsewhere), from a network in which no output sees its own position.
        clock: what the network receives: "t", "total" (B(t), the sigma of Lou et al.), a function of the float64 time, or
            None where it takes no time, which masked diffusion does not need (Ou et al. 2024).

    Raises:
        ValueError: `predict` or `clock` is not one of the names above.
    """

    habits: ClassVar[dict[str, Callable[[Any], Any]]] = {}
    """Solver, loss and guidance of its own, which `discrete.defaults` fills in: they stand above the model."""

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: JumpProcess,
        shape: Sequence[int] | None = None,
        *,
        predict: Predict = "data",
        clock: Clock = "t",
    ) -> None:
        if not isinstance(process, JumpProcess):
            raise ValueError(
                f"process is a {type(process).__name__}; give a jump process, such as sf.discrete.Absorbing(27)"
            )
        if predict not in PREDICTIONS:
            raise ValueError(f"predict={predict!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
        if not (clock is None or callable(clock) or clock in ("t", "total")):
            raise ValueError(f"clock={clock!r} is unknown; choose t, total, None or a function")
        super().__init__(net, process, "data", shape=shape)  # type: ignore[arg-type]
        self.process = process
        self.predict = predict
        self.clock = clock  # type: ignore[assignment]

    def ratio(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """p_t(y) / p_t(x) for every state y of each position, the others kept: (B, *, S).

        Where a mask leaves nothing to find out, at positions that are not masked, the ratio to the other data states is
        given as 0: no jump of the reverse process asks for it, and the network does not know it.
        """
        if self.predict in ("data", "hollow"):
            return self.process.push(self._weights(x, t, cond), self._total(x, t))
        logits, own = self._logits(x, t, cond), x.long().unsqueeze(-1)
        return (
            torch.exp(logits - logits.gather(-1, own))
            if self.predict == "marginal"
            else torch.exp(logits.scatter(-1, own, 0.0))
        )

    def posterior(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """p(x_0 | x_t = x) for every state of each position: (B, *, S), which sums to 1."""
        if self.predict in ("data", "hollow"):
            return torch.softmax(self._data_logits(x, t, cond), -1)
        total = self._total(x, t)
        ratio = self.ratio(x, t, **cond)
        p = self.process.unpush(ratio, total) * self.process.column(x, total, ratio.dtype)
        p = _without_mask(p.clamp_min(0), self.process, 0.0)
        return p / p.sum(-1, keepdim=True)

    def log_posterior(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """The logarithm of `posterior`, which keeps small probabilities: (B, *, S)."""
        if self.predict in ("data", "hollow") and type(self).posterior is JumpModel.posterior:
            return torch.log_softmax(self._data_logits(x, t, cond), -1)
        return torch.log(self.posterior(x, t, **cond))

    def marginal(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """p_t(y | the other positions) for every state y of each position: (B, *, S), which sums to 1.

        With a mask, this calls the network once for each position, masked in turn: the marginal is (1 - alpha) on the
        mask and alpha p(x_0 | x with the position masked) elsewhere.
        """
        if self.process.mask is None or self.predict in ("marginal", "hollow"):
            ratio = self.ratio(x, t, **cond)
            return ratio / ratio.sum(-1, keepdim=True)
        flat = x.flatten(1)
        places = (torch.full((len(x),), d, device=x.device) for d in range(flat.shape[1]))
        each = [self.marginal_at(x, t, place, **cond) for place in places]
        return torch.stack(each, 1).reshape(*x.shape, -1)

    def marginal_at(self, x: Tensor, t: Time, position: Tensor, **cond: Any) -> Tensor:
        """`marginal` at one position of each sample, (B,) into the flattened event: (B, S)."""
        at = position.reshape(-1, 1)
        if self.process.mask is not None:
            x = x.flatten(1).scatter(1, at, self.process.mask).reshape(x.shape)
        ratio = self.ratio(x, t, **cond).flatten(1, -2)
        here = ratio.gather(1, at.unsqueeze(-1).expand(-1, 1, ratio.shape[-1])).squeeze(1)
        return here / here.sum(-1, keepdim=True)

    def staggered(self, x: Tensor, t: Time, s: Time, **cond: Any) -> Tensor:
        """p_s(y | the other positions at t) / p_t(x | them) for every y, s < t: (B, *, S) (Lou et al. 2024, eq. 19)."""
        if self.predict in ("data", "hollow"):
            p = self.process.push(self._weights(x, t, cond), batch_total(self.process, s, x))
        else:
            p = self.process.unpush(self.ratio(x, t, **cond), self.process.between(s, t)).clamp_min(0)
        return p

    def __or__(self, guidance: Callable[[ScoreModel], ScoreModel]) -> ScoreModel:
        """`model | guidance` is again a jump model: ratios multiply."""
        guided = guidance(self)
        return self.habits["guided"](guided) if isinstance(guided, Guided) else guided

    def forward(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        return self.posterior(x, t, **cond)

    @property
    def own_solver(self) -> Any:
        """The solver that goes with it, see `discrete.defaults`."""
        return self.habits["solver"](self)

    @property
    def own_loss(self) -> Any:
        """The loss that goes with it, see `discrete.defaults`."""
        return self.habits["loss"](self)

    def check(self, x: Tensor, name: str = "x") -> None:
        self.process.check(x, name)

    def view(self, name: View | str, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        if name == "denoise":
            return self.posterior(x, t, **cond).argmax(-1)
        if name == "log_posterior":
            return self.log_posterior(x, t, **cond)
        if name == "log_ratio":
            return torch.log(self.ratio(x, t, **cond))
        raise ValueError(
            f"a jump model has no {name}; its views are ratio, posterior and marginal, and its solvers those of sf.discrete"
        )

    def _total(self, x: Tensor, t: Time) -> Tensor:
        return batch_total(self.process, t, x)

    def _weights(self, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """P(i) / K[i, x], (B, *, S): 0 for the x_0 that cannot have become x."""
        logits = self._data_logits(x, t, cond)
        column = self.process.column(x, self._total(x, t), logits.dtype)
        return torch.where(column > 0, torch.softmax(logits, -1) / column, 0.0)

    def _data_logits(self, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """Logits of p(x_0 | x_t): -inf for the x_0 that cannot have become x."""
        logits = self._logits(x, t, cond)
        column = self.process.column(x, self._total(x, t), logits.dtype)
        if self.predict == "hollow":
            logits = torch.log_softmax(logits, -1) + torch.log(column)
        return logits.masked_fill(column == 0, -torch.inf)

    def _logits(self, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """What the network returns, (B, *, S), that of the mask being -inf where data is predicted."""
        self.process.check(x)
        time, states = time_of(t, x), self.process.S
        x = x.long()
        if self.clock is None:
            out = self.net(x, **cond)
        else:
            clock = self._read(time).to(torch.float32).to(x.device).expand(x.shape[0])
            out = self.net(x, clock, **cond)
        data = self.process.data_states
        if out.shape[:-1] != x.shape or out.shape[-1] not in (states, data):
            raise ValueError(
                f"the network returned shape {tuple(out.shape)}; expected {(*x.shape, data)}, one logit for each state"
            )
        if out.shape[-1] != states:
            out = torch.nn.functional.pad(out, (0, 1), value=-torch.inf if self.predict != "ratio" else 0.0)
        if self.predict in ("data", "hollow"):
            out = _without_mask(out, self.process, -torch.inf)
        return out if out.dtype == torch.float64 else out.float()

    def _read(self, t: Tensor) -> Tensor:
        clock: Any = self.clock
        if clock == "t":
            return t
        return self.process.schedule.total(t) if clock == "total" else clock(t)


def batch_total(process: JumpProcess, t: Time, x: Tensor) -> Tensor:
    """B(t) for a batch x, () or (B,), float64 on the CPU."""
    return process.schedule.total(time_of(t, x))


def time_of(t: Time, x: Tensor) -> Tensor:
    """t for a batch x, () or (B,), float64 on the CPU."""
    return batch_time(t, torch.empty(len(x), device="cpu"))


def _without_mask(values: Tensor, process: JumpProcess, fill: float) -> Tensor:
    if process.mask is None:
        return values
    return torch.cat([values[..., : process.mask], torch.full_like(values[..., process.mask :], fill)], -1)
