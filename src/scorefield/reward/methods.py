"""How a chain is tuned: adjoint matching, policy gradients in discrete and continuous time, and plain back-propagation.

Each method turns a `Rollout` into a loss (B,), whose mean has the gradient of -(E[r] / temperature - KL), or its own target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from scorefield.differentiate import differentiation
from scorefield.dtypes import wide
from scorefield.errors import InputError
from scorefield.randomness import Noise
from scorefield.reward.paths import (
    Chain,
    Paths,
    Reward,
    follow,
    inner,
    lean_adjoint,
    log_density,
    reward_gradient,
    rewarded,
    square,
)
from scorefield.solve.integrate import Field


@dataclass
class Rollout:
    """One batch of the chain: the fields, the start x (B, *), and its noise.

    Main arguments:
        chain, tuned, base: the steps, the field that learns and the frozen one. reward: x -> (B,).
        temperature: lambda of p e^(r / lambda). start: x_0 of the chain. noise: source of its draws.
        pick: CPU generator that chooses steps.
        memory: what a method keeps from one batch to the next.
    """

    chain: Chain
    tuned: Field
    base: Field
    reward: Reward
    temperature: float
    start: Tensor
    noise: Noise
    pick: torch.Generator
    memory: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def paths(self) -> Paths:
        """Fresh paths of the chain as it is."""
        return follow(self.chain, self.tuned, self.base, self.start, self.noise)

    def chosen(self, count: int | None) -> tuple[list[int], float]:
        """Steps to learn from, all or `count` at random, and what their sum is multiplied by to stand for all."""
        length = self.chain.length
        if count is None or count >= length:
            return list(range(length)), 1.0
        return torch.randperm(length, generator=self.pick, device=self.pick.device)[:count].tolist(), length / count

    def control(self, paths: Paths, k: int) -> Tensor:
        """u_k at the path's states, with its graph."""
        mean, std = self.chain.kernel(self.tuned, paths.states[k], k)
        return (mean - paths.base[k]) / std


class Method(Protocol):
    """What `finetune` takes for `how`."""

    def loss(self, rollout: Rollout) -> tuple[Tensor, Paths, Tensor]:
        """The loss (B,), the paths it was made on, and their rewards (B,)."""
        ...


