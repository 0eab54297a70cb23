"""Posterior scores against exact posteriors of rotated Gaussians with neither unit variance nor zero mean."""

from __future__ import annotations

import pytest
import torch
from affine import moments
from oracle import condition, flow_moments, gaussian, rotated
from torch import Tensor

import scorefield as sf
from scorefield import inverse

torch.set_num_threads(1)
SDES = [sf.VP(), sf.SubVP(), sf.VE(sigma_max=20.0)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(d: int, m: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, cov = rotated(d)
    return mean, cov, normal(m, d, seed=3) / d**0.5, normal(m, seed=4)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("view", ["denoise", "noise", "score", "velocity"])
@pytest.mark.parametrize("method", ["mmps", "tmpd"])
def test_the_posterior_of_a_gaussian_is_exact_in_every_view(sde, view, method):
    mean, cov, h, y = problem(8, 3)
    mean_y, cov_y, _ = condition(mean, cov, h, y, 0.1)
    posterior = inverse.Posterior(inverse.Dense(h, (8,)), y[None], 0.1, method, tolerance=1e-10)
    x, t = normal(3, 8, seed=5), torch.linspace(0.01, 1, 3, dtype=torch.float64)
    found = getattr(gaussian(mean, cov, sde) | posterior, view)(x, t)
    assert torch.allclose(found, getattr(gaussian(mean_y, cov_y, sde), view)(x, t), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("d", "m", "method", "noise"),
    [(8, 3, "mmps", 0.5), (8, 3, "tmpd", 0.01), (64, 24, "mmps", 0.5), (64, 24, "mmps", 0.01), (64, 24, "tmpd", 0.1)],
)
def test_default_sampling_reaches_the_exact_posterior(d, m, method, noise):
    """Rozet et al. 2024, eq. 14: mean within 1 %, covariance within 3 %, by the default solver, steps and tolerances."""
    mean, cov, h, y = problem(d, m)
    mean_y, cov_y, _ = condition(mean, cov, h, y, noise)
    posterior = inverse.Posterior(inverse.Dense(h, (d,)), y[None], noise, method)
    found, spread = flow_moments(gaussian(mean, cov, sf.VP()) | posterior, d)
    assert (found - mean_y).norm() < 0.01 * mean_y.norm()
    assert (spread - cov_y).norm() < 0.03 * cov_y.norm()


@pytest.mark.parametrize(
    ("variance", "y", "noise", "method", "mean", "var"),
    [
        (1.0, 1.0, 0.5, "mmps", 0.8, 0.2),
        (1.0, 1.0, 0.5, "pigdm", 0.8, 0.2),
        (1.0, 1.0, 0.5, "dps", 0.982, 0.125),
        (1.0, 1.0, 0.1, "mmps", 0.990, 0.0099),
        (1.0, 1.0, 0.1, "dps", 1.0, 0.0050),
        (0.1, 0.5, 0.1, "tmpd", 0.4545, 0.00909),
        (0.1, 0.5, 0.1, "pigdm", 0.418, 0.01045),
        (0.1, 0.5, 0.1, "dps", 0.5, 0.00500),
    ],
)
def test_reverse_sde_of_each_method_has_its_known_moments(variance, y, noise, method, mean, var):
    """Chung et al. 2023, eq. 16, is biased; the first order of the step size is removed by extrapolation."""
    prior = sf.GaussianMixture(torch.zeros(1, 1).double(), variance, None, sf.VP())
    posterior = inverse.Posterior(inverse.Mask(torch.ones(1)), torch.tensor([[y]]).double(), noise, method)
    steps = (150, 300) if method == "dps" else (60, 120)  # DPS is stiff
    (m1, c1), (m2, c2) = (moments(prior | posterior, sf.Ancestral(), n, grid="log_snr", t_min=1e-4) for n in steps)
    assert float(2 * m2 - m1) == pytest.approx(mean, rel=5e-3)
    assert float(2 * c2 - c1) == pytest.approx(var, rel=2e-2)


def test_every_sample_has_its_own_measurement_in_and_out_of_the_batch():
    mean, cov, h, _ = problem(8, 3)
    prior, y = gaussian(mean, cov, sf.VP()), normal(5, 3, seed=9)
    model = prior | inverse.Posterior(inverse.Dense(h, (8,)), y, 0.2)
    together = sf.sample(model, 5, sf.solve.Bosh3(1e-3, 1e-3), seed=[1, 2, 3, 4, 5])
    in_chunks = sf.sample(model, 5, sf.solve.Bosh3(1e-3, 1e-3), seed=[1, 2, 3, 4, 5], batch_size=2)
    alone = sf.sample(
        prior | inverse.Posterior(inverse.Dense(h, (8,)), y[3:4], 0.2), 1, sf.solve.Bosh3(1e-3, 1e-3), seed=[4]
    )
    assert torch.allclose(together, in_chunks, rtol=1e-10, atol=1e-10)
    assert torch.allclose(together[3:4], alone, rtol=1e-10, atol=1e-10)


def test_per_sample_masks_and_noise_levels_follow_their_samples():
    mean, cov = rotated(4)
    mask, noise = (
        torch.eye(4)[:3].bool() | torch.tensor([True, False, False, False]),
        torch.tensor([[0.1], [0.3], [0.9]]),
    )
    y = torch.where(mask, normal(3, 4, seed=2), 0.0)
    model = gaussian(mean, cov, sf.VP()) | inverse.Posterior(inverse.Mask(mask), y, noise)
    together = sf.sample(model, 3, steps=40, seed=[1, 2, 3], batch_size=2)
    for i in range(3):
        own = inverse.Posterior(inverse.Mask(mask[i]), y[i : i + 1], float(noise[i]))
        alone = sf.sample(gaussian(mean, cov, sf.VP()) | own, 1, steps=40, seed=[i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-6)


@pytest.mark.parametrize("method", ["mmps", "tmpd"])
def test_complex_measurements(method):
    """Fourier samples with noise in the real and in the imaginary part: real rows of a matrix, for the oracle."""
    mean, cov = rotated(6)
    fourier = inverse.Fourier(torch.tensor([1, 1, 0, 1, 0, 0]))
    y = fourier(normal(1, 6, seed=1)) + 0.2 * torch.view_as_complex(normal(1, 6, 2, seed=2)) * fourier.mask
    rows = inverse.matrix_of(fourier, (6,))
    mean_y, cov_y, _ = condition(mean, cov, rows, torch.view_as_real(y).flatten(), 0.2)
    model = gaussian(mean, cov, sf.VP()) | inverse.Posterior(fourier, y, 0.2, method, tolerance=1e-10)
    x = normal(3, 6, seed=5)
    assert torch.allclose(model.denoise(x, 0.4), gaussian(mean_y, cov_y, sf.VP()).denoise(x, 0.4), atol=1e-7)


@pytest.mark.parametrize("method", ["mmps", "tmpd"])
def test_noise_of_its_own_for_every_measurement(method):
    mean, cov, h, y = problem(8, 3)
    noise = torch.tensor([0.1, 0.4, 1.0])
    mean_y, cov_y, _ = condition(mean, cov, h, y, noise)
    posterior = inverse.Posterior(inverse.Dense(h, (8,)), y[None], noise, method, tolerance=1e-10)
    x = normal(3, 8, seed=5)
    found = (gaussian(mean, cov, sf.VP()) | posterior).denoise(x, 0.3)
    assert torch.allclose(found, gaussian(mean_y, cov_y, sf.VP()).denoise(x, 0.3), atol=1e-6)


def test_two_measurements_in_turn_are_both_together():
    """A posterior is a model, so that a second measurement may follow: this differentiates through the first solve."""
    mean, cov, h, y = problem(8, 4)
    first, second = (
        inverse.Posterior(inverse.Dense(h[i : i + 2], (8,)), y[None, i : i + 2], 0.3, tolerance=1e-10) for i in (0, 2)
    )
    mean_y, cov_y, _ = condition(mean, cov, h, y, 0.3)
    x = normal(3, 8, seed=5)
    found = (gaussian(mean, cov, sf.VP()) | first | second).denoise(x, 0.3)
    assert torch.allclose(found, gaussian(mean_y, cov_y, sf.VP()).denoise(x, 0.3), atol=1e-6)


def test_a_class_and_a_measurement_together():
    parts = [rotated(3, seed) for seed in (0, 1)]
    means, covs = (torch.stack(p) for p in zip(*parts, strict=True))
    mixture = sf.GaussianMixture(means, covs, None, sf.VP())
    guided = mixture | sf.ClassifierGuidance(lambda x, t: mixture.posterior(x, t).log(), 1)
    h, y = normal(1, 3, seed=2), normal(1, seed=3)
    mean_y, cov_y, _ = condition(means[1], covs[1], h, y, 0.2)
    model = guided | inverse.Posterior(inverse.Dense(h, (3,)), y[None], 0.2, tolerance=1e-10)
    x = normal(4, 3, seed=5)
    assert torch.allclose(model.score(x, 0.3), gaussian(mean_y, cov_y, sf.VP()).score(x, 0.3), atol=1e-6)


def test_dps_is_the_gradient_of_the_residual_for_any_measurement():
    prior = gaussian(*rotated(16), sf.VP())
    prior.shape = (16,)
    measure = inverse.PhaseRetrieval(dims=1)
    y = measure(normal(1, 16, seed=1))
    x = normal(3, 16, seed=5).requires_grad_()
    misfit = ((y - measure(prior.denoise(x, 0.3))) ** 2).sum() / (2 * 0.3**2)
    (expected,) = torch.autograd.grad(-misfit, x)
    found = (prior | inverse.Posterior(measure, y, 0.3, "dps")).score(x.detach(), 0.3) - prior.score(x.detach(), 0.3)
    assert torch.allclose(found, expected, atol=1e-8)


def test_dps_with_a_step_size_moves_as_its_algorithm_does():
    """Chung et al. 2023, Alg. 1, at one of 1000 steps: x loses zeta times the gradient of the norm of the residual, twice."""
    mean, cov, h, y = problem(8, 3)
    prior, step = gaussian(mean, cov, sf.VP()), 1e-3
    model = prior | inverse.Posterior(inverse.Dense(h, (8,)), y[None], 0.01, "dps", zeta=0.7)
    x = normal(3, 8, seed=5).requires_grad_()
    (slope,) = torch.autograd.grad((y - prior.denoise(x, 0.4) @ h.T).norm(dim=1).sum(), x)
    moved = step * float(sf.VP().g2(0.4)) * (model.score(x.detach(), 0.4) - prior.score(x.detach(), 0.4))
    assert torch.allclose(moved, -2 * 0.7 * slope, atol=1e-8)


def test_diffpir_solves_its_proximal_problem():
    """argmin |y - A x|^2 / (2 noise^2) + weight alpha^2 / (2 sigma^2) |x - D|^2 (Zhu et al. 2023, eq. 13)."""
    mean, cov, h, y = problem(8, 3)
    prior, x = gaussian(mean, cov, sf.VP()), normal(2, 8, seed=5)
    rho = 5.0 * float(sf.VP().log_snr(0.4).exp())
    left = h.T @ h / 0.2**2 + rho * torch.eye(8)
    expected = torch.linalg.solve(left, (y @ h / 0.2**2 + rho * prior.denoise(x, 0.4)).T).T
    found = (prior | inverse.Posterior(inverse.Dense(h, (8,)), y[None], 0.2, "diffpir", weight=5.0)).denoise(x, 0.4)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", ["mmps", "tmpd", "pigdm", "dps"])
def test_an_operator_without_adjoint_gives_the_same(method):
    mean, cov, h, y = problem(8, 3)
    prior, dense = gaussian(mean, cov, sf.VP()), inverse.Dense(h, (8,))
    x = normal(3, 8, seed=5)
    with_it, without = (
        (prior | inverse.Posterior(a, y[None], 0.3, method)).denoise(x, 0.3) for a in (dense, lambda v: dense(v))
    )
    assert torch.allclose(with_it, without, atol=1e-9)


@pytest.mark.parametrize("method", inverse.posterior.METHODS)
def test_gradients_flow_to_the_measurement_when_asked(method):
    mean, cov, h, y = problem(4, 2)
    prior = gaussian(mean, cov, sf.VP())

    def draw(y: Tensor) -> Tensor:
        model = prior | inverse.Posterior(inverse.Dense(h, (4,)), y[None], 1.0, method, tolerance=1e-12)
        return sf.sample(model, 2, steps=6, seed=0, x_init=normal(2, 4), grad=True).sum()

    live = y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(draw(live), live)
    e = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    assert float(slope[0]) == pytest.approx(float(draw(y + e) - draw(y - e)) / 2e-5, rel=1e-5)


def test_the_posterior_has_a_likelihood():
    mean, cov, h, y = problem(3, 1)
    mean_y, cov_y, _ = condition(mean, cov, h, y, 0.3)
    exact = gaussian(mean_y, cov_y, sf.VP())
    model = gaussian(mean, cov, sf.VP()) | inverse.Posterior(inverse.Dense(h, (3,)), y[None], 0.3, tolerance=1e-10)
    x = exact.sample(3, seed=0)
    found = sf.log_prob(model, x, trace="exact", solver=sf.Dopri5(1e-6, 1e-6), prior=exact)
    assert torch.allclose(found.nats, exact.log_prob(x, 1e-5), atol=1e-4)


def test_a_network_whose_jacobian_is_negative_is_not_followed_there():
    """With V cut to 0 nothing is left of the measurement's spread but its noise."""
    model = sf.ScoreModel(lambda x, t: -x, sf.VP(), "data", shape=(2,))
    y, x = torch.tensor([[0.5, -0.2]]), torch.tensor([[0.3, 0.1]])
    c = float(sf.VP().sigma(0.5) ** 2 / sf.VP().alpha(0.5))
    found = (model | inverse.Posterior(inverse.Mask(torch.ones(2)), y, 0.7, "tmpd")).denoise(x, 0.5)
    assert torch.allclose(found, -x - c * (y + x) / 0.7**2, rtol=1e-4)


def test_networks_parameters_get_no_gradient_from_sampling():
    net = torch.nn.Linear(4, 4)
    model = sf.ScoreModel(lambda x, t: net(x), sf.VP(), shape=(4,))
    x = sf.sample(model | inverse.Posterior(inverse.Mask(torch.ones(4)), torch.zeros(1, 4), 0.1), 2, steps=3, seed=0)
    assert not x.requires_grad
    assert net.weight.grad is None
    assert x.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p, a: inverse.Posterior(a, torch.zeros(1, 4), 0.1, "ddrm"), "method='ddrm' is unknown"),
        (lambda p, a: inverse.Posterior(a, torch.zeros(1, 4), 0.0), "noise=0.0"),
        (lambda p, a: inverse.Posterior(a, torch.zeros(1, 4), iterations=0), "iterations=0"),
        (
            lambda p, a: sf.sample(p | inverse.Posterior(a, torch.zeros(2, 4)), 3),
            "n=3: PosteriorModel holds conditions for 2",
        ),
        (
            lambda p, a: (p | inverse.Posterior(a, torch.zeros(2, 4))).score(torch.zeros(3, 4), 0.5),
            "y has 2 rows for 3",
        ),
        (
            lambda p, a: p | inverse.Posterior(a, torch.zeros(2, 4)) | inverse.Posterior(a, torch.zeros(3, 4)),
            "the model is for 2 samples, Posterior is for 3 samples",
        ),
        (
            lambda p, a: sf.sample(p, 3, steps=2, hooks=[sf.Replace(a, torch.zeros(2, 4))]),
            "Replace holds conditions for 2",
        ),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build(gaussian(*rotated(4), sf.VP()), inverse.Mask(torch.ones(4)))
