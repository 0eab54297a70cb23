"""SDEs that contract backward, and a model read under another SDE (Tang & Zhao 2024)."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import CONTRACTIVE, flow_map, gaussian, mixture, moments, name
from scorefield.training.describe import from_json, to_json

CSUB, TRAINED = sf.CSubVP(), sf.VE(0.01, 50.0, exact=True)


def test_ornstein_uhlenbeck_with_a_mean_is_a_shift_of_the_data():
    """theta = 1.5, mu = 2, g = 0.8, from x_0 = -1 at t = 0.7; the stationary variance is g^2 / (2 theta)."""
    sde = sf.OU(1.5, 0.8, T=50.0)
    mean, std = sde.kernel(torch.tensor([[-3.0]]).double(), 0.7)
    assert 2 + float(mean) == pytest.approx(0.950187, abs=1e-6)
    assert float(std) ** 2 == pytest.approx(0.187209, abs=1e-6)
    assert sde.prior((1, 1)).std ** 2 == pytest.approx(0.64 / 3, rel=1e-12)


def test_contractive_ends():
    """B(1) = 10.05: CVP in x / alpha has noise 1 - e^{-B}, and sub-VP and its contraction have one signal-to-noise ratio."""
    assert float(sf.CVP().log_snr(1.0)) == pytest.approx(-math.log1p(-math.exp(-10.05)), rel=1e-9)
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(CSUB.log_snr(t), sf.SubVP().log_snr(t), rtol=1e-14, atol=1e-14)
    assert float(sf.CVP().log_snr(1.0)) == pytest.approx(4e-5, rel=0.1)
    assert float(sf.OU(-1.0, math.sqrt(2), 4.0).log_snr(4.0)) == pytest.approx(3e-4, rel=0.2)
    assert float(CSUB.sigma(1.0)) == pytest.approx(math.expm1(10.05), rel=1e-12)
    assert float(CSUB.sigma(1.0)) == pytest.approx(2.3e4, rel=0.01)


@pytest.mark.parametrize("sde", CONTRACTIVE, ids=name)
def test_flow_and_prior_are_those_of_a_gaussian(sde):
    """encode is the exact map; the exact prior has the moments of p_T, where the nominal one is far off."""
    gm = gaussian(sde)
    x = gm.sample(4, seed=0)
    end = 0.9
    z = sf.encode(gm, x, t_min=1e-3, t_end=end)
    torch.testing.assert_close(z, flow_map(gm, x, 1e-3, end), rtol=1e-4, atol=1e-4 * float(z.abs().max()))
    mean, cov = moments(gm, sde.T)
    prior = sf.likelihood.moments(
        sde, mean=gm.means[0], cov=gm._basis[0] @ torch.diag(gm._spectrum[0]) @ gm._basis[0].T
    )
    normal = torch.distributions.MultivariateNormal(mean, cov)
    y = gm.sample(5, sde.T, seed=1)
    torch.testing.assert_close(prior.log_prob(y), normal.log_prob(y), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gm.marginal(sde.T).log_prob(y), normal.log_prob(y), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", CONTRACTIVE, ids=name)
def test_they_are_written_down_and_read_again(sde):
    assert from_json(to_json(sde)) == sde
    assert eval(repr(sde), {type(sde).__name__: type(sde)}) == sde


def test_wrong_rates_are_named():
    with pytest.raises(ValueError, match=r"OU needs a finite theta, sigma > 0 and T > 0, not theta=1, sigma=0"):
        sf.OU(1, 0)


@pytest.mark.parametrize("other", [CSUB, sf.CVP(), sf.VP(), sf.OU(-1.0, 1.4), sf.RectifiedFlow()], ids=name)
@pytest.mark.parametrize("view", ["score", "noise", "denoise", "velocity"])
def test_a_model_under_another_sde_is_the_exact_one(other, view):
    """Single times and one for all, to all digits."""
    own, exact = mixture(TRAINED), mixture(other)
    x = exact.sample(5, 0.3, seed=0)
    for t in (0.3, torch.linspace(0.05, 0.6, 5, dtype=torch.float64)):
        expected = getattr(exact, view)(x, t)
        bar = 1e-11 * float(expected.abs().max())
        torch.testing.assert_close(getattr(own.under(other), view)(x, t), expected, rtol=1e-10, atol=bar)


def test_the_end_without_signal_is_read_through_the_denoiser():
    straight = sf.RectifiedFlow()
    ends = [mixture(sde).under(straight).velocity(torch.ones(2, 3).double(), 1.0) for sde in (Cosine(), straight)]
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-9)


class Cosine(sf.GaussianSDE):
    """A user's SDE that ends without signal."""

    def alpha(self, t):
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * t)


