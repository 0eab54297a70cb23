"""Implicit, sliced and finite-difference score matching against quadrature (Hyvarinen 2005; Song et al. 2020b)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.evaluation.distances import gaussian_w2, score_error, sliced_w2, tv_on_grid, wasserstein_1d
from scorefield.guide.score_error import ScoreError
from scorefield.implicit import ssm_loss
from scorefield.randomness import FromFunction

F64 = torch.float64
MIXTURE = sf.GaussianMixture(
    torch.tensor([[-1.2], [0.8]], dtype=F64), torch.tensor([[0.09], [0.25]], dtype=F64), [0.3, 0.7], sf.VP()
)
WRONG = sf.ScoreModel.from_score(lambda x, t: -(x - 0.1) / 1.3 + 0.2 * torch.sin(x), sf.VP(), shape=(1,))


def expectation(t: float, value) -> float:
    """E over p_t of the mixture by quadrature, value(x) (N,)."""
    x = torch.linspace(-12, 12, 24_001, dtype=F64)[:, None]
    return float(torch.trapezoid(value(x) * torch.exp(MIXTURE.log_prob(x, t)), x[:, 0]))


def normal_nodes(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E over N(0, 1), exact for polynomials of degree 2 n - 1."""
    z, w = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    return z, w / w.sum()


@pytest.mark.parametrize(
    ("t", "esm", "ism", "dsm", "fisher"),
    [
        (0.05, 3.286074, -0.913367, 33.061926, 4.199441),
        (0.1, 1.683441, -0.905710, 8.735833, 2.589151),
        (0.3, 0.127578, -0.875754, 0.780789, 1.003332),
        (0.6, 0.128922, -0.869981, 0.156924, 0.998903),
    ],
)
def test_identities_between_the_objectives(t, esm, ism, dsm, fisher):
    """DSM - ISM = D / sigma^2 and ESM - ISM = J; the loss at given states is the integrand of ISM.

    DSM by Gauss and Hermite over x_0, part by part, and the noise.
    """
    z, w = normal_nodes(40)
    x0 = torch.cat([z * math.sqrt(v) + m for m, v in ((-1.2, 0.09), (0.8, 0.25))])
    weights = torch.outer(torch.cat([0.3 * w, 0.7 * w]), w).flatten()
    data, noise = (v.flatten()[:, None] for v in torch.meshgrid(x0, z, indexing="ij"))
    explained = float((weights * sf.dsm_loss(WRONG, data, "none", t=t, noise=noise)).sum())
    assert explained == pytest.approx(dsm, abs=2e-6)

    def implicit(x: Tensor) -> Tensor:
        return ssm_loss(WRONG, x, "none", trace="exact", t=t, xt=x)

    explicit = expectation(t, lambda x: (WRONG.score(x, t) - MIXTURE.score(x, t))[:, 0] ** 2)
    information = expectation(t, lambda x: MIXTURE.score(x, t)[:, 0] ** 2)
    found = expectation(t, implicit)
    assert (explicit, found, information) == pytest.approx((esm, ism, fisher), abs=2e-6)
    assert explicit - found == pytest.approx(information, abs=1e-8)
    assert explained - found == pytest.approx(float(1 / sf.VP().sigma(t) ** 2), abs=1e-7)


def test_finite_differences_have_a_bias_of_second_order():
    t = 0.1
    exact = expectation(t, lambda x: ssm_loss(WRONG, x, "none", trace="exact", t=t, xt=x))
    bias = [
        expectation(t, lambda x, e=e: ssm_loss(WRONG, x, "none", trace="finite", step=e, t=t, xt=x, seed=0)) - exact
        for e in (0.2, 0.1, 0.05, 0.025)
    ]
    assert [abs(b) for b in bias] == pytest.approx([2.191e-3, 5.477e-4, 1.369e-4, 3.424e-5], rel=5e-4)
    assert bias[2] / bias[3] == pytest.approx(4.0, abs=2e-3)


COV = torch.tensor(
    [[2.750408, -0.647949, -0.193783], [-0.647949, 1.229273, -0.020325], [-0.193783, -0.020325, 0.220319]], dtype=F64
)


