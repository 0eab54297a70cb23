"""Gaussian approximations of p_T."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.dtypes import exact
from scorefield.prior import GaussianPrior
from scorefield.sde import GaussianSDE

_FULL_LIMIT = 4096


def moments(
    sde: GaussianSDE, data: Tensor | None = None, *, mean: Tensor | None = None, cov: Tensor | float | None = None
) -> GaussianPrior:
    """The Gaussian with the mean and covariance of x_T: N(alpha_T m, alpha_T^2 S + sigma_T^2 I).

    It removes most of the bias of the nominal prior, which takes p_T for N(0, sigma_T^2 I).

    Main arguments:
        data: a sample (N, *) of the data, from which mean and covariance are taken: the full covariance where
            N > D and D <= 4096, the variances otherwise. Not the samples whose likelihood is wanted.
        mean: (*). cov: (D, D), variances (*), or one variance; in place of data.

    Raises:
        ValueError: neither data nor both moments are given, or their shapes do not fit.
    """
    if (data is None) == (mean is None) or (mean is None) != (cov is None):
        raise ValueError("moments: give either data= or both mean= and cov=")
    if data is not None:
        if len(data) < 2:
            raise ValueError(f"moments: data has {len(data)} samples; at least 2 are needed for a variance")
        rows = exact(data)
        mean, flat = rows.mean(0), rows.flatten(1)
        full = flat.shape[1] <= min(_FULL_LIMIT, len(flat) - 1)
        spread = torch.cov(flat.T).reshape(flat.shape[1], -1) if full else rows.var(0)
    else:
        assert mean is not None
        mean = exact(mean)
        spread = exact(cov)
        spread = spread.expand(mean.shape) if spread.ndim == 0 else spread
    alpha, sigma = sde.alpha(sde.T), sde.sigma(sde.T)
    d = mean.numel()
    if spread.shape == mean.shape:
        return GaussianPrior(alpha * mean, torch.sqrt(alpha**2 * spread + sigma**2))
    if spread.shape != (d, d):
        raise ValueError(
            f"moments: cov has shape {tuple(spread.shape)}; give ({d}, {d}), {tuple(mean.shape)} or one number"
        )
    eye = torch.eye(d, dtype=torch.float64, device="cpu")
    return GaussianPrior(alpha * mean, torch.linalg.cholesky(alpha**2 * spread + sigma**2 * eye))