def test_what_was_not_trained_is_refused_with_both_ranges():
    with pytest.raises(
        ValueError, match=r"asks for log-SNR from -10 to -10; the model under VE\(.*\) knows -7.82 to inf"
    ):
        mixture(TRAINED).under(CSUB).score(torch.ones(2, 3), 1.0)


def test_rows_and_guidance_go_through():
    guided = mixture(TRAINED).under(CSUB) | sf.Posterior(
        sf.Mask(torch.tensor([True, False, True])), torch.zeros(3), 0.1
    )
    assert sf.sample(guided, 3, sf.DDIM(), steps=3, seed=0, t_start=0.5, x_init=torch.ones(3, 3)).isfinite().all()


def matched(steps: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Grids of VE and CSubVP with equal sigma / alpha, from 40 down to 0.02."""
    rho = torch.exp(torch.linspace(math.log(40), math.log(0.02), steps + 1, dtype=torch.float64))
    return TRAINED.inverse_log_snr(-2 * torch.log(rho)), CSUB.inverse_log_snr(-2 * torch.log(rho))


def ends(solver) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples in x / alpha along the matched grids, with the same noise."""
    gm, (own, other) = mixture(TRAINED), matched()
    start = 40 * torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha = CSUB.alpha(other)
    keys = {"seed": 1, "denoise": False}
    x = sf.sample(gm, 6, solver, grid=own, x_init=start, t_start=float(own[0]), **keys)
    z = sf.sample(
        gm.under(CSUB), 6, solver, grid=other, x_init=float(alpha[0]) * start, t_start=float(other[0]), **keys
    )
    return x, z / alpha[-1]


EXACT = [sf.DDIM(), sf.DDIM(eta=1.0), sf.Ancestral(), sf.solve.ExponentialSDE(), sf.DPMSolver(), sf.UniPC()]


@pytest.mark.parametrize("solver", EXACT, ids=str)
def test_solvers_in_x_over_alpha_give_the_same_samples(solver):
    x, z = ends(solver)
    torch.testing.assert_close(x, z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [sf.EulerMaruyama(), sf.ReverseDiffusion(), sf.Euler(), sf.Heun()], ids=name)
def test_solvers_in_x_do_not(solver):
    x, z = ends(solver)
    assert (x - z).abs().max() > 0.1


def test_reuse_of_an_exploding_network_is_one_case_of_under():
    """tau = (T / 2) log(1 + h^2 / sigma_min^2) / log(sigma_max / sigma_min), h = phi - 1 / phi, phi = e^{B/2}; score / phi."""
    t = torch.linspace(0.05, 0.85, 5, dtype=torch.float64)
    phi = CSUB.alpha(t)
    h = phi - 1 / phi
    tau = 0.5 * torch.log1p((h / 0.01) ** 2) / math.log(5000)
    torch.testing.assert_close(TRAINED.inverse_log_snr(CSUB.log_snr(t)), tau, rtol=1e-14, atol=0)
    gm = mixture(TRAINED)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * phi[:, None]
    expected = gm.score(x / phi[:, None], tau) / phi[:, None]
    torch.testing.assert_close(gm.under(CSUB).score(x, t), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gm.under(CSUB).noise(x, t), gm.noise(x / phi[:, None], tau), rtol=1e-12, atol=1e-13)
    # what leaving the 1 / phi out would be wrong by
    ends = CSUB.alpha(torch.tensor([0.1, 0.85], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([1.056, 38.0], rel=1e-3)


def test_how_far_a_network_with_noise_up_to_50_reaches():
    """h(T) <= (sigma_max^2 - sigma_min^2)^{1/2}: B = 7.8248, which the schedule from 0.1 to 20 has at t = 0.88179."""
    end = CSUB.inverse_log_snr(TRAINED.log_snr(1.0))
    assert float(end) == pytest.approx(0.88179, abs=5e-6)
    assert float(CSUB.integrated_beta(end)) == pytest.approx(7.8248, abs=5e-5)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_contraction_of_the_start_under_cvp(variance):
    """An error of x_T arrives as e^{B/2} alpha v / c, which tends to v / (1 + v): .20001, .50001, .80001.

    The bound exp(-kappa / (1 + kappa)), kappa = 1 / v (Tang & Zhao 2024, Thm. 2): .449, .607, .819. Neither grows with T.
    """
    sde = sf.CVP()
    alpha = float(sde.alpha(1.0))
    c = alpha**2 * variance + float(sde.sigma(1.0)) ** 2
    factor = alpha * (alpha * variance / c)
    assert factor == pytest.approx(variance / (1 + variance), abs=2e-5)
    assert factor == pytest.approx({0.25: 0.20001, 1.0: 0.50001, 4.0: 0.80001}[variance], abs=5e-6)
    bound = math.exp(-1 / (1 + variance))
    assert bound == pytest.approx({0.25: 0.449, 1.0: 0.607, 4.0: 0.819}[variance], abs=5e-4)
    assert factor < bound
