"""The figures of benchmarks/convergence.py against closed forms: what errors, steps and priors cost (Tang & Zhao 2024)."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import scorefield as sf
from scorefield.evaluation.distances import tv_on_grid

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


AMPLIFIED = {  # W2 per unit of score error by v = 1/4, 1, 4, 100
    "OU 1": (sf.OU(1.0, ROOT_2, 1.0), (None, 1.2642, 2.2165, 3.3472)),
    "OU 2": (sf.OU(1.0, ROOT_2, 2.0), (None, 1.7293, 3.7733, 10.8262)),
    "OU 4": (sf.OU(1.0, ROOT_2, 4.0), (None, 1.9634, 4.6903, 25.9374)),
    "OU 8": (sf.OU(1.0, ROOT_2, 8.0), (None, 1.9993, 4.8341, 29.4937)),
    "COU 1": (sf.OU(-1.0, ROOT_2, 1.0), (None, 0.8699, 1.1276, 1.2580)),
    "COU 2": (sf.OU(-1.0, ROOT_2, 2.0), (None, 1.1107, 1.5048, 1.7188)),
    "COU 4": (sf.OU(-1.0, ROOT_2, 4.0), (None, 1.2281, 1.6923, 1.9505)),
    "COU 8": (sf.OU(-1.0, ROOT_2, 8.0), (None, 1.2461, 1.7211, 1.9861)),
    "Brownian 1": (sf.OU(0.0, ROOT_2, 1.0), (None, None, 1.6219, 1.9803)),
    "Brownian 2": (sf.OU(0.0, ROOT_2, 2.0), (None, None, 2.7726, 3.9221)),
    "Brownian 4": (sf.OU(0.0, ROOT_2, 4.0), (None, None, 4.3944, 7.6961)),
    "Brownian 8": (sf.OU(0.0, ROOT_2, 8.0), (None, None, 6.4378, 14.8420)),
    "VP": (sf.VP(), (0.75706, 1.98686, 4.78423, None)),
    "sub-VP": (sf.SubVP(), (0.69202, 1.83869, 4.51380, None)),
    "CVP": (sf.CVP(), (0.64298, 1.23988, 1.71112, None)),
    "CsubVP": (sf.CSubVP(), (76.38, 303.04, 1196.9, None)),
}


SAME = [
    (sde, noise, found)
    for sde in (sf.VE(0.01, 50.0, exact=True), sf.VP(), sf.SubVP(), sf.CSubVP())
    for noise, found in ((1.0, (1.52075, 3.05283, 6.04396)), (0.0, (2.51963, 4.36306, 7.35938)))
]


@pytest.mark.parametrize("case", AMPLIFIED)
def test_amplification_of_a_score_error(bench, case):
    sde, expected = AMPLIFIED[case]
    variances = (0.25, 1.0, 4.0, 100.0)
    found = bench.amplification(sde, variances)
    for value, want, variance in zip(found, expected, variances, strict=True):
        assert want is None or value == pytest.approx(want, rel=5e-5)
        assert value == pytest.approx(closed_form(sde, variance), rel=5e-5)


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


@pytest.mark.parametrize(
    ("sde", "high", "noise", "expected"),
    [(sde, 40.0, noise, found) for sde, noise, found in SAME]
    + [(sde, 0.99, 1.0, (1.06484, 1.52136, 1.79874)) for sde in (sf.VP(), sf.CVP())],
    ids=str,
)
def test_in_units_of_the_noise_all_gaussian_sdes_are_one(bench, sde, high, noise, expected):
    """Also their flows; sigma / alpha down from `high` to 0.02."""
    found = bench.noise_amplification(sde, (0.25, 1.0, 4.0), 0.02, high, noise)
    assert found == pytest.approx(expected, rel=2e-5)


EPS = (0.05, 0.1, 0.2)


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        (0.25, (0.030195, 0.060347, 0.120349)),
        (1.0, (0.039616, 0.079134, 0.157491)),
        (4.0, (0.047687, 0.095204, 0.189058)),
    ],
)
def test_total_variation_breaks_the_printed_bound_and_keeps_the_other(bench, variance, expected):
    unit = bench.amplification(sf.VP(), (variance,))[0]
    found = [bench.shifted_tv(eps * unit, variance) for eps in EPS]
    assert found == pytest.approx(expected, abs=1e-6)
    for eps, tv in zip(EPS, found, strict=True):
        assert tv < bench.girsanov(sf.VP(), eps)
        assert (tv > bench.printed_tv(sf.VP(), eps)) == (variance >= 1)


def test_the_two_bounds_and_how_far_ve_is_from_the_printed_one(bench):
    assert [bench.girsanov(sf.VP(), eps) for eps in EPS] == pytest.approx([0.079254, 0.158509, 0.317017], abs=1e-6)
    assert [bench.printed_tv(sf.VP(), eps) for eps in EPS] == pytest.approx([0.035355, 0.070711, 0.141421], abs=1e-6)
    assert bench.girsanov(sf.VP(), 1.0) == pytest.approx(1.58509, abs=5e-6)
    ve = sf.VE(0.01, 50.0)
    shift = bench.amplification(ve, (1.0,))[0]
    assert shift == pytest.approx(math.log(2501), rel=1e-4)
    assert bench.shifted_tv(0.05 * shift, 1.0) == pytest.approx(0.155085, abs=2e-5)


@pytest.mark.parametrize(
    ("spent", "distance", "bound"), [(0.55, 0.351, 0.600), (2.55, 0.113, 0.221), (10.05, 2.622e-3, 5.195e-3)]
)
def test_distance_of_the_prior_keeps_its_bound(spent, distance, bound):
    """TV(p_t, N(0, 1)) <= e^{-B/2} (E|x|^2 / 2)^{1/2} (Tang & Zhao 2024, Cor. 5.2), N(1, 1/4) data under VP."""
    time = (-0.1 + math.sqrt(0.01 + 4 * 9.95 * spent)) / (2 * 9.95)  # B(t) = t / 10 + 9.95 t^2
    gm = sf.GaussianMixture(torch.ones(1, 1, dtype=F64), torch.full((1, 1), 0.25, dtype=F64), [1.0], sf.VP())
    x = torch.linspace(-9, 9, 18_001, dtype=F64)[:, None]
    normal = torch.exp(-0.5 * x[:, 0] ** 2) / math.sqrt(2 * math.pi)
    found = tv_on_grid(torch.exp(gm.log_prob(x, time)), normal, 1e-3)
    limit = float(sf.VP().alpha(time)) * math.sqrt(1.25 / 2)
    assert (found, limit) == pytest.approx((distance, bound), rel=4e-3)
    assert found < limit


def test_total_variation_of_a_mixture_by_fokker_planck(bench):
    """Coarser than the benchmark, and within the third digit of its figures; all below Girsanov's bound."""
    kinds = (torch.ones_like, lambda x: torch.sign(torch.sin(3 * x)), lambda x: torch.sign(x + 0.3))
    errors = [lambda x, kind=kind, eps=eps: eps * kind(x) for kind in kinds for eps in EPS]
    found = bench.mixture_tv(errors, cells=1601, steps=200)
    expected = [0.03996, 0.07915, 0.15480, 0.01207, 0.02403, 0.04761, 0.02310, 0.04665, 0.09495, 0.0]
    assert found == pytest.approx(expected, rel=3e-3, abs=2e-5)
    assert all(tv < bench.girsanov(sf.VP(), eps) for tv, eps in zip(found, 3 * EPS, strict=False))
    assert all(tv > bench.printed_tv(sf.VP(), eps) for tv, eps in zip(found[:3], EPS, strict=True))


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
    simple = {0.6: 10, 0.75: 4, 1.0: 2, 2.0: 2, 4.0: 2}[kappa]
    assert simple == pytest.approx(2 / (2 * min(kappa, 1.0) - 1))
    assert found <= bound <= simple


