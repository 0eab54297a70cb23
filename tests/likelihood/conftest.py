"""Models whose likelihood is known: a Gaussian with a rotated covariance, and a mixture."""

import pytest
import torch

import scorefield as sf


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rotated(d: int = 4, seed: int = 0) -> torch.Tensor:
    """A covariance that is not diagonal: a diagonal one would hide the variance of Rademacher probes."""
    a = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.3 * a @ a.mT + 0.1 * torch.eye(d, dtype=torch.float64)


@pytest.fixture
def gaussian() -> sf.GaussianMixture:
    mean = torch.tensor([[0.5, -0.3, 0.2, 0.1]], dtype=torch.float64)
    return sf.GaussianMixture(mean, rotated().unsqueeze(0), None, sf.VP())


@pytest.fixture
def mixture() -> sf.GaussianMixture:
    means = torch.tensor([[0.5, -0.3, 0.2, 0.1], [-0.6, 0.4, 0.0, -0.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, torch.stack([rotated(), 0.5 * rotated(seed=1)]), [0.3, 0.7], sf.VP())
