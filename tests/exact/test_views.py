"""Song et al. 2021, eq. 7 and 13, and Tweedie's formula: four views of one prediction, and the exact mixture."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import SDES, gaussian, mixture, moments, name

VIEWS = ("denoise", "noise", "score", "velocity")
AS = {"noise": "noise", "score": "score", "data": "denoise", "velocity": "velocity"}


@pytest.mark.parametrize("predict", AS)
@pytest.mark.parametrize("sde", SDES, ids=name)
def test_every_prediction_gives_the_same_four_views(sde, predict):
    gm = mixture(sde)
    t = torch.tensor([0.02, 0.3, 0.6, 0.95], dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * sde.sigma(t).unsqueeze(1)
    model = sf.ScoreModel(getattr(gm, AS[predict]), sde, predict)
    for view in VIEWS:
        torch.testing.assert_close(getattr(model, view)(x, t), getattr(gm, view)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_score_is_the_gradient_of_the_log_density(sde):
    gm = mixture(sde)
    for t in (0.01, 0.4, 1.0):
        x = gm.sample(6, t, seed=1).requires_grad_()
        (gradient,) = torch.autograd.grad(gm.log_prob(x, t).sum(), x)
        torch.testing.assert_close(gm.score(x, t), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_denoiser_is_the_posterior_mean(sde):
    """Conditional mean of a joint Gaussian: m + alpha S C^{-1} (x - alpha m)."""
    gm = gaussian(sde)
    mean, cov = gm.means[0], gm.covs[0]
    x = gm.sample(5, 0.6, seed=2)
    centre, spread = moments(gm, 0.6)
    alpha = float(sde.alpha(torch.tensor(0.6, dtype=torch.float64)))
    expected = mean + (x - centre) @ (alpha * cov @ torch.linalg.inv(spread)).T
    torch.testing.assert_close(gm.denoise(x, 0.6), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_density_solves_the_fokker_planck_equation(sde):
    """d/dt log p = -div v - v . score along the probability flow, by central differences."""
    gm, t, h = mixture(sde), 0.5, 1e-5
    x = gm.sample(4, t, seed=3)
    change = (gm.log_prob(x, t + h) - gm.log_prob(x, t - h)) / (2 * h)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y: gm.velocity(y.unsqueeze(0), t).squeeze(0)))(x)
    divergence = torch.diagonal(jacobian, dim1=1, dim2=2).sum(1)
    flux = (gm.velocity(x, t) * gm.score(x, t)).sum(1)
    torch.testing.assert_close(change, -divergence - flux, rtol=1e-5, atol=1e-5)


def test_exact_samples_have_the_moments_of_the_mixture():
    gm = gaussian(sf.SubVP())
    n = 40_000
    for t in (0.0, 0.3):
        x = gm.sample(n, t, seed=torch.Generator().manual_seed(0))
        mean, cov = moments(gm, t)
        assert ((x.mean(0) - mean) / torch.sqrt(torch.diagonal(cov) / n)).abs().max() < 4.5
        scale = torch.sqrt((torch.outer(torch.diagonal(cov), torch.diagonal(cov)) + cov**2) / n)
        assert ((torch.cov(x.T) - cov) / scale).abs().max() < 4.5


def test_mixture_weights_are_sampling_frequencies():
    gm = sf.GaussianMixture(torch.tensor([[-50.0], [50.0]]), 1.0, [0.2, 0.8], sf.VP())
    share = (gm.sample(20_000, seed=torch.Generator().manual_seed(0)) > 0).double().mean()
    assert abs(float(share) - 0.8) < 4 * (0.16 / 20_000) ** 0.5


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_edm_with_a_zero_network_is_exact_for_isotropic_data(sde):
    """Karras et al. 2022: F = 0 is optimal for N(0, sigma_data^2 I)."""
    model = sf.ScoreModel(lambda x, c: torch.zeros_like(x), sde, "edm", sigma_data=0.7)
    gm = sf.GaussianMixture(torch.zeros(1, 4, dtype=torch.float64), 0.49, None, sde)
    x = gm.sample(5, 0.8, seed=0)
    for view in VIEWS:
        torch.testing.assert_close(getattr(model, view)(x, 0.8), getattr(gm, view)(x, 0.8), rtol=1e-9, atol=1e-9)


def test_one_edm_network_has_one_flow_whatever_the_sde():
    """Karras et al. 2022, eq. 4: at equal sigma/alpha, x/alpha solves the same equation under VE and VP."""

    def net(x, c):
        return torch.tanh(x + c.reshape(-1, 1))

    ends = {}
    for sde in (sf.VE(), sf.VP()):
        model = sf.ScoreModel(net, sde, "edm", shape=(3,))
        t, u = (float(sde.inverse_log_snr(-2 * torch.log(torch.tensor(s, dtype=torch.float64)))) for s in (40.0, 0.05))
        start = 40.0 * torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
        x = float(sde.alpha(t)) * start
        end = sf.sample(model, 2, sf.Dopri5(1e-9, 1e-9), x_init=x, t_start=t, t_min=u, denoise=False)
        ends[name(sde)] = end / sde.alpha(u)
    torch.testing.assert_close(ends["VE"], ends["VP"], rtol=1e-6, atol=1e-6)


def test_condition_reaches_the_network_and_its_dtype_is_its_own():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, label):
            assert x.dtype == t.dtype == torch.float32
            return self.scale * label.reshape(-1, 1) * x

    model = sf.ScoreModel(Net(), sf.VP(), "noise")
    x = torch.ones(2, 3, dtype=torch.float64)
    out = model.noise(x, 0.5, label=torch.tensor([2.0, 3.0]))
    assert out.dtype == torch.float64
    assert torch.equal(out, x * torch.tensor([[2.0], [3.0]]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.ScoreModel(torch.nn.Identity(), sf.VP(), "eps"), "predict='eps' is unknown"),
        (lambda: sf.ScoreModel(lambda x, t: x[:, :1], sf.VP()).score(torch.zeros(2, 3), 0.5), "returned shape"),
        (lambda: sf.ScoreModel(lambda x, t: x, sf.VP()).score(torch.zeros(2, 3), torch.zeros(3)), "batch size 2"),
        (lambda: sf.GaussianMixture(torch.zeros(2, 3), torch.zeros(5), None, sf.VP()), "covs has shape"),
        (lambda: sf.GaussianMixture(torch.zeros(1, 2), -torch.eye(2)[None], None, sf.VP()), "semi-definite"),
        (lambda: sf.GaussianMixture(torch.zeros(2, 3), 1.0, [1.0, -1.0], sf.VP()), "positive numbers"),
    ],
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_mixture_of_diagonal_components_keeps_no_basis_and_is_the_same_as_with_full_covariances():
    means = torch.tensor([[0.4, -0.2, 1.0], [-0.7, 0.6, 0.1]], dtype=torch.float64)
    spread = torch.tensor([[0.3, 0.05, 0.0], [0.2, 0.4, 0.1]], dtype=torch.float64)
    for covs, diagonal in (
        (spread, spread),
        (spread[:, 0], spread[:, :1].expand(2, 3)),
        (0.25, torch.full((2, 3), 0.25)),
    ):
        full = sf.GaussianMixture(means, torch.diag_embed(diagonal), [0.3, 0.7], sf.VP())
        gm = sf.GaussianMixture(means, covs, [0.3, 0.7], sf.VP())
        assert gm._basis is None
        x = gm.sample(4, 0.5, seed=1)
        torch.testing.assert_close(gm.log_prob(x, 0.5), full.log_prob(x, 0.5))
        for view in VIEWS:
            torch.testing.assert_close(getattr(gm, view)(x, 0.5), getattr(full, view)(x, 0.5))


def test_an_isotropic_mixture_serves_large_pictures():
    gm = sf.GaussianMixture(torch.zeros(1, 3, 256, 256), 0.25, None, sf.VP())  # its basis would take 288 GB
    x = gm.sample(1, 0.5, seed=0)
    alpha, sigma = sf.VP().alpha(0.5), sf.VP().sigma(0.5)
    variance = float(0.25 * alpha**2 + sigma**2)
    torch.testing.assert_close(gm.score(x, 0.5), -x / variance)
    assert abs(float(x.square().mean()) / variance - 1) < 4 * (2 / x.numel()) ** 0.5


@pytest.mark.parametrize("sde", [sf.VP(), sf.SubVP()], ids=name)
def test_velocity_of_a_mixture_at_time_zero(sde):
    """f x - g^2 / 2 score, though sigma' is infinite there."""
    gm = gaussian(sde)
    x = gm.sample(4, seed=0)
    zero = torch.zeros((), dtype=torch.float64)
    expected = sde.f(zero) * x - 0.5 * sde.g2(zero) * gm.score(x, 0.0)
    torch.testing.assert_close(gm.velocity(x, 0.0), expected)
    t = torch.tensor([0.0, 0.3, 0.0, 1.0], dtype=torch.float64)
    mixed = gm.velocity(x, t)
    torch.testing.assert_close(mixed[::2], expected[::2])
    torch.testing.assert_close(mixed[1], gm.velocity(x, 0.3)[1])


def test_a_networks_dtype_is_that_of_its_matrices_not_of_its_frequencies():
    net = sf.nn.UNet(1, 8, (1, 2), 1, attn=(), embedding="fourier", scale_by_sigma=True).bfloat16()
    model = sf.ScoreModel(net, sf.VE(), "score", clock="sigma", shape=(1, 8, 8))
    assert next(net.parameters()).dtype == torch.float32  # the frequencies
    assert model.dtype == torch.bfloat16
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = model.denoise(x, 0.5)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