def test_probes_of_a_rotated_gaussian():
    """Value -tr C^-1, and the variances over v that each law of probes has."""
    inverse = torch.linalg.inv(COV)
    model = sf.ScoreModel.from_score(lambda x, t: -x @ inverse, sf.VP(), shape=(3,))
    n = 20_000
    x = torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) @ torch.linalg.cholesky(COV).T
    value = -float(inverse.trace())
    assert value == pytest.approx(-6.333333, abs=1e-4)
    for distribution, plain, sliced in (
        ("rademacher", 84.3, 57.7),
        ("gaussian", 240.8, 262.3),
        ("sphere", 125.6, 113.8),
    ):
        for trace, variance in (("plain", plain), ("sliced", sliced)):
            loss = ssm_loss(model, x, "none", trace=trace, distribution=distribution, t=0.5, xt=x, seed=1)
            assert abs(float(loss.mean()) - value) < 4 * math.sqrt(variance / n)
            assert float(loss.var()) == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize(
    ("t", "losses", "gradients"),
    [
        (0.01, (1.961, 0.0001), (0.0312, 0.0005)),
        (0.1, (0.935, 0.202), (0.874, 0.808)),
        (0.5, (0.0009, 1.912), (0.0823, 7.65)),
    ],
)
def test_which_objective_has_less_variance(t, losses, gradients):
    """N(0, 1/4) data, exact score, weight sigma^2: at small times the implicit one, at large times the denoising one.

    With a = sigma^2 / c the variances of the losses are 2 (1 - a)^2 and 2 a^2, those of the gradient by a factor of the score
    4 a (1 - a) and 8 a^2; the figures given are of draws, within 1.2 %. Both losses are polynomials: quadrature is exact.
    """
    sde, (z, w) = sf.VP(), normal_nodes(8)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    c = alpha**2 / 4 + sigma**2
    data, noise = (v.flatten()[:, None] for v in torch.meshgrid(0.5 * z, z, indexing="ij"))

    def variances(loss, weights: Tensor) -> tuple[float, float]:
        """Of the loss, and of its slope in the factor, which is a difference since the loss is quadratic there."""
        values = [
            loss(sf.ScoreModel.from_score(lambda x, t, k=k: -k * x / c, sde, shape=(1,))) for k in (0.0, 1.0, 2.0)
        ]
        both = values[1], 0.5 * (values[2] - values[0])
        return tuple(float((weights * v**2).sum() - (weights * v).sum() ** 2) for v in both)

    denoising = variances(lambda m: sf.dsm_loss(m, data, t=t, noise=noise), torch.outer(w, w).flatten())
    x = math.sqrt(c) * z[:, None]
    implicit = variances(lambda m: ssm_loss(m, x, trace="exact", t=t, xt=x), w)
    a = sigma**2 / c
    assert denoising == pytest.approx((2 * (1 - a) ** 2, 4 * a * (1 - a)), rel=1e-9)
    assert implicit == pytest.approx((2 * a**2, 8 * a**2), rel=1e-9)
    assert (denoising[0], implicit[0]) == pytest.approx(losses, rel=0.012, abs=5e-5)
    assert (denoising[1], implicit[1]) == pytest.approx(gradients, rel=0.012, abs=5e-5)


class DoubleWell(sf.SDE):
    """dX = (X - X^3) dt + 2^{1/2} dW, whose law has no closed form but a stationary score x - x^3."""

    T = 5.0

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, x, t):
        return math.sqrt(2.0)


def test_a_process_without_a_kernel_is_learned_by_simulation():
    """Least squares over the features (x, x^3) of the simulated law: near (1, -1), off by the step of the simulation."""
    n = 4000
    x0 = 0.5 * torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(2, dtype=F64, requires_grad=True)
    model = sf.ScoreModel.from_score(lambda x, t: weights[0] * x + weights[1] * x**3, DoubleWell(), shape=(1,))

    def loss() -> Tensor:
        return ssm_loss(model, x0, t=5.0, trace="exact", steps=250, seed=1).mean()

    # The loss is quadratic in the weights: one Newton step finds its least value.
    (gradient,) = torch.autograd.grad(loss(), weights)
    hessian = torch.autograd.functional.hessian(lambda w: _quadratic(w, x0), weights.detach())
    found = -torch.linalg.solve(hessian, gradient)
    assert found.tolist() == pytest.approx([0.805, -0.890], abs=0.2)
    with pytest.raises(ValueError, match="train by sf"):
        sf.dsm_loss(model, x0, seed=0)
    with pytest.raises(ValueError, match="needs a GaussianSDE"):
        ssm_loss(model, x0, "noise", seed=0)
    with pytest.raises(ValueError, match="needs a GaussianSDE"):
        model.denoise(x0, 1.0)


def _quadratic(w: Tensor, x0: Tensor) -> Tensor:
    model = sf.ScoreModel.from_score(lambda x, t: w[0] * x + w[1] * x**3, DoubleWell(), shape=(1,))
    return ssm_loss(model, x0, t=5.0, trace="exact", steps=250, seed=1).mean()


