"""DDRM: its marginals are those of the diffusion, whatever was measured; its coordinates decompose the operator."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield import inverse
from scorefield.inverse.ddrm import spectrum_of

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (inverse.Mask(normal(3, 4, 6) > 0), (3, 4, 6)),
        (inverse.Grayscale((0.2, 0.5, 0.3)), (3, 4, 6)),
        (inverse.Downsample(2, inverse.bicubic(2)), (3, 4, 6)),
        (inverse.Blur(normal(3, 3)), (1, 4, 6)),
        (inverse.Downsample(2) @ inverse.Grayscale(), (3, 4, 6)),
        (inverse.Fourier(normal(4, 6) > 0), (1, 4, 6)),
    ],
    ids=["mask", "gray", "bicubic", "blur", "composed", "fourier"],
)
def test_decomposition(operator, shape):
    """V is orthonormal, s^2 are the eigenvalues of A^T A along it, and U^T A x / s = V^T x where s > 0."""
    x, s = normal(2, *shape), spectrum_of(operator, shape)
    z = s.into(x)
    assert torch.allclose(s.back(z), x, atol=1e-12)
    assert torch.allclose(z.norm(dim=1), x.flatten(1).norm(dim=1))
    assert torch.allclose(s.into(operator.adjoint(operator(x))), s.singular**2 * z, atol=1e-10)
    assert torch.allclose(s.read(operator(x)), torch.where(s.singular > 0, z, 0.0), atol=1e-8)


@pytest.mark.parametrize("t_min", [0.6, 0.3, 0.1])
def test_marginals_are_those_of_the_diffusion(t_min):
    """Kawar et al. 2022, Theorem: with the true x_0 for its estimate, x_t ~ N(alpha x_0, sigma^2 I) along every vector.

    At these times the noise of the measurement lies below, between and above that of the diffusion, for the singular
    values 3, 0.5, 0.1 and 0.
    """
    n, basis = 20_000, torch.linalg.qr(normal(4, 4)).Q
    operator = inverse.Dense(torch.diag(torch.tensor([3.0, 0.5, 0.1, 0.0]).double()) @ basis.T, (4,))
    point = normal(1, 4, seed=2)
    y = operator(point) + 0.3 * normal(n, 4, seed=3)
    model = sf.GaussianMixture(point, 0.0, None, sf.VP())
    solver = inverse.DDRM(operator, y, 0.3)
    x = sf.sample(model, n, solver, steps=4, t_min=t_min, denoise=False, seed=torch.Generator().manual_seed(0))
    mean, std = sf.VP().kernel(point, t_min)
    assert (x.mean(0) - mean).abs().max() < 4 * float(std) / n**0.5
    assert (x.T.cov() / std**2 - torch.eye(4)).abs().max() < 4.5 * (2 / n) ** 0.5


def test_without_noise_the_result_agrees_with_the_measurement():
    operator = inverse.Downsample(2)
    truth = normal(3, 2, 4, 4)
    model = sf.ScoreModel(lambda x, t: 0.5 * x, sf.VP(), shape=(2, 4, 4))
    x = sf.sample(
        model,
        3,
        inverse.DDRM(operator, operator(truth), 0.0),
        steps=20,
        t_min=1e-4,
        denoise=False,
        x_init=normal(3, 2, 4, 4),
    )
    assert torch.allclose(operator(x), operator(truth), atol=0.05)


def test_measurements_follow_their_samples_through_chunks():
    mask, y = torch.eye(4).bool(), torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    model = sf.ScoreModel(lambda x, t: 0.5 * x, sf.VP(), shape=(4,))
    solver = inverse.DDRM(inverse.Mask(mask), y, 0.1)
    whole, chunks = (sf.sample(model, 4, solver, steps=5, seed=0, batch_size=b) for b in (4, 3))
    assert torch.allclose(whole, chunks, atol=1e-6)


@pytest.mark.parametrize(("bad", "message"), [({"noise": -1.0}, "noise=-1.0"), ({"eta": 2.0}, "eta=2.0")])
def test_errors_name_the_argument(bad, message):
    with pytest.raises(ValueError, match=message):
        inverse.DDRM(inverse.Mask(torch.ones(2)), torch.zeros(1, 2), **bad)
