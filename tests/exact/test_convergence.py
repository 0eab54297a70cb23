"""The figures of benchmarks/convergence.py against closed forms: what errors, steps and priors cost (Tang & Zhao 2024)."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import scorefield as sf

F64 = torch.float64
ROOT_2 = math.sqrt(2)


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "convergence.py"
    spec = importlib.util.spec_from_file_location("convergence_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def closed_form(sde: sf.GaussianSDE, variance: float, noise: float = 1.0) -> float:
    """(1 + noise^2) / 2 int g^2 (alpha v / c)^(noise^2) (v / c)^(1/2 - noise^2 / 2) dt, noise 0 or 1: how shifts contract."""
    t = torch.linspace(0, sde.T, 20_001, dtype=F64)
    alpha = sde.alpha(t)
    c = alpha**2 * variance + sde.sigma(t) ** 2
    factor = alpha * variance / c if noise == 1.0 else torch.sqrt(variance / c)
    return float(torch.trapezoid((1 + noise**2) / 2 * sde.g2(t) * factor, t))


AMPLIFIED = {  # W2 per unit of score error by v = 1, 4, 100
    "OU 1": (sf.OU(1.0, ROOT_2, 1.0), (1.2642, 2.2165, 3.3472)),
    "OU 8": (sf.OU(1.0, ROOT_2, 8.0), (1.9993, 4.8341, 29.4937)),
    "COU 1": (sf.OU(-1.0, ROOT_2, 1.0), (0.8699, 1.1276, 1.2580)),
    "COU 8": (sf.OU(-1.0, ROOT_2, 8.0), (1.2461, 1.7211, 1.9861)),
    "Brownian 8": (sf.OU(0.0, ROOT_2, 8.0), (None, 6.4378, 14.8420)),
    "VP": (sf.VP(), (1.98686, 4.78423, None)),
    "sub-VP": (sf.SubVP(), (1.83869, 4.51380, None)),
    "CVP": (sf.CVP(), (1.23988, 1.71112, None)),
    "CsubVP": (sf.CSubVP(), (303.04, 1196.9, None)),
}


@pytest.mark.parametrize("case", AMPLIFIED)
def test_amplification_of_a_score_error(bench, case):
    sde, expected = AMPLIFIED[case]
    found = bench.amplification(sde, (1.0, 4.0, 100.0))
    for value, want, variance in zip(found, expected, (1.0, 4.0, 100.0), strict=True):
        assert want is None or value == pytest.approx(want, rel=2e-4)
        assert value == pytest.approx(closed_form(sde, variance), rel=2e-4)


def test_amplification_by_the_flow(bench):
    """On OU with unit variance the flow amplifies by exactly T; a stopped and a stretched schedule differ."""
    for T in (1.0, 8.0):
        assert bench.amplification(sf.OU(1.0, ROOT_2, T), (1.0,), noise=0.0)[0] == pytest.approx(T, rel=1e-6)
    assert bench.amplification(sf.OU(1.0, ROOT_2, 4.0), (4.0,), noise=0.0)[0] == pytest.approx(
        closed_form(sf.OU(1.0, ROOT_2, 4.0), 4.0, 0.0), rel=1e-4
    )
    assert bench.amplification(sf.CVP(), (1.0, 4.0), 0.5) == pytest.approx([0.96147, 1.26935], rel=1e-4)
    half = sf.CVP(0.05, 10.0)  # beta stretched over [0, 1/2] is half of it over [0, 1], which has the factor below
    assert bench.amplification(half, (1.0, 4.0)) == pytest.approx([1.16530, 1.59187], rel=1e-4)


def test_in_units_of_the_noise_all_gaussian_sdes_are_one(bench):
    spread = (0.25, 1.0, 4.0)
    for sde in (sf.VE(0.01, 50.0, exact=True), sf.CSubVP()):
        assert bench.noise_amplification(sde, spread, 0.02, 40.0) == pytest.approx(
            [1.52075, 3.05283, 6.04396], rel=1e-4
        )
    for sde in (sf.CVP(),):
        assert bench.noise_amplification(sde, spread, 0.02, 0.99) == pytest.approx(
            [1.06484, 1.52136, 1.79874], rel=1e-4
        )


def test_total_variation_breaks_the_printed_bound_and_keeps_the_other(bench):
    for variance, expected in ((0.25, 0.030195), (1.0, 0.039616), (4.0, 0.047687)):
        tv = bench.shifted_tv(0.05 * bench.amplification(sf.VP(), (variance,))[0], variance)
        assert tv == pytest.approx(expected, abs=2e-6)
        assert tv < bench.girsanov(sf.VP(), 0.05)
        assert (tv > bench.printed_tv(sf.VP(), 0.05)) == (variance >= 1)
    assert bench.girsanov(sf.VP(), 0.05) == pytest.approx(0.079254, abs=1e-6)
    ve = sf.VE(0.01, 50.0)
    shift = bench.amplification(ve, (1.0,))[0]
    assert shift == pytest.approx(math.log(2501), rel=1e-4)
    assert bench.shifted_tv(0.05 * shift, 1.0) == pytest.approx(0.155085, abs=2e-5)


def test_total_variation_of_a_mixture_by_fokker_planck(bench):
    """Coarser than the benchmark, and within the third digit of its figures."""
    errors = [
        lambda x: torch.full_like(x, 0.05),
        lambda x: 0.05 * torch.sign(torch.sin(3 * x)),
        lambda x: 0.05 * torch.sign(x + 0.3),
    ]
    found = bench.mixture_tv(errors, cells=1601, steps=200)
    assert found == pytest.approx([0.03996, 0.01207, 0.02310, 0.0], abs=5e-5)


@pytest.mark.parametrize(
    ("kappa", "measured", "best"),
    [
        (0.6, 2.7734, 2.8010),
        (0.75, 2.4009, 2.4149),
        (1.0, 1.98686, 1.9931),
        (2.0, 1.2399, 1.2530),
        (4.0, 0.7571, 0.7890),
    ],
)
def test_one_sided_bound_on_wasserstein(bench, kappa, measured, best):
    found, bound = bench.amplification(sf.VP(), (1 / kappa,))[0], bench.gronwall(sf.VP(), 1 / kappa)
    assert found == pytest.approx(measured, rel=1e-4)
    assert bound == pytest.approx(best, rel=1e-3)  # the printed one minimises over a grid of h
    assert found <= bound <= 2 / (2 * min(kappa, 1.0) - 1)


def test_two_sided_bound_is_of_no_use(bench):
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 1.0), 1.0, lipschitz=True) == pytest.approx(24.9, rel=5e-3)
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 2.0), 1.0, lipschitz=True) == pytest.approx(737, rel=5e-3)
    found = [bench.gronwall(sf.OU(-1.0, ROOT_2, T), 4.0, lipschitz=True) for T in (1.0, 2.0, 4.0, 8.0)]
    assert found == pytest.approx([1.845, 2.828, 3.640, 3.960], rel=2e-3)


@pytest.mark.parametrize(
    ("theta", "T", "expected"),
    [
        (1.0, 1.0, (-0.03504, -0.01777, -0.24765)),
        (1.0, 4.0, (-0.03266, None, -0.55122)),
        (-1.0, 1.0, (-0.03318, -0.01643, -0.25169)),
        (-1.0, 4.0, (-0.14692, None, -0.97129)),
        (-1.0, 8.0, (-0.28309, -0.14875, -1.84708)),
    ],
)
def test_error_of_euler_maruyama_grows_with_the_time_of_a_contractive_process(bench, theta, T, expected):
    """Steps per unit of time: 20 and 40 at v = 4, 20 at v = 100."""
    sde = sf.OU(theta, ROOT_2, T)
    coarse = bench.euler_maruyama(sde, (4.0, 100.0), bench.even(sde, int(20 * T)))
    assert coarse == pytest.approx([expected[0], expected[2]], abs=6e-6)
    if expected[1] is not None:
        fine = bench.euler_maruyama(sde, (4.0,), bench.even(sde, int(40 * T)))
        assert fine == pytest.approx([expected[1]], abs=6e-6)


def test_steps_of_one_network_under_two_sdes(bench):
    """sigma / alpha from 50 to 0.01, even steps in the own time of each: VE gains four a halving, CsubVP at most two."""
    expected = {"ve": (0.00847, 0.00217, 0.00056), "csub": (-0.00675, -0.00719, -0.00470)}
    for name, sde in (("ve", sf.VE(0.01, 50.0, exact=True)), ("csub", sf.CSubVP())):
        first, last = (float(sde.inverse_log_snr(-2 * math.log(r))) for r in (50.0, 0.01))
        found = [
            bench.euler_maruyama(sde, (0.25,), torch.linspace(first, last, n + 1, dtype=F64))[0] for n in (25, 50, 100)
        ]
        assert found == pytest.approx(expected[name], abs=6e-6)


@pytest.mark.parametrize(
    ("sde", "reverse", "flow"),
    [
        (sf.VP(), (0.999957, 1.0), (0.993428, 0.999957)),
        (sf.CSubVP(), (0.999957, 1.0), (0.993428, 0.999957)),
        (sf.CVP(), (0.499989, 0.749989), (0.292886, 0.499989)),
        (sf.OU(-1.0, ROOT_2, 4.0), (0.499916, 0.749916), None),
        (sf.OU(-1.0, math.sqrt(20), 4.0), (0.909063, 0.991730), None),
        (sf.OU(-1.0, math.sqrt(200), 4.0), (0.990096, 0.999902), None),
    ],
    ids=str,
)
def test_bias_of_the_nominal_prior(bench, sde, reverse, flow):
    """N(1, 1) data; CVP and COU remember x_0, and p_T as the prior mends it."""
    (found,) = bench.prior_bias(sde, (1.0,), 1.0, steps=250)
    assert (float(found.mean), float(found.variance)) == pytest.approx(reverse, abs=1e-4)
    if flow is not None:
        steps = 400 if isinstance(sde, sf.CSubVP) else 200  # whose rates differ most
        (found,) = bench.prior_bias(sde, (1.0,), 0.0, steps=steps)
        assert (float(found.mean), float(found.variance)) == pytest.approx(flow, abs=1e-4)
        (fitted,) = bench.prior_bias(sde, (1.0,), 0.0, True, steps)
        assert (float(fitted.mean), float(fitted.variance)) == pytest.approx((1.0, 1.0), abs=2e-4)
