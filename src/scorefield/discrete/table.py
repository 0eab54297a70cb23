"""The exact model of a small joint law: every view by summation, the oracle of what is discrete."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.discrete.model import JumpModel
from scorefield.discrete.process import JumpProcess
from scorefield.dtypes import exact
from scorefield.randomness import Seed, source

LARGEST = 2_000_000


class Table(JumpModel):
    """A joint law over L positions of S data states, (S, .., S), under a jump process; everything float64.

    Main arguments:
        joint: probabilities, not negative, normalised here.
        process: of S states, or S and a mask.

    Raises:
        ValueError: a joint of another shape, with a negative entry or without a positive one.
    """

    def __init__(self, joint: Tensor, process: JumpProcess) -> None:
        joint = exact(joint)
        data = process.data_states
        if joint.ndim < 1 or any(size != data for size in joint.shape):
            raise ValueError(
                f"joint has shape {tuple(joint.shape)}; the process has {data} data states at every position"
            )
        if joint.numel() > LARGEST:
            raise ValueError(f"joint has {joint.numel()} entries; a table is for up to {LARGEST}")
        if not bool((joint >= 0).all()) or not 0 < float(joint.sum()) < torch.inf:
            raise ValueError("joint has entries that are no probabilities; give non-negative numbers, not all zero")
        super().__init__(torch.nn.Identity(), process, (joint.ndim,))
        pad = [0, process.S - data] * joint.ndim
        self.register_buffer("joint", torch.nn.functional.pad(joint / joint.sum(), pad))

    @property
    def table(self) -> Tensor:
        """The joint law of the data, (S, .., S)."""
        return cast(Tensor, self.joint)

    def law(self, t: Time = 0.0) -> Tensor:
        """p_t, (S, .., S) with the mask among the states; t is a float."""
        matrix = self.process.transition(t)
        if matrix.ndim > 2:
            raise ValueError(f"t has shape {tuple(matrix.shape[:-2])}; the law is that of one time, a float")
        p = self.table
        for d in range(p.ndim):
            p = torch.movedim(torch.movedim(p, d, -1) @ matrix, -1, d)
        return p

    def log_prob(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """log p_t(x) in nats: (B, L) -> (B,); t is a float."""
        self.process.check(x)
        return torch.log(self.law(t)[tuple(x.long().T)])

    def sample(self, n: int, t: Time = 0.0, seed: Seed = None) -> Tensor:
        """n exact draws of x_t, (n, L) int64; t is a float."""
        p = self.law(t)
        edges = torch.cumsum(p.flatten(), 0)
        u = source(seed, n).uniform((n, 1)).squeeze(1) * edges[-1]
        index = torch.searchsorted(edges, u, right=True).clamp_max(p.numel() - 1)
        return torch.stack(torch.unravel_index(index, p.shape), 1)

    def ratio(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        """p_t(y) / p_t(x) for every y that differs from x in one position, exact for every pair of states."""
        here = self._joint_with(x, t, t)
        return here / here.gather(-1, x.long().unsqueeze(-1))

    def marginal(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        here = self._joint_with(x, t, t)
        return here / here.sum(-1, keepdim=True)

    def posterior(self, x: Tensor, t: Time, **cond: Any) -> Tensor:
        here = self._joint_with(x, t, 0.0) * self.process.column(x, self._total(x, t), torch.float64)
        return here / here.sum(-1, keepdim=True)

    def staggered(self, x: Tensor, t: Time, s: Time, **cond: Any) -> Tensor:
        return self._joint_with(x, t, s) / self._joint_with(x, t, t).gather(-1, x.long().unsqueeze(-1))

    def _joint_with(self, x: Tensor, t: Time, own: Time) -> Tensor:
        """p(a position in each state at time `own`, the others as in x at time t), (B, L, S)."""
        self.process.check(x)
        table, length = self.table.cpu(), self.table.ndim
        if x.ndim != 2 or x.shape[1] != length:
            raise ValueError(f"x has event shape {tuple(x.shape[1:])}; this table has {self.shape}")
        columns = self.process.column(x, self._total(x, t), torch.float64).cpu()
        parts = []
        for d in range(length):
            p = table.expand(len(x), *table.shape)
            for e in reversed(
                range(length)
            ):  # the last axis first, so that the places of the others stay what they are
                if e != d:
                    p = torch.movedim(p, 1 + e, -1)
                    p = (p @ columns[:, e].reshape(len(x), *[1] * (p.ndim - 3), -1, 1)).squeeze(-1)
            parts.append(p)
        return self.process.push(torch.stack(parts, 1), self._total(x, own)).to(x.device)
