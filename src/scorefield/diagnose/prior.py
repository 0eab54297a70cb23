"""The law of noised data at a time, as a Gaussian or a mixture: where sampling may start before T."""

from __future__ import annotations

import torch
from torch import Tensor

from scorefield.analytic import GaussianMixture, Marginal
from scorefield.coefficients import batch_time
from scorefield.dtypes import exact
from scorefield.gaussians import fit_gaussians
from scorefield.inputs import as_tensor, whole
from scorefield.sde import GaussianSDE
from scorefield.sdes import VP

SWEEPS, SETTLED = 300, 1e-7
"""Of EM at most, and the gain in nats per row below which it stops."""
DRAWS = 8192
"""Rows of noised data, at least, that a mixture is fitted to: each item of the data is noised as often as that takes."""


def fit_prior(sde: GaussianSDE, data: Tensor, t: float, components: int = 1, seed: int = 0) -> Marginal:
    r"""The law of x_t as a Gaussian, or a Gaussian mixture of full covariances (Franzese et al. 2023, sec. 3.2).

    One component has the moments of x_t exactly, N(alpha m, alpha^2 S + sigma^2 I), m and S being those of the data. More of
    them are fitted by maximum likelihood to draws of x_t (EM; Dempster et al. 1977), from centres spread as by k-means++.
    It takes the place of the nominal prior where sampling starts at t < T: `sample(model, n, prior=p, t_start=t)`, and
    `log_prob(model, x, prior=p, t_end=t)`.

    Main arguments:
        data: (N, *), in the model's range; not the items whose likelihood is wanted.
        t: time in (0, T].
        components: number of Gaussians. seed: of noise and first centres.

    Returns:
        A distribution with `draw`, `sample` and `log_prob`, float64; `.mixture` has its means, covariances and weights.

    Raises:
        ValueError: a time outside (0, T], data that are no floats (N, *) or have fewer than two rows for each component.
    """
    data, components = as_tensor(data, "data"), whole(components, "components", "the number of Gaussians")
    if data.ndim < 2 or not data.is_floating_point() or not bool(torch.isfinite(data).all()):
        raise ValueError(f"data has shape {tuple(data.shape)} and dtype {data.dtype}; give finite floats, (N, *)")
    if len(data) < 2 * components:
        raise ValueError(f"data has {len(data)} rows; {components} components need {2 * components} or more")
    t = float(batch_time(t, torch.empty(1, device="cpu")))
    if not 0 < t <= sde.T:
        raise ValueError(f"t={t}: give a time in (0, {sde.T}]")
    alpha, sigma, flat = float(sde.alpha(t)), float(sde.sigma(t)), exact(data).flatten(1)
    eye = torch.eye(flat.shape[1], dtype=torch.float64, device="cpu")
    if components == 1:
        cov = torch.cov(flat.T).reshape(eye.shape)
        means, covs, weights = (
            alpha * flat.mean(0, keepdim=True),
            (alpha**2 * cov + sigma**2 * eye)[None],
            torch.ones(1, device="cpu"),
        )
    else:
        draws = torch.Generator().manual_seed(seed)
        often = -(-DRAWS // len(flat))
        rows = alpha * flat.repeat(often, 1)
        rows = rows + sigma * torch.randn(rows.shape, generator=draws, dtype=torch.float64, device=draws.device)
        # Every component of noised data is at least as wide as the noise; a tenth of it keeps EM from single rows.
        fitted = fit_gaussians(rows, components, seed, floor=0.1 * sigma**2, settled=SETTLED, sweeps=SWEEPS)
        means, covs, weights = fitted
    # Read at time 0 of a process that has no noise there, it is the mixture itself.
    return GaussianMixture(means.reshape(-1, *data.shape[1:]), covs, weights, VP()).marginal(0.0)
