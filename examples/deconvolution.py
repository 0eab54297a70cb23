"""A user's own operator in 1-D: a signal that a causal instrument has smeared, restored with error bars.

python examples/deconvolution.py
"""

import torch
from torch import Tensor

import scorefield as sf


class Smear:
    """An instrument that answers with an exponential tail. Five lines: a call; its adjoint is found by differentiation."""

    def __call__(self, x: Tensor) -> Tensor:
        tail = torch.exp(-torch.arange(x.shape[-1]).to(x) / 4)
        n = 2 * x.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(tail / tail.sum(), n), n)[..., : x.shape[-1]]


def prior(length: int = 48) -> sf.GaussianMixture:
    """Smooth signals (1, length) around two base lines; any trained model could stand here."""
    i = torch.arange(length, dtype=torch.float64)
    smooth = 0.2 * torch.exp(-((i[:, None] - i) ** 2) / (2 * 3.0**2)) + 1e-3 * torch.eye(length)
    base = torch.stack([torch.sin(i / 6), torch.zeros_like(i)]).unsqueeze(1)
    return sf.GaussianMixture(base, smooth.expand(2, -1, -1), None, sf.VP())


def main(samples: int = 32, **options: object) -> tuple[Tensor, Tensor, Tensor]:
    """(truth, posterior mean, posterior standard deviation), each (1, length)."""
    model, noise = prior(), 0.02
    truth = model.sample(1, seed=3)
    y = Smear()(truth) + noise * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1)).to(truth)
    x = sf.sample(model | sf.Posterior(Smear(), y, noise, **options), samples, seed=0)
    return truth[0], x.mean(0), x.std(0)


if __name__ == "__main__":
    truth, mean, std = main()
    print(f"error of the mean {float((mean - truth).square().mean().sqrt()):.3f}, claimed {float(std.mean()):.3f}")
