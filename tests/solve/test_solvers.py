"""The solvers since the paper: identities, orders, exactness on Gaussians, and the same sentences for every one of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from oracles import PAPER, Cubic, flow_map, gaussian, mixture, moments, name
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field
from scorefield.times import Restart, sampling_grid

DETERMINISTIC = [
    (sf.DDIM(), 1),
    (sf.DPMSolver(order=1), 1),
    (sf.DPMSolver(order=2), 2),
    (sf.DPMSolver(order=3), 3),
    (sf.solve.DPMSolverSingle(order=1), 1),
    (sf.solve.DPMSolverSingle(order=2), 2),
    (sf.solve.DPMSolverSingle(order=3), 3),
    (sf.solve.DEIS(order=2), 2),
    (sf.solve.DEIS(order=3), 3),
    (sf.UniPC(order=1), 1),
    (sf.UniPC(order=2), 2),
    (sf.UniPC(order=3), 3),
    (sf.solve.ExponentialSDE(strength=0.0, order=2), 2),
    (sf.solve.KarrasHeun(), 2),
]
STOCHASTIC = [
    sf.DDIM(eta=1.0),
    sf.solve.ExponentialSDE(strength=1.0, order=1),
    sf.solve.ExponentialSDE(strength=1.0, order=2),
    sf.solve.ExponentialSDE(strength=0.5, order=3),
    sf.solve.Churn(amount=0.1),
    sf.solve.AnalyticAncestral(),
    sf.solve.AnalyticAncestral("full"),
]
OF_THE_PAPER = [
    sf.EulerMaruyama(),
    sf.solve.TamedEuler(),
    sf.ReverseDiffusion(),
    sf.solve.ProbabilityFlow(),
    sf.Ancestral(),
    sf.PC(sf.ReverseDiffusion(), sf.solve.AnnealedLangevin()),
    sf.PC(sf.Ancestral(), sf.Langevin(norm="sample")),
    sf.PC(sf.solve.Identity(), sf.solve.AnnealedLangevin(steps=2)),
    sf.Euler(),
    sf.Heun(),
    sf.solve.RK4(),
]
ADAPTIVE = [
    sf.solve.Bosh3(1e-2, 1e-2),
    sf.Dopri5(1e-3, 1e-3),
    sf.solve.Tsit5(1e-3, 1e-3),
    sf.solve.AdaptiveSDE(0.3, 0.1),
]
"""Loose: what they are for here does not depend on the tolerance."""
SHAPES = [(3,), (2, 5), (3, 8, 8), (1, 4, 4, 4)]


def label(value: object) -> str:
    if isinstance(value, tuple):
        return label(value[0]) if isinstance(value[0], sf.Solver) else "x".join(map(str, value))
    order = getattr(value, "order", "")
    strength = getattr(value, "strength", getattr(value, "eta", ""))
    return f"{name(value)}{order}{strength}" if isinstance(value, sf.Solver) else name(value)


def grid(sde: sf.GaussianSDE, steps: int, start: float = 0.9, end: float = 0.05) -> Tensor:
    return sampling_grid(sde, steps, start, end, "log_snr")


# Identities


def same(a: sf.Solver, b: sf.Solver, sde: sf.GaussianSDE) -> None:
    gm = mixture(sde)
    x, y = (sf.sample(gm, 4, s, steps=9, grid="log_snr", seed=1, denoise=False) for s in (a, b))
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize(
    "solver",
    [sf.DPMSolver(order=1), sf.solve.DPMSolverSingle(order=1), sf.solve.ExponentialSDE(strength=0.0, order=1)],
    ids=label,
)
def test_first_order_exponential_integrators_are_ddim(solver, sde):
    same(solver, sf.DDIM(), sde)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("solver", [sf.DDIM(eta=1.0), sf.solve.ExponentialSDE(strength=1.0, order=1)], ids=label)
def test_full_noise_to_first_order_is_ancestral_sampling(solver, sde):
    same(solver, sf.Ancestral(), sde)


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_without_noise_the_stochastic_family_is_the_multistep_solver(sde):
    same(sf.solve.ExponentialSDE(strength=0.0, order=1), sf.DPMSolver(order=1), sde)
    same(sf.solve.Churn(amount=0.0), sf.solve.KarrasHeun(), sde)


@pytest.mark.parametrize("solver", [s for s, _ in DETERMINISTIC if not isinstance(s, sf.solve.DEIS)], ids=label)
def test_vp_is_ve_after_rescaling(solver):
    """What works in log-SNR sees no difference between SDEs: x / alpha at equal sigma / alpha."""
    ends = []
    for sde in (sf.VE(), sf.VP()):
        gm = mixture(sde)
        levels = torch.linspace(-5, 4, 10, dtype=torch.float64)
        times = sde.inverse_log_snr(levels)
        alpha = sde.alpha(times)
        x = alpha[0] * torch.linspace(-20, 20, 12, dtype=torch.float64).reshape(4, 3)
        end = sf.sample(gm, 4, solver, grid=times, t_start=float(times[0]), x_init=x, denoise=False)
        ends.append(end / alpha[-1])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


# Orders


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize(("solver", "order"), DETERMINISTIC, ids=label)
def test_observed_order_is_at_least_nominal(solver, order, sde):
    gm = gaussian(sde, low=0.5)
    errors = []
    for steps in (50, 100):
        times = grid(sde, steps)
        x = float(sde.sigma(0.9)) * torch.linspace(-1.5, 1.5, 12, dtype=torch.float64).reshape(4, 3)
        end = sf.sample(gm, 4, solver, grid=times, t_start=0.9, x_init=x, denoise=False)
        errors.append(float((end - flow_map(gm, x, 0.9, float(times[-1]))).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.2
    assert errors[1] < 0.1


def test_second_order_has_a_fifth_of_the_error_of_ddim_at_twenty_evaluations():
    """DPM-Solver++(2M) (Lu et al. 2022b, Alg. 2): VP, a one-dimensional mixture, uniform in log-SNR."""
    sde = sf.VP()
    means = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    gm = sf.GaussianMixture(means, torch.tensor([0.09, 0.25]), [0.4, 0.6], sde)
    x = float(sde.sigma(1.0)) * torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(1)
    keywords = {"x_init": x, "t_min": 1e-3, "denoise": False}
    exact = sf.sample(gm, 41, sf.Dopri5(1e-10, 1e-10), **keywords)
    first, second = (sf.sample(gm, 41, s, steps=20, grid="log_snr", **keywords) for s in (sf.DDIM(), sf.DPMSolver()))
    rmse = [float((v - exact).square().mean().sqrt()) for v in (first, second)]
    assert rmse[1] < rmse[0] / 5


# Moments of stochastic solvers, by affine recursion in three dimensions


def recursion(solver: sf.Solver, gm: sf.GaussianMixture, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance that the solver's own affine steps make of the exact p at times[0]."""
    d = gm.shape[0]
    mean, cov = moments(gm, float(times[0]))
    eye = torch.eye(d, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:], strict=True):
        x = torch.cat([torch.zeros(1, d, dtype=torch.float64), eye, torch.zeros(d, d, dtype=torch.float64)])
        z = torch.cat([torch.zeros(1 + d, d, dtype=torch.float64), eye])
        noise = FromFunction(2 * d + 1, lambda z=z: z)
        out = solver.step(Field(gm, {}, 2 * d + 1), x, t, s, None, noise)[0]
        a, c = (out[1 : d + 1] - out[0]).T, (out[d + 1 :] - out[0]).T
        mean, cov = a @ mean + out[0], a @ cov @ a.T + c @ c.T
    return mean, cov


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("sde", [*PAPER, Cubic()], ids=name)
def test_analytic_covariance_is_exact_on_gaussians_in_any_number_of_steps(sde, steps):
    gm = gaussian(sde)
    times = torch.linspace(0.95, 0.01, steps + 1, dtype=torch.float64)
    mean, cov = recursion(sf.solve.AnalyticAncestral("full"), gm, times)
    exact_mean, exact_cov = moments(gm, 0.01)
    torch.testing.assert_close(mean, exact_mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(cov, exact_cov, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("pilots", [None, 16_384])
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_mean_analytic_variance_is_exact_on_isotropic_gaussians(sde, pilots):
    """By a probe for each sample, and by pilots; of these the sampling error is left: 0.6 % of the mean square of eps."""
    gm = sf.GaussianMixture(torch.full((1, 4), 0.7, dtype=torch.float64), 0.3, None, sde)
    x = sf.sample(
        gm,
        20_000,
        sf.solve.AnalyticAncestral(),
        steps=4,
        denoise=False,
        seed=torch.Generator().manual_seed(0),
        prior="exact",
        pilots=pilots,
    )
    _, cov = moments(gm, sde.t_min)
    assert abs(float(x.var(0).mean() / cov[0, 0]) - 1) < 4 * (2 / 80_000) ** 0.5 + 0.02
    plain = sf.sample(
        gm,
        20_000,
        sf.Ancestral(),
        steps=4,
        grid="log_snr",
        denoise=False,
        seed=torch.Generator().manual_seed(0),
        prior="exact",
    )
    assert abs(float(plain.var(0).mean() / cov[0, 0]) - 1) > 0.1


def test_restart_goes_up_as_often_as_it_says_and_keeps_the_marginal():
    sde = sf.VP()
    plan = Restart(low=0.2, high=0.5, repeats=3, steps=30, base="uniform")
    times = plan(sde, 60, 1.0, 1e-3)
    assert int((times.diff() > 0).sum()) == 3
    gm = gaussian(sde)
    seed = torch.Generator().manual_seed(0)
    x = sf.sample(gm, 8000, sf.Heun(), steps=60, grid=plan, seed=seed, denoise=False)
    _, cov = moments(gm, 1e-3)
    off = torch.linalg.norm(torch.cov(x.T) - cov) / torch.linalg.norm(cov)
    assert off < 4 * (3 / 8000) ** 0.5


def test_restart_forgets_an_error_made_before_it():
    """A start of doubled spread: each passage contracts what is left of it."""
    sde, gm = sf.VP(), gaussian(sf.VP(), d=2)
    wrong = 2 * sde.prior((4000, 2)).sample(seed=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, cov = moments(gm, 1e-3)
    errors = []
    for repeats in (0, 1, 4):
        plan = Restart(low=0.3, high=0.9, repeats=repeats, steps=30, base="uniform")
        x = sf.sample(
            gm, 4000, sf.Heun(), steps=60, grid=plan, x_init=wrong, seed=torch.Generator().manual_seed(2), denoise=False
        )
        errors.append(float(torch.linalg.norm(torch.cov(x.T) - cov) / torch.linalg.norm(cov)))
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.1


@pytest.mark.parametrize("sde", [sf.VE(), sf.VP()], ids=name)
def test_adaptive_sde_is_as_good_as_a_thousand_euler_maruyama_steps_for_a_third_of_the_evaluations(sde):
    """Jolicoeur-Martineau et al. 2021, Alg. 1: W2 by quantiles against the exact Gaussian."""
    gm = sf.GaussianMixture(torch.ones(1, 1, dtype=torch.float64), 0.25, None, sde)
    n = 4000
    r = sf.sample(gm, n, sf.solve.AdaptiveSDE(), seed=torch.Generator().manual_seed(0), full=True, denoise=False)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mean, cov = moments(gm, sde.t_min)
    exact = mean + cov[0, 0].sqrt() * torch.special.ndtri(u)
    w2 = float((r.x.squeeze(1).sort().values - exact).square().mean().sqrt())
    # 1000 Euler-Maruyama steps have 0.0145 at this n, nearly all of it sqrt(2 var / n), the spread of a finite sample.
    assert w2 < 0.0145 + 4 * 0.0055
    calls = r.nfe.double()
    assert float(calls.mean()) < 1000 / 3
    assert float(calls.std()) < 0.14 * float(calls.mean())  # 0.17 where a state near zero takes smaller steps
    assert (r.status == 0).all()


# Sentences for every solver


@pytest.mark.parametrize("shape", SHAPES, ids=label)
@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("solver", [*(s for s, _ in DETERMINISTIC), *STOCHASTIC, *OF_THE_PAPER, *ADAPTIVE], ids=label)
def test_runs_on_any_shape_in_both_precisions_and_samples_are_their_own(solver, sde, shape):
    if getattr(solver, "covariance", "") == "full" and math.prod(shape) > 16:
        pytest.skip("one reverse pass for each dimension: for vectors")
    steps = None if solver in ADAPTIVE else 4
    for dtype in (torch.float32, torch.float64):
        gm = sf.GaussianMixture(torch.full((1, *shape), 0.3, dtype=dtype), 0.2, None, sde)
        both = sf.sample(gm, 3, solver, steps=steps, seed=[7, 8, 9])
        assert both.shape == (3, *shape)
        assert both.dtype == dtype
        assert torch.isfinite(both).all()
        assert torch.equal(both, sf.sample(gm, 3, solver, steps=steps, seed=[7, 8, 9]))
        if dtype == torch.float64:
            alone = torch.cat([sf.sample(gm, 1, solver, steps=steps, seed=s) for s in (7, 8, 9)])
            torch.testing.assert_close(both, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [*(s for s, _ in DETERMINISTIC), *STOCHASTIC], ids=label)
def test_alpha_zero_at_the_start_is_no_special_case(solver):
    x = sf.sample(gaussian(Cubic()), 3, solver, steps=20, seed=0)
    assert torch.isfinite(x).all()
    assert x.abs().max() < 20
