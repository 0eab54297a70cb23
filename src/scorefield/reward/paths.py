"""Chains of Gaussian steps: their paths, their densities, what they cost against a base, and the lean adjoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.differentiate import differentiation
from scorefield.dtypes import wide
from scorefield.errors import InputError
from scorefield.inputs import whole
from scorefield.model import ScoreModel
from scorefield.randomness import Noise
from scorefield.solve.exponential import DDIM
from scorefield.solve.integrate import Field, Solver
from scorefield.times import GridFn, GridName

Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Chain:
    """The steps of a solver down a grid.

    Main arguments:
        solver: one with a `kernel`, such as `DDIM(eta=1.0)` or `EulerMaruyama()`. times: falling, (K + 1,), float64.
    """

    solver: Solver
    times: Tensor

    @classmethod
    def of(
        cls,
        model: ScoreModel,
        solver: Solver | None = None,
        steps: int = 30,
        grid: GridName | GridFn | Tensor | None = None,
    ) -> Chain:
        """The chain by which a model samples: `DDIM(eta=1.0)` unless given, from T to `sde.t_min`, on its own grid.

        Raises:
            ValueError: a solver that does not fit the process, or fewer than one step.
        """
        solver, sde = DDIM(eta=1.0) if solver is None else solver, model.sde
        solver.check_process(sde)
        count = None if isinstance(grid, Tensor) else whole(steps, "chain_steps", "the number of steps of the chain")
        return cls(solver, solver.grid_for(sde, (sde.T, sde.t_min), count, grid))

    @property
    def length(self) -> int:
        """Number of steps K."""
        return len(self.times) - 1

    def kernel(self, field: Field, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Mean, like x (B, *), and standard deviation of step k from x.

        Raises:
            InputError: the step has no noise, so that paths have no density.
        """
        t, s = self.times[k], self.times[k + 1]
        mean, std = self.solver.kernel(field, x, t, s)
        if not bool((std > 0).all()):
            raise InputError(
                f"solver={self.solver!r} has no noise in its step from t={float(t):.4g} to {float(s):.4g}; "
                "give one with noise, such as sf.DDIM(eta=1.0), and a grid that ends above 0"
            )
        return mean, std


@dataclass(frozen=True)
class Paths:
    """Paths of the tuned chain, and what they say about the base.

    Attributes:
        states: x_0 .. x_K from noise to data, each (B, *). base: means of the base's steps from x_k. std: of the steps.
        controls: u_k = (tuned mean - base mean) / std, like x. noise: z_k, like x.
    """

    states: list[Tensor]
    base: list[Tensor]
    std: list[Tensor]
    controls: list[Tensor]
    noise: list[Tensor]

    @property
    def step_kl(self) -> Tensor:
        """KL of each step to that of the base, |u_k|^2 / 2, in nats: (K, B)."""
        return torch.stack([0.5 * square(u) for u in self.controls])

    @property
    def log_ratio(self) -> Tensor:
        """log dP_base / dP_tuned of each path in nats, - sum_k (u_k.z_k + |u_k|^2 / 2) (Girsanov): (B,)."""
        cross = [inner(u, z) for u, z in zip(self.controls, self.noise, strict=True)]
        return -torch.stack(cross).sum(0) - self.step_kl.sum(0)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """a.b of each sample, (B,); in float64 on the CPU."""
    return (wide(a) * wide(b)).flatten(1).sum(1)


def square(a: Tensor) -> Tensor:
    """|a|^2 of each sample, (B,); in float64 on the CPU."""
    return inner(a, a)


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2 I) in nats, summed over the event, (B,): a mean over it would scale every gradient by 1 / D."""
    spread = torch.log(wide(std)).expand(x.shape).flatten(1).sum(1)
    return -0.5 * square((x - mean) / std) - spread - 0.5 * math.log(2 * math.pi) * math.prod(x.shape[1:])


def follow(chain: Chain, tuned: Field, base: Field, x: Tensor, noise: Noise) -> Paths:
    """Paths of the tuned chain from x (B, *), with the base's means along them; differentiable where gradients are on."""
    states, means, stds, controls, draws = [x], [], [], [], []
    for k in range(chain.length):
        mean, std = chain.kernel(tuned, x, k)
        reference, _ = chain.kernel(base, x, k)
        z = noise.like(x)
        controls.append((mean - reference) / std)
        x = mean + std * z
        states.append(x)
        means.append(reference)
        stds.append(std)
        draws.append(z)
    return Paths(states, means, stds, controls, draws)


def rewarded(reward: Reward, x: Tensor) -> Tensor:
    """r(x), (B,), float64 on the CPU's samples.

    Raises:
        InputError: the reward is of another shape, or not finite.
    """
    value = reward(x)
    if not isinstance(value, Tensor) or value.shape != (len(x),):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the reward returned {got}; expected one number a sample, a tensor of shape ({len(x)},)")
    bad = ~torch.isfinite(value.detach())
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise InputError(
            f"the reward is {float(value[first])} for {int(bad.sum())} of {len(x)} samples, first sample {first}; "
            "give finite numbers"
        )
    return wide(value)


def reward_gradient(reward: Reward, x: Tensor) -> Tensor:
    """grad r(x), like x.

    Raises:
        InputError: the reward cannot be differentiated.
    """
    with differentiation():
        point = x.detach().clone().requires_grad_()
        value = rewarded(reward, point)
        if not value.requires_grad:
            raise InputError(
                "the reward has no gradient; give one in differentiable torch operations, or how=sf.reward.PolicyGradient()"
            )
        (slope,) = torch.autograd.grad(value.sum(), point)
    return slope


def lean_adjoint(chain: Chain, base: Field, states: list[Tensor], end: Tensor) -> list[Tensor]:
    """a_K = end, a_k = (d m_base / dx (x_k))^T a_{k+1}, for k = K .. 0 (Domingo-Enrich et al. 2024, eq. 38), each like x.

    No gradient goes through the states, and the network's parameters get none.
    """
    adjoint = [end]
    for k in reversed(range(chain.length)):
        with differentiation():
            point = states[k].detach().clone().requires_grad_()
            mean, _ = chain.kernel(base, point, k)
            (value,) = torch.autograd.grad((mean * adjoint[-1]).sum(), point)
        adjoint.append(value)
    return adjoint[::-1]
