"""What is known of x_0 given x_t: its mean and its covariance, by the derivative of the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scorefield.coefficients import Time, as_time, expand
from scorefield.differentiate import differentiation, variable
from scorefield.dtypes import exact, wide
from scorefield.sde import GaussianSDE

TOGETHER = 2**14
"""Products with the Jacobians of so many samples at a time."""


@dataclass(frozen=True)
class Tweedie:
    r"""The first two moments of p(x_0 | x_t), exact where the denoiser D is (Efron 2011; Meng et al. 2021, eq. 8).

    E[x_0 | x_t] = D(x_t),   Cov[x_0 | x_t] = sigma^2 / alpha dD/dx_t

    Attributes:
        x: states (B, *), the variable of the derivative. data: D, like x, with its graph.
        ratio: sigma^2 / alpha, float64, () or (B,); 0 where alpha = 0, where x_t says nothing of x_0.
        keep: whether products are themselves to be differentiated.
    """

    x: Tensor
    data: Tensor
    ratio: Tensor
    keep: bool = False

    @property
    def mean(self) -> Tensor:
        """E[x_0 | x_t], like x, without a graph unless it is to be kept."""
        return self.data if self.keep else self.data.detach()

    def covariance(self, v: Tensor) -> Tensor:
        """Cov[x_0 | x_t] v, like x; a product with the network."""
        with differentiation():
            (back,) = torch.autograd.grad(self.data, self.x, v, retain_graph=True, create_graph=self.keep)
            return expand(self.ratio, self.x) * back

    def mean_variance(self, probe: Tensor) -> Tensor:
        """Unbiased estimate of tr Cov / d from one random sign vector for each sample, (B,) (Hutchinson 1990)."""
        return (wide(self.covariance(probe)) * wide(probe)).flatten(1).mean(1)

    def matrix(self) -> Tensor:
        """Cov[x_0 | x_t] written out and made symmetric, (B, D, D) float64 on the CPU; a product for each dimension."""
        with differentiation():
            jacobian = exact(jacobian_of(self.data.flatten(1), self.x, self.keep))
        return expand(0.5 * self.ratio, jacobian) * (jacobian + jacobian.mT)


def tweedie(
    denoise: Callable[[Tensor], Tensor],
    sde: GaussianSDE,
    x: Tensor,
    t: Time,
    keep: bool | None = None,
    written: bool = False,
) -> Tweedie:
    """The moments at states x (B, *) and time t, whatever mode of torch the caller is in.

    Main arguments:
        denoise: x -> E[x_0 | x_t = x], one evaluation of which is made.

    Other arguments:
        keep: keep the graph of everything, to differentiate further; by default where gradients are on.
        written: `matrix` will be asked for, whose many directions at once fused attention does not take.
    """
    time = as_time(t)
    keep = torch.is_grad_enabled() if keep is None else keep
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    with differentiation(), sdpa_kernel(SDPBackend.MATH) if written else nullcontext():
        live = variable(x, keep)
        data = denoise(live)
    return Tweedie(live, data, torch.where(alpha > 0, sigma**2 / alpha, torch.zeros_like(alpha)), keep)


def jacobian_of(value: Tensor, point: Tensor, keep: bool = False) -> Tensor:
    """d value / d point of each sample, (B, M, D), from value (B, M) and its graph; several rows at a time."""
    count, m = value.shape
    units = torch.eye(m, dtype=value.dtype, device=value.device).unsqueeze(1).expand(m, count, m)
    size = max(1, TOGETHER // max(count, 1))
    rows = [
        torch.autograd.grad(
            value, point, units[i : i + size], retain_graph=True, create_graph=keep, is_grads_batched=True
        )[0]
        for i in range(0, m, size)
    ]
    return torch.cat(rows).flatten(2).transpose(0, 1)
