"""A user's own operator in 3-D: a volume seen through its shadows along the three axes.

python examples/tomography.py
"""

import torch
from torch import Tensor

import scorefield as sf


class Shadows:
    """Line integrals of (B, 1, D, H, W) along three axes: (B, 3, N). Its adjoint is found by differentiation."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(axis).flatten(1) for axis in (2, 3, 4)], 1)


def prior(side: int = 6) -> sf.GaussianMixture:
    """Smooth blobs on a cube (1, side, side, side); any trained model could stand here."""
    line = torch.arange(side, dtype=torch.float64)
    points = torch.cartesian_prod(line, line, line)
    distance = torch.cdist(points, points).square()
    smooth = 0.3 * torch.exp(-distance / (2 * 2.0**2)) + 1e-3 * torch.eye(side**3)
    centre = torch.exp(-(points - (side - 1) / 2).square().sum(1) / 6)
    return sf.GaussianMixture(centre.reshape(1, 1, side, side, side), smooth.unsqueeze(0), None, sf.VP())


def main(samples: int = 16, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """(truth, posterior mean, posterior standard deviation), each (1, side, side, side)."""
    model, noise = prior(), 0.02
    truth = model.sample(1, seed=3)
    clean = Shadows()(truth)
    y = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(truth)
    x = sf.sample(model | sf.Posterior(Shadows(), y, noise, **options), samples, seed=0)
    return truth[0], x.mean(0), x.std(0)


if __name__ == "__main__":
    truth, mean, std = main()
    print(f"error of the mean {float((mean - truth).square().mean().sqrt()):.3f}, claimed {float(std.mean()):.3f}")
