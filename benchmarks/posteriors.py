"""Posterior samplers against exact posteriors: the table of docs/inverse.md.

    python benchmarks/posteriors.py                # about three minutes on one core
    python benchmarks/posteriors.py --n 500        # a quick look

A rotated Gaussian in 8 dimensions with variances from 0.05 to 3 seen through 3 projections, and two Gaussians in the plane
seen through the mean of both coordinates, both with noise of standard deviation 0.3. Errors are relative (Frobenius) errors
of the samples' mean and covariance; the share is that of samples in the right-hand mode.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import scorefield as sf
from scorefield import inverse

NOISE = 0.3
METHODS = ("mmps", "tmpd", "pigdm", "dps", "diffpir", "ddrm", "smc")


def normal(*shape: int, seed: int) -> Tensor:
    """A fixed draw."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def condition(mean: Tensor, cov: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance given y = h x + noise, and log p(y)."""
    spread = h @ cov @ h.T + NOISE**2 * torch.eye(len(h))
    gain = cov @ h.T @ torch.linalg.inv(spread)
    evidence = torch.distributions.MultivariateNormal(h @ mean, spread).log_prob(y)
    return mean + gain @ (y - h @ mean), cov - gain @ h @ cov, evidence


def gaussian() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means, covariances and weights of the data, operator and measurement."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=torch.float64)).Q
    mean = 0.5 * torch.randn(8, generator=g, dtype=torch.float64)
    cov = basis @ torch.diag(torch.logspace(-1.3, 0.5, 8, dtype=torch.float64)) @ basis.T
    return mean[None], 0.5 * (cov + cov.T)[None], torch.ones(1), normal(3, 8, seed=3) / 8**0.5, normal(3, seed=4)


def mixture() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same for the two modes."""
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.3]], dtype=torch.float64)
    covs = torch.stack([torch.tensor([[0.2, 0.1], [0.1, 0.15]]).double(), 0.1 * torch.eye(2).double()])
    return means, covs, torch.tensor([0.4, 0.6]), torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0.2]).double()


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5000, help="samples")
    n = parser.parse_args().n
    for name, (means, covs, weights, h, y) in (("gaussian", gaussian()), ("mixture", mixture())):
        parts = [condition(m, c, h, y) for m, c in zip(means, covs, strict=True)]
        shares = torch.softmax(torch.log(weights.double()) + torch.stack([p[2] for p in parts]), 0)
        mean = sum(w * p[0] for w, p in zip(shares, parts, strict=True))
        cov = sum(w * (p[1] + torch.outer(p[0] - mean, p[0] - mean)) for w, p in zip(shares, parts, strict=True))
        model = sf.GaussianMixture(means, covs, weights, sf.VP())
        operator = inverse.Dense(h, (means.shape[1],))
        truth = sf.GaussianMixture(
            torch.stack([p[0] for p in parts]), torch.stack([0.5 * (p[1] + p[1].T) for p in parts]), shares, sf.VP()
        ).sample(100_000, seed=torch.Generator().manual_seed(9))
        print(f"{name}: exact share {float((truth[:, 0] > 0).double().mean()):.3f}")
        for method in METHODS:
            x = inverse.restore(model, operator, y[None], NOISE, n, method, seed=1).samples[0]  # type: ignore[arg-type]
            errors = float((x.mean(0) - mean).norm() / mean.norm()), float((x.T.cov() - cov).norm() / cov.norm())
            share = float((x[:, 0] > 0).double().mean())
            print(f"  {method:8} mean {errors[0]:.3f}  covariance {errors[1]:.3f}  share {share:.3f}", flush=True)


if __name__ == "__main__":
    main()