def test_two_sided_bound_is_of_no_use(bench):
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 1.0), 1.0, lipschitz=True) == pytest.approx(24.9, rel=5e-3)
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 2.0), 1.0, lipschitz=True) == pytest.approx(737, rel=5e-3)
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 4.0), 1.0, lipschitz=True) == pytest.approx(4.3e5, rel=2e-2)
    assert bench.gronwall(sf.OU(1.0, ROOT_2, 8.0), 1.0, lipschitz=True) == pytest.approx(1e11, rel=0.5)
    found = [bench.gronwall(sf.OU(-1.0, ROOT_2, T), 4.0, lipschitz=True) for T in (1.0, 2.0, 4.0, 8.0)]
    assert found == pytest.approx([1.845, 2.828, 3.640, 3.960], rel=2e-3)


BY_STEPS = {  # (theta, T): errors at v = 4 by steps per unit of time, and at v = 100 by 20
    (1.0, 1.0): ({20: -0.03504, 40: -0.01777, 80: -0.00895, 160: -0.00449}, -0.24765),
    (1.0, 2.0): ({20: -0.03406, 160: -0.00438}, -0.48100),
    (1.0, 4.0): ({20: -0.03266, 160: -0.00420}, -0.55122),
    (1.0, 8.0): ({20: -0.03264}, -0.54790),
    (-1.0, 1.0): ({20: -0.03318, 40: -0.01643, 80: -0.00818, 160: -0.00408}, -0.25169),
    (-1.0, 2.0): ({20: -0.07200, 160: -0.00900}, -0.49777),
    (-1.0, 4.0): ({20: -0.14692, 160: -0.01892}, -0.97129),
    (-1.0, 8.0): ({20: -0.28309, 40: -0.14875, 80: -0.07618}, -1.84708),
}


