"""Guidance by the gradient of a classifier that was trained on noised data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.differentiate import differentiation, variable
from scorefield.dtypes import check_batch, onto, wide_dtype
from scorefield.guide.classifier_free import check_strength
from scorefield.inputs import tensor_of
from scorefield.model import Guided, ScoreModel
from scorefield.randomness import generator
from scorefield.sde import GaussianSDE
from scorefield.times import Proposal, UniformTimes, low_discrepancy
from scorefield.views import View

ClassifierFn: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


class Classifier(nn.Module):
    """A network that reads a noise level, as a classifier of x_t at the times of an SDE: clf(x, t) -> logits (B, K).

    Main arguments:
        net: called as net(x / sqrt(alpha^2 + sigma^2), sigma / alpha), so that its input has about unit variance at all
            times and one network serves every SDE; such as `scorefield.nn.WideResNet`.
        sde: the forward process.
    """

    def __init__(self, net: nn.Module, sde: GaussianSDE) -> None:
        super().__init__()
        self.net = net
        self.sde = sde

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """Logits (B, K) in the dtype of the network; t is a float or (B,)."""
        time = as_time(t).expand(x.shape[0])
        alpha, sigma = self.sde.alpha(time), self.sde.sigma(time)
        dtype = next((p.dtype for p in self.net.parameters() if p.is_floating_point()), x.dtype)
        inner = expand(1 / torch.sqrt(alpha**2 + sigma**2), x) * x
        logits: Tensor = self.net(inner.to(dtype), (sigma / alpha.clamp_min(1e-6)).to(dtype).to(x.device))
        return logits


@dataclass(frozen=True, eq=False)
class ClassifierGuidance:
    """Adds scale * grad log p(label | x_t) to the score (Song et al. 2021, eq. 14; Dhariwal & Nichol 2021, Alg. 1).

    At scale 1 and with an exact classifier the result is the exact conditional model; 0 returns the model itself.

    Main arguments:
        clf: clf(x, t) with t (B,), float64 on the CPU and in the dtype of x elsewhere; differentiable by torch: logits or
            log-probabilities (B, K), or the log-likelihood (B,) of a condition of its own, in which case `label` is None.
        label: class index, an int or integers (B,).
        scale: strength of the guidance.

    Raises:
        ValueError: labels that are not integers of shape () or (B,), or a scale that is not finite.
    """

    clf: ClassifierFn
    label: int | Sequence[int] | Tensor | None = None
    scale: float = 1.0

    per_sample: ClassVar[tuple[str, ...]] = ("label",)

    def __post_init__(self) -> None:
        check_strength(self.scale)
        label = None if self.label is None else tensor_of(self.label, "label")
        if label is not None and (label.ndim > 1 or label.is_floating_point()):
            raise ValueError(
                f"label has shape {tuple(label.shape)} and dtype {label.dtype}; give an int or (B,) integers"
            )
        object.__setattr__(self, "label", None if label is None else label.long())

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The guided model."""
        return model if self.scale == 0 else _Classified(model, self)


class _Classified(Guided):
    guidance: ClassifierGuidance

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        time, sde = as_time(t), self.sde
        own = self.base.view(name, x, t, cond)
        match name:
            case "score":
                factor = torch.ones_like(time)
            case "noise":
                factor = -sde.sigma(time)
            case "denoise":
                factor = _finite(sde.sigma(time) ** 2 / sde.alpha(time))
            case "velocity":
                factor = _finite(-0.5 * sde.g2(time))
        return own + expand(self.guidance.scale * factor, x) * self.gradient(x, time)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p(label | x_t = x), like x."""
        track = torch.is_grad_enabled()
        with differentiation():
            live = variable(x, track)
            chosen = self._log_likelihood(live, _clock(self.guidance.clf, t, live))
            (slope,) = torch.autograd.grad(chosen.sum(), live, create_graph=track)
        return slope.to(x.dtype)

    def _log_likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        out, label = self.guidance.clf(x, t), self.guidance.label
        if label is None:
            if out.shape != x.shape[:1]:
                raise ValueError(f"clf returned shape {tuple(out.shape)}; without label=, one log-likelihood a sample")
            return out
        assert isinstance(label, Tensor)
        if out.ndim != 2 or out.shape[0] != x.shape[0]:
            raise ValueError(f"clf returned shape {tuple(out.shape)} for {x.shape[0]} samples; expected (B, K) logits")
        if bool(((label < 0) | (label >= out.shape[1])).any()):
            raise ValueError(f"label: classes run from 0 to {out.shape[1] - 1}, not {label.tolist()}")
        if label.ndim == 1 and len(label) not in (1, x.shape[0]):
            raise ValueError(f"label has {len(label)} rows for {x.shape[0]} samples; give one, or one for each sample")
        index = label.to(x.device).expand(x.shape[0]).unsqueeze(1)
        return torch.log_softmax(out, 1).gather(1, index).squeeze(1)


def classifier_loss(
    clf: ClassifierFn,
    sde: GaussianSDE,
    x0: Tensor,
    label: Tensor,
    *,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    times: Proposal | None = None,
) -> Tensor:
    """Cross-entropy of the classes of noised data, mixed over times (Song et al. 2021, App. I.1), in nats: (B,).

    Main arguments:
        x0: data (B, *); label: integers (B,).
        seed: an int or a generator for times and noise; None draws afresh.

    Other arguments:
        t: times, a float or (B,), in place of drawn ones. times: proposal, uniform in [1e-5, T] by default.
    """
    check_batch(x0, "x0")
    draws = generator(seed)
    n = x0.shape[0]
    weight = None
    if t is None:
        time, weight = (times or UniformTimes())(low_discrepancy(n, draws), sde)
    else:
        time = batch_time(t, x0).expand(n)
    x = _noised(sde, x0, time, draws)
    loss = nn.functional.cross_entropy(clf(x, _clock(clf, time, x)), label, reduction="none")
    return loss if weight is None else loss * onto(weight, loss)


@torch.no_grad()
def accuracy(
    clf: ClassifierFn, sde: GaussianSDE, x0: Tensor, label: Tensor, times: Sequence[float], seed: int = 0
) -> Tensor:
    """Share of noised data that is classified rightly at each time, (len(times),) float64 in [0, 1]."""
    draws = generator(seed)
    found = []
    for t in times:
        x = _noised(sde, x0, as_time(t), draws)
        guess = clf(x, _clock(clf, as_time(t), x)).argmax(1)
        found.append((guess == label).float().mean())
    return torch.stack(found).cpu().double()


def _clock(clf: ClassifierFn, t: Tensor, x: Tensor) -> Tensor:
    """What a classifier receives as t, (B,): in float64 on the CPU; on another device in the dtype of x, beside x.

    Ours reads its coefficients on the CPU wherever x is, so that its time need not come back.
    """
    time = t.expand(x.shape[0])
    return time if isinstance(clf, Classifier) else time.to(wide_dtype(x)).to(x.device)


def _noised(sde: GaussianSDE, x0: Tensor, t: Tensor, draws: torch.Generator) -> Tensor:
    z = torch.randn(x0.shape, generator=draws, dtype=x0.dtype, device=draws.device).to(x0.device)
    mean, std = sde.kernel(x0, t)
    return mean + std * z


def _finite(factor: Tensor) -> Tensor:
    """0 where alpha = 0 makes a factor infinite: there x_t carries no information, and the gradient is 0 as well."""
    return torch.where(torch.isfinite(factor), factor, torch.zeros_like(factor))