def test_score_error_and_planted_errors():
    wrong = MIXTURE | ScoreError(lambda x, t: torch.full_like(x, 0.3))
    found = score_error(wrong, MIXTURE, 0.4, 500)
    assert found.value == pytest.approx(0.09, abs=1e-12)
    x = MIXTURE.sample(5, 0.4, seed=0)
    gap = wrong.velocity(x, 0.4) - MIXTURE.velocity(x, 0.4)
    assert torch.allclose(gap, torch.full_like(x, -0.15 * float(sf.VP().g2(0.4))), atol=1e-10)
    first = score_error(WRONG, MIXTURE, 0.3, 4000)
    assert abs(first.value - 0.127578) < 4 * first.stderr


def test_distances_in_closed_form():
    mean = torch.zeros(3)
    assert gaussian_w2(mean, COV, mean + 2, COV) == pytest.approx(math.sqrt(12), abs=1e-6)
    assert gaussian_w2(mean, COV, mean, 4 * COV) == pytest.approx(math.sqrt(float(COV.trace())), abs=1e-6)
    x = torch.tensor([0.0, 1.0, 3.0])
    assert wasserstein_1d(x, x + 0.5) == pytest.approx(0.5)
    assert wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0, 1.0]), p=1) == pytest.approx(1 / 6)
    assert sliced_w2(torch.zeros(4, 2), torch.ones(4, 2), 400) == pytest.approx(1.0, abs=0.15)
    p = torch.tensor([1.0, 0.0, 1.0])
    assert tv_on_grid(p, torch.tensor([0.0, 1.0, 1.0]), 0.5) == 0.5


def test_bad_input_is_one_line():
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="trace='x'"):
        ssm_loss(WRONG, x, trace="x")
    with pytest.raises(ValueError, match="step=0"):
        ssm_loss(WRONG, x, trace="finite", step=0.0)
    with pytest.raises(ValueError, match="probes=0"):
        ssm_loss(WRONG, x, probes=0)


def test_finite_differences_are_exact_for_affine_scores_and_biased_at_a_mixtures_own():
    """Relative to the Fisher information at t = 0.1: -1.69e-2, -4.50e-3, -1.14e-3 for steps 0.1, 0.05, 0.025."""
    t, affine = 0.1, sf.ScoreModel.from_score(lambda x, t: -(x - 0.1) / 1.3, sf.VP(), shape=(1,))

    def value(model: sf.ScoreModel, **options) -> float:
        return expectation(t, lambda x: ssm_loss(model, x, "none", t=t, xt=x, seed=0, **options))

    assert value(affine, trace="finite", step=0.4) == pytest.approx(value(affine, trace="exact"), abs=1e-12)
    exact = value(MIXTURE, trace="exact")  # minus the information
    bias = [(value(MIXTURE, trace="finite", step=e) - exact) / -exact for e in (0.1, 0.05, 0.025)]
    assert bias == pytest.approx([-1.69e-2, -4.50e-3, -1.14e-3], rel=5e-3)


@pytest.mark.parametrize(("distribution", "variance"), [("rademacher", 5.22852), ("gaussian", 208.889)])
def test_variance_of_a_single_probe(distribution, variance):
    """Var_v of 2 v^T (ds/dx) v at one state; the sample variance of a heavy-tailed square is known to a tenth."""
    inverse = torch.linalg.inv(COV)
    model = sf.ScoreModel.from_score(lambda x, t: -x @ inverse, sf.VP(), shape=(3,))
    x = torch.zeros(40_000, 3, dtype=F64)
    loss = ssm_loss(model, x, "none", trace="sliced", distribution=distribution, t=0.5, xt=x, seed=2)
    assert float(loss.var()) == pytest.approx(variance, rel=0.1)


def least_squares(sde: sf.SDE, features, x: Tensor, weights: Tensor) -> list[float]:
    """The minimum of the exact implicit loss over linear combinations of features, under a law given by quadrature."""

    def total(w: Tensor) -> Tensor:
        model = sf.ScoreModel.from_score(
            lambda y, t: sum(a * f(y) for a, f in zip(w, features, strict=True)), sde, (1,)
        )
        return (weights * ssm_loss(model, x, "none", trace="exact", t=0.5, xt=x)).sum()

    zero = torch.zeros(len(features), dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total(zero), zero)
    hessian = torch.autograd.functional.hessian(total, zero.detach())
    return (-torch.linalg.solve(hessian, gradient)).tolist()


class Anything(sf.SDE):
    """A process whose law is given in the tests below."""

    def drift(self, x, t):
        return -x

    def diffusion(self, x, t):
        return 1.0


