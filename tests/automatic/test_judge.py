"""Baselines against closed forms; what a judgement says of good models and bad ones."""

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.automatic.baselines import gaussian, histograms, kernel, mixture
from scorefield.automatic.findings import find
from scorefield.automatic.judge import judge

MIX = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]], dtype=torch.float64)


def draws(n, seed=0, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def test_gaussian_is_that_of_the_sample():
    x, y = draws(20_000) @ MIX.T + 5, draws(50, 1) @ MIX.T + 5
    exact = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0)).log_prob(y)
    torch.testing.assert_close(gaussian(x)(y), exact, rtol=0, atol=5e-3)  # drawn to the variances by 3 / 20,000


def test_gaussian_of_few_directions_is_that():
    """A covariance that is only drawn towards its variances is two hundred nats behind here."""
    turn = draws(7, 1, 168)
    x, y = (draws(n, seed, 7) @ turn + 0.05 * draws(n, seed + 1, 168) + 3 for n, seed in ((800, 2), (300, 4)))
    cov = turn.T @ turn + 0.05**2 * torch.eye(168, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.full((168,), 3.0).double(), cov).log_prob(y).mean()
    assert float(exact) - 2.5 < float(gaussian(x)(y).mean()) < float(exact)  # 7 x 168 numbers are estimated


def test_gaussian_that_is_the_same_everywhere_is_that():
    """Of 24 signals of 64 entries, whose covariance is known from its spectrum alone."""
    spectrum = 1 / (1 + torch.fft.fftfreq(64, 1 / 64).double().square())
    x, y = (
        torch.fft.ifft(torch.fft.fft(draws(n, n, 64), norm="ortho") * spectrum.sqrt(), norm="ortho").real
        for n in (24, 300)
    )
    cov = torch.fft.ifft(spectrum).real[(torch.arange(64)[:, None] - torch.arange(64)) % 64]
    exact = torch.distributions.MultivariateNormal(torch.zeros(64).double(), cov).log_prob(y).mean()
    assert float(exact) - 3 < float(gaussian(x, (1, 64))(y).mean()) < float(exact)
    assert float(gaussian(x)(y).mean()) < float(exact) - 10


def test_kernel_density_is_the_mean_of_kernels_of_the_best_width():
    x, y = draws(300, d=2), draws(20, 1, 2)
    density = kernel(x)
    widths = [float(x.std(0, correction=0).mean()) * 10 ** (e / 8) for e in range(-16, 5)]
    normals = [
        torch.distributions.Independent(torch.distributions.Normal(x, h), 1).log_prob(y[:, None]).logsumexp(1)
        - np.log(300)
        for h in widths
    ]
    distances = [float((density(y) - n).abs().max()) for n in normals]
    assert min(distances) < 1e-9
    best = distances.index(min(distances))
    truth = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1), 1).log_prob(y)
    assert (normals[best] - truth).mean().abs() < 0.1


def test_mixture_finds_the_number_and_density_of_clusters():
    centres = 6 * torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    pick = torch.randint(3, (3000,), generator=torch.Generator().manual_seed(2))
    x = centres[pick] + 0.5 * draws(3000, 3, 2)
    exact = sf.GaussianMixture(centres, 0.25 * torch.eye(2).double().expand(3, 2, 2), None, sf.VP())
    found = mixture(x[:2000])(x[2000:]).mean()
    assert float(exact.log_prob(x[2000:]).mean() - found) < 0.05


def test_histograms_are_probabilities():
    raw = torch.randint(0, 4, (50, 2), generator=torch.Generator().manual_seed(0))
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    assert float(histograms(raw, 4)(every).exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_an_exact_model_has_the_entropy_and_no_warning():
    x = draws(1500) @ MIX.T + 5
    found = find(x.numpy())
    model = sf.GaussianMixture(torch.zeros(1, 3), torch.eye(3)[None], None, sf.VP())  # whitened data
    result = judge(model, found, 120.0)  # more than a busy machine needs
    mean, error, count = result.model
    assert count == 150
    entropy = 1.5 * np.log(2 * np.pi * np.e) + float(MIX.det().log())
    assert mean == pytest.approx(-entropy, abs=4 * error)
    assert result.baselines["Gaussian"] == pytest.approx(mean, abs=0.02)
    assert result.warnings == ()
    assert result.spread == pytest.approx(1.0, abs=0.1)
    assert 0.7 < result.nearest < 1.4
    assert result.values()["held_out"]["n"] == 150
    assert "Gaussian" in str(result)


def test_a_model_of_wrong_spread_is_told_with_a_cure():
    found = find((draws(500) @ MIX.T).numpy())
    wide = sf.GaussianMixture(torch.zeros(1, 3), 9 * torch.eye(3)[None], None, sf.VP())
    result = judge(wide, found, 2.0)
    assert result.spread == pytest.approx(3.0, rel=0.15)
    assert any("samples spread 3" in w or "samples spread 2.9" in w for w in result.warnings)
    assert any("fits held-out data better" in w for w in result.warnings)


def test_signals_of_ten_times_the_spread_are_told():
    """What briefly trained networks without preconditioning gave: values of 3 to 34 for 0.4."""
    found = find((0.4 * draws(60, d=128)).reshape(60, 1, 128).numpy())
    wide = sf.GaussianMixture(torch.zeros(1, 1, 128), 100 * torch.eye(128)[None], None, sf.VP())
    result = judge(wide, found, 2.0)
    assert result.spread == pytest.approx(10.0, rel=0.15)
    assert any(w.startswith("samples spread") and "not good yet" in w for w in result.warnings)


def test_samples_unlike_the_data_are_told_also_where_their_spread_is_right():
    # Data on a circle, a model of its mean and spread: samples fill the disc.
    angle = 2 * np.pi * torch.rand(500, generator=torch.Generator().manual_seed(0)).double()
    circle = torch.stack([angle.cos(), angle.sin()], 1) + 0.01 * draws(500, d=2)
    gauss = sf.GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], None, sf.VP())
    result = judge(gauss, find(circle.numpy()), 2.0)
    assert result.spread == pytest.approx(1.0, abs=0.1)
    assert any("times as far from the data as held-out data is" in w for w in result.warnings)


def test_repetition_of_training_items_is_told():
    found = find(draws(60, d=8).numpy())
    points = found.data.tensor()
    result = judge(sf.GaussianMixture(points, 4e-3, None, sf.VP()), found, 2.0)
    assert result.nearest < 0.2
    assert "samples repeat training items; train for fewer minutes, or on more data" in result.warnings


def test_pictures_are_judged_in_bits_beside_a_histogram():
    pixels = torch.randint(0, 256, (200, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = find(pixels)
    model = sf.GaussianMixture(torch.zeros(1, 1, 4, 4), torch.eye(16)[None] / 3, None, sf.VP())
    result = judge(model, found, 2.0)
    assert result.unit == "bits/dim"
    # A Gaussian of the variance of a uniform law: 8 bits and its divergence, log2(sqrt(2 pi e / 12)) = 0.2546
    assert result.model[0] == pytest.approx(8.2546, abs=0.05)
    assert result.baselines["pixel histogram"] == pytest.approx(8.0, abs=0.15)
    assert any("pixel histogram fits" in w for w in result.warnings)
