"""Muon: momentum whose every matrix is made orthogonal, which learns more from each step than Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
SMALLEST = 16
"""Matrices with fewer rows or columns (first and last layers), and vectors, are left to Adam."""


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on matrices and convolution kernels, Adam on the rest.

    A kernel (out, in, *size) counts as the matrix (out, in * size). Its update is the nearest semi-orthogonal matrix to
    the Nesterov momentum, by five Newton-Schulz steps, times 10 lr max(1, rows / columns)^(1/2), so that the lr of Adam
    suits both.

    Main arguments:
        lr: learning rate of the Adam part. momentum: of the Muon part. betas, eps: of the Adam part.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        result = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            live = [p for p in group["params"] if p.grad is not None]
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in live:
                if is_matrix(p):
                    shapes.setdefault(tuple(p.shape), []).append(p)
                else:
                    self._adam(p, group)
            for same in shapes.values():  # one batched product instead of many small ones
                self._orthogonal(same, group)
        return result

    def _orthogonal(self, same: list[nn.Parameter], group: dict[str, Any]) -> None:
        pushes = []
        for p in same:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            pushes.append(torch.lerp(p.grad, momentum, group["momentum"]).flatten(1))
        directions = orthogonalise(torch.stack(pushes))
        rows, columns = directions.shape[1:]
        rate = 10 * group["lr"] * max(1.0, rows / columns) ** 0.5
        for p, direction in zip(same, directions, strict=True):
            p.add_(direction.reshape(p.shape), alpha=-rate)

    def _adam(self, p: nn.Parameter, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        mean = state.setdefault("exp_avg", torch.zeros_like(p))
        square = state.setdefault("exp_avg_sq", torch.zeros_like(p))
        step = state.setdefault("step", torch.zeros((), dtype=torch.float64, device="cpu"))
        step += 1
        one, two = group["betas"]
        mean.lerp_(p.grad, 1 - one)
        square.mul_(two).addcmul_(p.grad, p.grad, value=1 - two)
        scale = float((1 - two**step) ** 0.5)
        p.addcdiv_(mean, square.sqrt().div_(scale).add_(group["eps"]), value=-group["lr"] / float(1 - one**step))


def is_matrix(p: Tensor) -> bool:
    """Whether Muon, rather than Adam, updates a parameter."""
    return p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= SMALLEST and p.shape[1] >= SMALLEST


def orthogonalise(matrices: Tensor) -> Tensor:
    """Singular values of each matrix (N, rows, columns) brought near 1 (0.7 to 1.2), its singular vectors kept."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-8)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