@dataclass(frozen=True)
class AdjointMatching:
    """Regression of the control on the lean adjoint (Domingo-Enrich et al. 2024, sec. 5): |u_k + s_k a_{k+1}|^2 / 2.

    The adjoint after the step makes it exact for any number of steps where the reward is linear and the base Gaussian; the
    one before it is only right as steps go to 0. The reward must be differentiable, and the chain must forget its start
    (as DDIM(eta=1) and the reverse SDE do): what it remembers, it cannot tilt.

    Main arguments:
        steps: of the chain that each batch learns from, at random; all by default.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        _check_count("steps", self.steps)

    def loss(self, rollout: Rollout) -> tuple[Tensor, Paths, Tensor]:
        paths = rollout.paths()
        x = paths.states[-1]
        value = rewarded(rollout.reward, x).detach()
        end = -reward_gradient(rollout.reward, x) / rollout.temperature
        adjoint = lean_adjoint(rollout.chain, rollout.base, paths.states, end)
        steps, scale = rollout.chosen(self.steps)
        total = sum(0.5 * square(rollout.control(paths, k) + paths.std[k] * adjoint[k + 1]) for k in steps)
        return scale * cast(Tensor, total), paths, value


@dataclass(frozen=True)
class PolicyGradient:
    """REINFORCE on the steps of the chain, with the importance ratio of PPO where a batch is used again.

    DDPO (Black et al. 2023) with kl=False, DPOK (Fan et al. 2023) with kl=True; log-probabilities are summed over the event,
    and the KL to the base is that of paths, its gradient through the states included. The reward may be any function.
    Rewards are neither scaled nor clipped: only a mean is subtracted, which leaves the gradient unbiased.

    Main arguments:
        clip: largest relative change of a step's density that is followed, where a batch is used again. A change of e is a
            KL of about e^2 / 2 nats.
        inner: updates made on one batch; 1 is unbiased, more are biased by the steps' ratios being taken one by one.
        kl: subtract the KL to the base; without it, nothing keeps the samples near the data, and temperature only scales.
        baseline: subtract the mean of the other samples' returns.
        steps: of the chain that each batch learns from, at random; all by default.
    """

    clip: float = 0.2
    inner: int = 1
    kl: bool = True
    baseline: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        _check_count("inner", self.inner)
        _check_count("steps", self.steps)
        if not self.clip > 0:
            raise InputError(f"clip={self.clip}: the largest relative change of a step's density is a positive number")

    def loss(self, rollout: Rollout) -> tuple[Tensor, Paths, Tensor]:
        paths, value, old = self._batch(rollout)
        gains = self._gains(paths, value / rollout.temperature)
        steps, scale = rollout.chosen(self.steps)
        total = torch.zeros_like(value)
        for k in steps:
            mean, std = rollout.chain.kernel(rollout.tuned, paths.states[k], k)
            log_prob = log_density(paths.states[k + 1], mean, std)
            ratio = torch.exp(log_prob - (log_prob.detach() if old is None else old[k]))
            gain = torch.minimum(ratio * gains[k], ratio.clamp(1 - self.clip, 1 + self.clip) * gains[k])
            total = total - gain
            if self.kl:
                total = total + 0.5 * square((mean - paths.base[k]) / std)
        return scale * total, paths, value

    def _batch(self, rollout: Rollout) -> tuple[Paths, Tensor, Tensor | None]:
        """Paths, rewards, and log-densities of the steps when the paths were drawn; None where that is now."""
        memory = rollout.memory
        left, size = memory.get("left", 0), len(rollout.start)
        if left and len(memory["value"]) == size:
            memory["left"] = left - 1
            return memory["paths"], memory["value"], memory["old"]
        paths = rollout.paths()
        value = rewarded(rollout.reward, paths.states[-1]).detach()
        if self.inner > 1:
            means = [b + s * u for b, s, u in zip(paths.base, paths.std, paths.controls, strict=True)]
            old = [log_density(x, m, s) for x, m, s in zip(paths.states[1:], means, paths.std, strict=True)]
            memory.update(paths=paths, value=value, old=old, left=self.inner - 1)
        return paths, value, None

    def _gains(self, paths: Paths, value: Tensor) -> Tensor:
        """What comes of step k: r / lambda less the KL of later steps, less the mean of the others', (K, B)."""
        gains = value.expand(len(paths.controls), -1)
        if self.kl:
            gains = gains - after(paths.step_kl)
        if self.baseline and gains.shape[1] > 1:
            gains = (gains - gains.mean(1, keepdim=True)) * (gains.shape[1] / (gains.shape[1] - 1))
        return gains


@dataclass(frozen=True)
class DirectBackpropagation:
    """The gradient of the reward through the sampler itself (Clark et al. 2023; Prabhudesai et al. 2023), and of the KL.

    The reward must be differentiable. Memory grows with the steps that are differentiated.

    Main arguments:
        last: steps of the chain, counted from its end, through which the gradient goes; all by default, which is exact.
    """

    last: int | None = None

    def __post_init__(self) -> None:
        _check_count("last", self.last)

    def loss(self, rollout: Rollout) -> tuple[Tensor, Paths, Tensor]:
        chain, cut = rollout.chain, max(rollout.chain.length - (self.last or rollout.chain.length), 0)
        early = Chain(chain.solver, chain.times[: cut + 1])
        late = Chain(chain.solver, chain.times[cut:])
        with torch.no_grad():
            first = follow(early, rollout.tuned, rollout.base, rollout.start, rollout.noise)
        rest = follow(late, rollout.tuned, rollout.base, first.states[-1], rollout.noise)
        value = rewarded(rollout.reward, rest.states[-1])
        if not value.requires_grad:
            raise InputError(
                "the reward has no gradient; give one in differentiable torch operations, or how=sf.reward.PolicyGradient()"
            )
        loss = rest.step_kl.sum(0) - value / rollout.temperature
        paths = Paths(
            *(
                [v.detach() for v in (*getattr(first, name), *getattr(rest, name)[name == "states" :])]
                for name in ("states", "base", "std", "controls", "noise")
            )
        )
        return loss, paths, value.detach()