def test_linear_features_find_stationary_scores_exactly():
    """Double well: (x, x^3) -> (1, -1); lognormal (1/x, log x / x); Gamma of a square-root process (1/x, 1)."""
    x = torch.linspace(-5, 5, 4001, dtype=F64)[:, None]
    density = torch.exp(0.5 * x**2 - 0.25 * x**4)[:, 0]
    found = least_squares(Anything(), (lambda y: y, lambda y: y**3), x, density / density.sum())
    assert found == pytest.approx([1.0, -1.0], abs=1e-9)
    mean, variance = 0.1 - 0.125, 0.2 + 0.25  # of log X at T = 1
    y = torch.linspace(mean - 8, mean + 8, 8001, dtype=F64)
    density = torch.exp(-0.5 * (y - mean) ** 2 / variance)
    features = (lambda z: 1 / z, lambda z: torch.log(z) / z)
    found = least_squares(Anything(), features, torch.exp(y)[:, None], density / density.sum())
    assert found == pytest.approx([-1.05556, -2.22222], abs=1e-5)
    shape, rate = 2 * 1.3 * 0.8 / 0.36, 2 * 1.3 / 0.36
    x = torch.linspace(1e-4, 8, 20_001, dtype=F64)[:, None]
    density = (x ** (shape - 1) * torch.exp(-rate * x))[:, 0]
    found = least_squares(Anything(), (lambda z: 1 / z, torch.ones_like), x, density / density.sum())
    assert found == pytest.approx([4.777778, -7.222222], abs=1e-5)
    information = (density / density.sum() * ((shape - 1) / x[:, 0] - rate) ** 2).sum()
    assert float(information) == pytest.approx(13.80719, abs=1e-4)


@pytest.mark.parametrize(("h", "drawn"), [(0.02, (0.805, -0.890)), (0.005, (0.937, -0.969))])
def test_the_score_that_is_learned_is_that_of_the_simulated_law(h, drawn):
    """The double well from N(0, 1/4) at T = 5: the law of the library's own steps on a grid, and features (x, x^3).

    Exact values would be near (1, -1); 100,000 draws gave `drawn`, with standard errors of (0.020, 0.012).
    """
    sde, width = DoubleWell(), 0.025
    x = torch.arange(-4, 4 + width / 2, width, dtype=F64)[:, None]
    zero, length = torch.zeros((), dtype=F64), torch.tensor(h, dtype=F64)
    mean, moved = (
        sde._forward_step(x, zero, length, FromFunction(len(x), lambda shape, z=z: torch.full(shape, z)), False)
        for z in (0.0, 1.0)
    )
    std = moved - mean
    step = torch.exp(-0.5 * ((x - mean.T) / std.T) ** 2) / (std.T * math.sqrt(2 * math.pi)) * width
    density = torch.linalg.matrix_power(step, round(5 / h)) @ torch.exp(-2 * x[:, 0] ** 2)
    found = least_squares(Anything(), (lambda y: y, lambda y: y**3), x, density / density.sum())
    for value, seen, stderr in zip(found, drawn, (0.020, 0.012), strict=True):
        assert abs(value - seen) < 4 * stderr
    limit = (1 - found[0]) / h  # first order in h
    assert limit == pytest.approx(10.5, rel=0.25)


EDGES = {  # shape of the Gamma law: exact score, cut, what is found there
    2.5: ((1.5, -1.0), 1e-20, (1.5, -1.0)),
    1.5: ((0.5, -1.0), 1e-9, (1.0, -2.0)),
    0.8: ((-0.2, -1.0), 1e-9, (1.0, None)),
}


@pytest.mark.parametrize("shape", EDGES)
def test_densities_that_do_not_vanish_at_an_edge_are_matched_wrongly(shape):
    """Features (1/x, 1) on a Gamma law: right above a shape of 2, and silently (1, -E[1/x]) below, where E[1/x^2] is infinite.

    The minimum is (q, -m q) / (q - m^2) with q = E[1/x^2] and m = E[1/x]; of 100,000 draws it does not warn either.
    """
    exact, cut, expected = EDGES[shape]
    features = (lambda y: 1 / y, torch.ones_like)
    logs = torch.linspace(math.log(cut), math.log(60.0), 20_001, dtype=F64)
    x = torch.exp(logs)[:, None]
    density = torch.exp(shape * logs - x[:, 0])  # of log x
    found = least_squares(Anything(), features, x, density / density.sum())
    m = float((density / density.sum() / x[:, 0]).sum())
    assert found[0] == pytest.approx(expected[0], abs=5e-4)
    assert found[1] == pytest.approx(-m if expected[1] is None else expected[1], rel=2e-3)
    assert (shape > 2) == (found == pytest.approx(exact, abs=1e-3))
    n = 100_000
    x = torch.tensor(np.random.default_rng(0).gamma(shape, size=n))[:, None]
    seen = least_squares(Anything(), features, x, torch.full((n,), 1 / n, dtype=F64))
    assert seen[0] == pytest.approx(expected[0], abs=0.15)
    assert seen[1] < (-1.05 if shape > 2 else -1.5 if shape > 1 else -20)
