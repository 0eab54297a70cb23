"""Conditions on discrete data: guidance, by which ratios multiply, and known positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time
from scorefield.discrete.model import JumpModel
from scorefield.discrete.process import INTEGERS
from scorefield.discrete.solve import jump_model
from scorefield.guide.classifier import ClassifierGuidance
from scorefield.guide.classifier_free import Autoguidance, ClassifierFree
from scorefield.inputs import tensor_of
from scorefield.model import Guided
from scorefield.randomness import Noise
from scorefield.solve.integrate import Field

CHUNK = 4096
"""States that a classifier is shown at a time."""


def guided_jump(guided: Guided) -> JumpModel:
    """A guided jump model, from what guidance makes of any model.

    Raises:
        ValueError: guidance that works on scores alone.
    """
    base, guidance = cast(JumpModel, guided.base), guided.guidance
    if isinstance(guidance, ClassifierFree | Autoguidance):
        return _Extrapolated(base, guidance)
    if isinstance(guidance, ClassifierGuidance):
        return _Classified(base, guidance)
    raise ValueError(
        f"{type(guidance).__name__} changes a score, which a jump model has not; it takes ClassifierFree, Autoguidance and "
        "ClassifierGuidance, and sf.discrete.Infill for known positions"
    )


class _GuidedJump(JumpModel):
    """A jump model whose log-ratios are those of another one and something more (Nisonoff et al. 2025, eq. 3).

    Where there is a mask, ratios to the data states are the posterior but for a factor, so that this is changed.
    """

    def __init__(self, base: JumpModel, guidance: Any) -> None:
        masked = base.process.mask is not None
        super().__init__(base, base.process, base.shape, predict="data" if masked else "ratio", clock=base.clock)  # type: ignore[arg-type]
        self.guidance = guidance

    take, held, _ndim = Guided.take, Guided.held, Guided._ndim  # type: ignore[assignment]

    @property
    def base(self) -> JumpModel:
        """The model underneath."""
        return cast(JumpModel, self.net)

    def ratio(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        if self.process.mask is not None:
            return super().ratio(x, t, **cond)
        return torch.exp(self.logarithm("log_ratio", x, t, cond))

    def _data_logits(self, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        return self.logarithm("log_posterior", x, t, cond)

    def logarithm(self, name: str, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The guided view of that name, but for a constant at every position."""
        raise NotImplementedError