class Critic(nn.Module):
    """V(x, t), (B,): what is still to come, reward over temperature less KL, of the sample that is at x (B, *) at time t."""

    def __init__(self, size: int, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(size + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.to(x.dtype).to(x.device).expand(len(x)).unsqueeze(1)
        value: Tensor = self.body(torch.cat([x.flatten(1), time], 1)).squeeze(1)
        return value


@dataclass(frozen=True)
class ScoresAsActions:
    """Policy gradient in continuous time (Zhao et al. 2025, "Scores as actions"): the score is the action.

    The gradient is that of E[V(x_{k+1}, t_{k+1})] - |u_k|^2 / 2 over the steps, states held fixed: as exact as V is, of less
    variance than REINFORCE, and without a limit on the number of steps. V is learned by regression on what came of each
    state; the reward may be any function.

    Main arguments:
        critic: V, called as critic(x, t) -> (B,); a small network by default, which suits vectors. One without parameters is
            used as it is.
        updates, lr: steps of Adam on V for each batch, and their rate. V is not a part of checkpoints: a run that goes on
            learns it anew.
        steps: of the chain that each batch learns from, at random; all by default.
    """

    critic: Callable[[Tensor, Tensor], Tensor] | None = None
    updates: int = 20
    lr: float = 1e-3
    steps: int | None = None

    def __post_init__(self) -> None:
        _check_count("updates", self.updates)
        _check_count("steps", self.steps)
        if not self.lr > 0:
            raise InputError(f"lr={self.lr}: the critic's learning rate is a positive number")

    def loss(self, rollout: Rollout) -> tuple[Tensor, Paths, Tensor]:
        paths = rollout.paths()
        value = rewarded(rollout.reward, paths.states[-1]).detach()
        critic = self._fitted(rollout, paths, value / rollout.temperature)
        steps, scale = rollout.chosen(self.steps)
        total = torch.zeros_like(value)
        for k in steps:
            slope = _slope(critic, paths.states[k + 1], rollout.chain.times[k + 1])
            control = rollout.control(paths, k)
            total = total - inner(control, paths.std[k] * slope) + 0.5 * square(control)
        return scale * total, paths, value

    def _fitted(self, rollout: Rollout, paths: Paths, value: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The critic, after its updates on the returns of these paths."""
        memory, x = rollout.memory, rollout.start
        if "critic" not in memory:
            made = Critic(x[0].numel()).to(x) if self.critic is None else self.critic
            weights = [p for p in made.parameters() if p.requires_grad] if isinstance(made, nn.Module) else []
            memory["critic"] = made
            memory["fit"] = torch.optim.Adam(weights, lr=self.lr) if weights else None
        critic, fit = memory["critic"], memory["fit"]
        if fit is None:
            return critic  # type: ignore[no-any-return]
        to_come = value - after(paths.step_kl)  # from x_{k+1} on
        for _ in range(self.updates):
            k = int(torch.randint(rollout.chain.length, (), generator=rollout.pick, device=rollout.pick.device))
            with differentiation():
                error = wide(critic(paths.states[k + 1], rollout.chain.times[k + 1])) - to_come[k]
                loss = torch.square(error).mean()
            fit.zero_grad()
            loss.backward()
            fit.step()
        return critic  # type: ignore[no-any-return]


def after(step_kl: Tensor) -> Tensor:
    """Sum over the later steps, without the step itself: (K, B)."""
    return step_kl.sum(0) - step_kl.cumsum(0)


def _slope(critic: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    with differentiation():
        point = x.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(point, t).sum(), point)
    return slope


def _check_count(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name}={value!r}: give a whole number, 1 or more")