@pytest.mark.parametrize(("theta", "T"), BY_STEPS)
def test_error_of_euler_maruyama_grows_with_the_time_of_a_contractive_process(bench, theta, T):
    """First order; bounded in T under OU, in proportion to T under its contraction."""
    sde, (expected, wide) = sf.OU(theta, ROOT_2, T), BY_STEPS[theta, T]
    for steps, error in expected.items():
        found = bench.euler_maruyama(sde, (4.0, 100.0), bench.even(sde, int(steps * T)))
        assert found[0] == pytest.approx(error, abs=6e-6)
        assert steps != 20 or found[1] == pytest.approx(wide, abs=6e-6)


def test_steps_of_one_network_under_two_sdes(bench):
    """sigma / alpha from 50 to 0.01, even steps in the own time of each: VE gains four a halving, CsubVP at most two."""
    expected = {"ve": (0.00847, 0.00217, 0.00056, 0.00015, 0.00004, 0.00001)}
    expected["csub"] = (-0.00675, -0.00719, -0.00470, -0.00266, -0.00141, -0.00073)
    for name, sde in (("ve", sf.VE(0.01, 50.0, exact=True)), ("csub", sf.CSubVP())):
        first, last = (float(sde.inverse_log_snr(-2 * math.log(r))) for r in (50.0, 0.01))
        found = [
            bench.euler_maruyama(sde, (0.25,), torch.linspace(first, last, n + 1, dtype=F64))[0]
            for n in (25, 50, 100, 200, 400, 800)
        ]
        assert found == pytest.approx(expected[name], abs=6e-6)


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_what_cvp_returns_from_its_nominal_prior(bench, variance):
    """Reverse SDE: mean 1 / (1 + v) of 1; flow: variance v / (1 + v)."""
    expected = {
        0.25: ((0.799993, 0.239999), (0.552779, 0.199998)),
        1.0: ((0.499989, 0.749989), (0.292886, 0.499989)),
        4.0: ((0.199993, 1.439956), (0.105569, 0.799972)),
    }[variance]
    for noise, (mean, spread) in zip((1.0, 0.0), expected, strict=True):
        (found,) = bench.prior_bias(sf.CVP(), (variance,), noise, steps=250)
        assert (float(found.mean), float(found.variance)) == pytest.approx((mean, spread), abs=2e-5)
    assert expected[0][0] == pytest.approx(1 / (1 + variance), abs=2e-5)
    assert expected[1][1] == pytest.approx(variance / (1 + variance), abs=4e-5)


@pytest.mark.parametrize(
    ("sde", "reverse", "flow"),
    [
        (sf.VP(), (0.999957, 1.0), (0.993428, 0.999957)),
        (sf.CSubVP(), (0.999957, 1.0), (0.993428, 0.999957)),
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