class _Extrapolated(_GuidedJump):
    """poor + scale (good - poor) of logarithms."""

    def logarithm(self, name: str, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        good = self.base.view(name, x, t, cond)  # type: ignore[arg-type]
        time, interval = float(as_time(t).max()), self.guidance.interval
        if self.guidance.scale == 1 or not (interval is None or interval[0] <= time <= interval[1]):
            return good
        poor = self.guidance.poor(self.base, name, x, t, cond)
        more = (self.guidance.scale - 1) * (good - poor)
        return torch.where(torch.isfinite(good), good + more, good)


class _Classified(_GuidedJump):
    """Times (p(label | y) / p(label | x))^scale for every y that differs from x in one position."""

    def logarithm(self, name: str, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        own = self.base.view(name, x, t, cond)  # type: ignore[arg-type]
        guidance, states, shape = self.guidance, own.shape[-1], x.shape
        count = x[0].numel()
        places = torch.arange(count, device=x.device).repeat_interleave(states)
        every = x.flatten(1).unsqueeze(1).repeat(1, count * states, 1)
        every[:, torch.arange(count * states, device="cpu"), places] = torch.arange(states, device=x.device).repeat(
            count
        )
        if self.process.mask is not None:  # the mask is no state to go to
            every[:, torch.arange(states - 1, count * states, states, device="cpu")] = x.flatten(1).unsqueeze(1)
        rows = torch.arange(len(x), device=x.device).repeat_interleave(count * states)
        times = as_time(t).expand(len(x))[rows.cpu()]
        flat = every.reshape(-1, *shape[1:])
        parts = [
            self._log_likelihood(flat[i : i + CHUNK], times[i : i + CHUNK], rows[i : i + CHUNK])
            for i in range(0, len(flat), CHUNK)
        ]
        there = torch.cat(parts).reshape(*shape, states)
        here = self._log_likelihood(x, as_time(t).expand(len(x)), torch.arange(len(x), device=x.device))
        gain = there - here.reshape(-1, *[1] * (there.ndim - 1))
        return torch.where(torch.isfinite(own), own + guidance.scale * gain.to(own), own)

    def _log_likelihood(self, x: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        guidance = self.guidance
        out = guidance.clf(x, t.to(x.device, torch.float32 if x.device.type != "cpu" else torch.float64))
        if guidance.label is None:
            return cast(Tensor, out)
        label = guidance.label.to(x.device)
        if bool(((label < 0) | (label >= out.shape[1])).any()):
            raise ValueError(f"label: classes run from 0 to {out.shape[1] - 1}, not {label.tolist()}")
        index = label.expand(len(x)) if label.ndim == 0 or len(label) == 1 else label[rows]
        return torch.log_softmax(out, 1).gather(1, index.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True, eq=False)
class Infill:
    """Known positions, as a hook of `sample`: infilling, and prompts by `Infill.prompt`.

    With a mask the known positions are simply not masked, and the rest is drawn from its law given them. With any other
    process they are noised to the present time at each step, and the rest sees them through the noise alone, which is
    biased; going back and forth (`grid=sf.inverse.repaint()`) lessens that.

    Main arguments:
        y: states, like a sample (*) or a batch (n, *); what is not known does not matter.
        known: booleans of the shape of y.

    Raises:
        ValueError: y is not of integers, or known not of booleans of its shape.
    """

    y: Tensor
    known: Tensor

    per_event: ClassVar[tuple[str, ...]] = ("y", "known")

    def __post_init__(self) -> None:
        y, known = tensor_of(self.y, "y"), tensor_of(self.known, "known")
        if y.dtype not in INTEGERS:
            raise ValueError(f"y has dtype {y.dtype}; give states, integers")
        if known.dtype != torch.bool or known.shape != y.shape:
            raise ValueError(
                f"known has shape {tuple(known.shape)} and dtype {known.dtype}; give booleans {tuple(y.shape)}"
            )
        object.__setattr__(self, "y", y.long())
        object.__setattr__(self, "known", known)

    @classmethod
    def prompt(cls, y: Tensor, length: int) -> Infill:
        """The first states of sequences of that length: y (K,) or (n, K).

        Raises:
            ValueError: more states than the sequence has.
        """
        y = tensor_of(y, "y")
        if y.dtype not in INTEGERS or y.ndim == 0:
            raise ValueError(f"y has shape {tuple(y.shape)} and dtype {y.dtype}; give states, integers (K,) or (n, K)")
        if y.shape[-1] > length:
            raise ValueError(f"the prompt has {y.shape[-1]} states and a sample {length}; give a shorter prompt")
        whole = torch.zeros(*y.shape[:-1], length, dtype=torch.int64, device="cpu")
        whole[..., : y.shape[-1]] = y
        return cls(whole, (torch.arange(length, device="cpu") < y.shape[-1]).expand(whole.shape))

    def __call__(self, x: Tensor, t: Tensor, field: Field, noise: Noise) -> Tensor:
        """x with the known positions put in, as they are at time t."""
        process = jump_model(field).process
        if self.y.shape not in (x.shape, x.shape[1:], (1, *x.shape[1:])):
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}; expected {tuple(x.shape[1:])}, or one for each sample"
            )
        y, known = self.y.to(x.device), self.known.to(x.device)
        process.check(torch.where(known, y, 0), "y")
        y = torch.where(known, y, 0).expand(x.shape)
        if process.mask is None:
            y = process.noised(y, 0.0, t, noise)
        return torch.where(known, y, x)
