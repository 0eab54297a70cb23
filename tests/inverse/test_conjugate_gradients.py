"""Conjugate gradients: exact for what they are made for, and stopped in time where a network breaks the promise."""

from __future__ import annotations

import pytest
import torch
from oracle import condition, gaussian, rotated

import scorefield as sf
from scorefield import inverse
from scorefield.inverse.measurement import conjugate_gradients

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(d: int, condition_number: float) -> torch.Tensor:
    basis = torch.linalg.qr(normal(d, d, seed=1)).Q
    values = torch.logspace(0, -torch.log10(torch.tensor(condition_number)).item(), d, dtype=torch.float64)
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("condition_number", [10.0, 1e3, 1e6])
def test_a_symmetric_positive_matrix_is_solved_whatever_its_condition(condition_number):
    """On the way the residual grows a hundredfold, which must not be taken for a fault."""
    s, b = symmetric(40, condition_number), normal(3, 40, seed=2)
    found = conjugate_gradients(lambda v: v @ s, b, 400, 1e-10)
    assert ((found @ s - b).norm(dim=1) < 1e-9 * b.norm(dim=1)).all()


def test_a_matrix_that_is_not_symmetric_does_not_carry_the_iteration_away():
    """Without the check the residual is 270 times the right-hand side after 50 iterations, and grows."""
    skew = normal(40, 40, seed=3)
    s, b = symmetric(40, 1e3) + 0.1 * (skew - skew.T) / 40**0.5, normal(5, 40, seed=2)
    for iterations in (1, 3, 50, 400):
        found = conjugate_gradients(lambda v: v @ s.T, b, iterations, 1e-6)
        assert ((found @ s.T - b).norm(dim=1) < 3 * b.norm(dim=1)).all()


def test_a_sample_that_stops_leaves_the_others_alone():
    good, skew = symmetric(20, 100.0), normal(20, 20, seed=3)
    bad = good + skew - skew.T
    b = normal(2, 20, seed=4)
    both = torch.stack([good, bad])
    together = conjugate_gradients(lambda v: torch.einsum("bij,bj->bi", both, v), b, 100, 1e-10)
    alone = conjugate_gradients(lambda v: v @ good.T, b[:1], 100, 1e-10)
    torch.testing.assert_close(together[:1], alone)
    assert bool(together.isfinite().all())


@pytest.mark.parametrize("noise", [0.1, 0.01])
def test_the_posterior_of_a_blurred_gaussian_stays_exact(noise):
    """64 dimensions, singular values of the blur down to 1e-9: the residual is far from falling at every iteration."""
    kernel = torch.exp(-(torch.arange(-6, 7).double() ** 2) / 8)
    blur = inverse.Blur(kernel / kernel.sum(), "circular")
    h = inverse.matrix_of(blur, (64,))
    mean, cov = rotated(64)
    y = h @ mean + 0.1 * normal(64, seed=4)
    mean_y, cov_y, _ = condition(mean, cov, h, y, noise)
    model = gaussian(mean, cov, sf.VP()) | inverse.Posterior(blur, y, noise, iterations=300, tolerance=1e-9)
    x = normal(3, 64, seed=5)
    for t in (0.05, 0.5):
        expected = gaussian(mean_y, cov_y, sf.VP()).denoise(x, t)
        torch.testing.assert_close(model.denoise(x, t), expected, rtol=1e-4, atol=1e-4)


def test_samples_that_do_not_explain_the_measurement_are_said_to():
    gm = sf.GaussianMixture(torch.zeros(1, 8), 0.2, None, sf.VP())
    far = torch.full((8,), 30.0)  # nothing that this model could draw
    everything = inverse.Mask(torch.ones(8))
    for draw in (
        lambda: sf.sample(gm | inverse.Posterior(everything, far, 3.0), 2, steps=5, seed=0),
        lambda: inverse.restore(gm, everything, far, 3.0, steps=5, method="smc"),
        lambda: inverse.restore(gm, everything, far, 3.0, steps=5, method="ddrm", n=2),
    ):
        with pytest.warns(RuntimeWarning, match="do not explain the measurement"):
            draw()


@pytest.mark.parametrize("method", ["mmps", "tmpd", "pigdm", "ddrm", "smc", "replace"])
def test_samples_that_explain_it_are_not_scolded(method, recwarn):
    gm = sf.GaussianMixture(torch.zeros(1, 4), 0.3, None, sf.VP())
    inverse.restore(gm, inverse.Mask(torch.ones(4)), 0.4 * normal(3, 4).float(), 0.1, n=2, method=method)
    assert not [w for w in recwarn if "explain" in str(w.message)]
