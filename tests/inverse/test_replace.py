"""Imputation by replacement (Song et al. 2021, App. I.2): its biased moments, and what repairs them."""

from __future__ import annotations

import pytest
import torch
from affine import moments
from oracle import flow_moments

import scorefield as sf
from scorefield import inverse
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field

torch.set_num_threads(1)


def pair(rho: float) -> tuple[sf.GaussianMixture, sf.Replace]:
    """Two coordinates of unit variance and correlation rho, of which the first is known to be 1.5."""
    cov = torch.tensor([[[1.0, rho], [rho, 1.0]]], dtype=torch.float64)
    known = inverse.Mask(torch.tensor([1, 0]))
    y = torch.tensor([[1.5, 0.0]], dtype=torch.float64)
    return sf.GaussianMixture(torch.zeros(1, 2).double(), cov, None, sf.VP()), sf.Replace(known, y)


def extrapolated(rho: float, solver: sf.Solver, steps: int, grid) -> tuple[float, float]:
    """Mean and variance of the unknown coordinate, less their first order in the step size."""
    model, hook = pair(rho)
    (m1, c1), (m2, c2) = (moments(model, solver, n, hooks=[hook], grid=grid) for n in (steps, 2 * steps))
    mean, cov = 2 * m2 - m1, 2 * c2 - c1
    assert float(mean[0]) == 1.5  # the known one, exactly
    return float(mean[1]), float(cov[1, 1])


@pytest.mark.parametrize(("rho", "mean", "var"), [(0.5, 0.402, 0.824), (0.8, 0.750, 0.494), (0.95, 1.086, 0.188)])
def test_the_papers_replacement_is_biased_as_known(rho, mean, var):
    """The exact answers would be (0.75, 0.75), (1.2, 0.36) and (1.425, 0.0975)."""
    found = extrapolated(rho, sf.Ancestral(), 80, "log_snr")
    assert found == pytest.approx((mean, var), rel=0.015)


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_resampling_removes_the_bias(rho):
    """RePaint with many resamplings is within 2 % of the exact conditional."""
    found = extrapolated(rho, sf.DDIM(), 60, inverse.repaint(jump=5, resamples=200, base="log_snr"))
    assert found == pytest.approx((1.5 * rho, 1 - rho**2), rel=0.02)


def test_a_posterior_score_has_no_bias():
    model, hook = pair(0.8)
    posterior = inverse.Posterior(hook.operator, hook.y, 1e-2)
    mean, cov = flow_moments(model | posterior, 2, steps=50)
    assert float(mean[1]) == pytest.approx(1.2, rel=0.02)
    assert float(cov[1, 1]) == pytest.approx(0.36, rel=0.02)


def test_repaint_grid():
    grid = inverse.repaint(jump=2, resamples=2)(sf.VP(), 4, 1.0, 0.2)
    assert torch.allclose(grid, torch.tensor([1, 0.8, 0.6, 1, 0.8, 0.6, 0.4, 0.2, 0.6, 0.4, 0.2]).double(), atol=1e-6)
    plain = inverse.repaint(resamples=1)(sf.VP(), 4, 1.0, 0.2)
    assert torch.allclose(plain, torch.linspace(1.0, 0.2, 5).double(), atol=1e-6)


@pytest.mark.parametrize(
    "operator",
    [
        inverse.Mask(torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])),
        inverse.Grayscale(),
        inverse.Grayscale((3**-0.5,) * 3),
        inverse.Downsample(2),
        inverse.Downsample(2) @ inverse.Grayscale(),
        inverse.Fourier(torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]])),
    ],
    ids=["mask", "gray", "orthonormal gray", "downsample", "both", "fourier"],
)
def test_the_result_agrees_with_the_measurement(operator):
    """For operators with and without orthonormal rows, at the end of the loop, in the unknown part of which there is noise."""
    x = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(3, 2, 4))  # noise = x: a standard normal
    out = sf.sample(
        model, 2, sf.Ancestral(), steps=5, hooks=[sf.Replace(operator, operator(x))], x_init=torch.randn_like(x)
    )
    assert torch.allclose(operator(out), operator(x), atol=1e-9)


def test_known_entries_come_out_bitwise():
    mask = torch.tensor([1, 0, 1, 0]).bool()
    y = torch.tensor([[0.1, 0, 0.7, 0]])
    model = sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(4,))
    x = sf.sample(model, 8, steps=5, seed=0, hooks=[sf.Replace(inverse.Mask(mask), y)])
    assert torch.equal(x[:, mask], y[:, mask].expand(8, 2))


def test_colourisation_replaces_the_gray_channel_of_the_orthonormal_transform():
    """App. I.3: transform, put in the gray channel, transform back."""
    m = inverse.color_matrix()
    x, z = torch.randn(2, 2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gray = inverse.Grayscale((3**-0.5,) * 3)
    coupled = torch.einsum("bchw,cd->bdhw", x, m)
    coupled[:, :1] = gray(z)
    expected = torch.einsum("bdhw,cd->bchw", coupled, m)
    assert torch.allclose(sf.Replace(gray, gray(z)).finish(x), expected, atol=1e-12)


def test_measurements_follow_their_samples_through_chunks():
    mask = torch.eye(4).bool()
    y = torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    model = sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(4,))
    hook = sf.Replace(inverse.Mask(mask), y)
    whole, chunks = (sf.sample(model, 4, steps=5, seed=0, hooks=[hook], batch_size=b) for b in (4, 3))
    assert torch.allclose(whole, chunks, atol=1e-6)
    assert torch.equal(whole[mask], torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="jump=0"):
        inverse.repaint(jump=0)


def test_known_entries_carry_the_noise_of_their_time():
    """alpha y + sigma z, with a z of its own; redrawn at each step, it averages out of the final moments."""
    model, hook = pair(0.5)
    z = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    x = hook(torch.zeros(1, 2).double(), torch.tensor(0.5).double(), Field(model), FromFunction(1, lambda: z))
    mean, std = sf.VP().kernel(hook.y, 0.5)
    assert torch.allclose(x, torch.tensor([[1.0, 0.0]]) * (mean + std * z))


def test_noise_on_hidden_entries_of_a_measurement_is_left_out():
    known = torch.tensor([True, False, True, False])
    hidden = sf.Mask(known)
    y = torch.tensor([[1.0, 5.0, -2.0, float(7)]])
    back = sf.inverse.pseudo_inverse(hidden, y, torch.zeros(1, 4))
    assert torch.equal(back, torch.tensor([[1.0, 0.0, -2.0, 0.0]]))
