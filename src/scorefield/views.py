"""The four views of one prediction, and how one becomes another."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from scorefield.coefficients import Time, batch_time, expand
from scorefield.sde import GaussianSDE

View: TypeAlias = Literal["denoise", "score", "noise", "velocity"]


Predict: TypeAlias = Literal["noise", "score", "data", "velocity", "edm"]


Pair: TypeAlias = "tuple[Tensor, Tensor]"


def convert(name: View, given: View, value: Tensor, x: Tensor, t: Time, sde: GaussianSDE) -> Tensor:
    """One view of x (B, *) at time t from the value of another, like x."""
    time = batch_time(t, x)
    own, out = view_coefficients(name, given, sde, time, (sde.alpha(time), sde.sigma(time)))
    return expand(own, x) * x + expand(out, x) * value


def view_coefficients(
    name: View, given: str, sde: GaussianSDE, t: Tensor, alpha_sigma: Pair, sigma_data: float = 0.5
) -> Pair:
    """(a, b), float64 and of the shape of t: the view of that name is a x + b times what is given."""
    alpha, sigma = alpha_sigma
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    if name == given:
        return zero, one
    data: Pair
    noise: Pair
    match given:
        case "noise":
            data, noise = (1 / alpha, -sigma / alpha), (zero, one)
        case "score":
            data, noise = (1 / alpha, sigma**2 / alpha), (zero, -sigma)
        case "data" | "denoise":
            data, noise = (zero, one), (1 / sigma, -alpha / sigma)
        case "velocity":
            d_alpha, d_sigma = sde.derivatives(t)
            w = alpha * d_sigma - sigma * d_alpha
            data, noise = (d_sigma / w, -sigma / w), (-d_alpha / w, alpha / w)
        case _:
            # Karras et al. 2022, eq. 7, written for x = alpha x_0 + sigma eps, so that alpha = 0 is no special case.
            total = torch.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
            data = (alpha * (sigma_data / total) ** 2, sigma * sigma_data / total)
            noise = (sigma / total**2, -alpha * sigma_data / total)
    match name:
        case "denoise":
            return data
        case "noise":
            return noise
        case "score":
            return -1 / sigma * noise[0], -1 / sigma * noise[1]
        case _:
            d_alpha, d_sigma = sde.derivatives(t)
            return d_alpha * data[0] + d_sigma * noise[0], d_alpha * data[1] + d_sigma * noise[1]
