"""Scores from moments (Shen et al. 2024), and networks on top of a model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import scorefield as sf
from scorefield.polynomial import Residual, _monomials, _Tables, polynomial_score

F64 = torch.float64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
recorded = pytest.mark.skipif(not SHARED.exists(), reason="the recordings are not here")
SDES = [sf.VP(), sf.VE(0.01, 5.0), sf.SubVP()]


class OU(sf.GaussianSDE):
    """dx = -x dt + 2^{1/2} dw."""

    T = 5.0

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * t))


def rotated(n: int, d: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=F64, generator=g)
    return torch.randn(n, d, dtype=F64, generator=g) @ root + torch.randn(d, dtype=F64, generator=g)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_second_order_is_the_gaussian_of_the_moments(sde):
    data, x = rotated(500, 3), 2 * rotated(20, 3, 1)
    model = polynomial_score(data, sde, order=2)
    mean, cov = data.mean(0), torch.cov(data.T, correction=0)
    for t in (0.01, 0.1, 0.5, 0.9):
        a, s = float(sde.alpha(t)), float(sde.sigma(t))
        total = a**2 * cov + s**2 * torch.eye(3, dtype=F64)
        inside = a * data[:20] + 0.5 * s * x / x.abs().max()
        assert torch.allclose(model.score(inside, t), -(inside - a * mean) @ torch.linalg.inv(total), atol=1e-12)
    times = torch.linspace(0.1, 0.9, 20, dtype=F64)
    each = torch.cat([model.score(x[i : i + 1], float(times[i])) for i in range(20)])
    assert torch.allclose(model.score(x, times), each, atol=1e-10)


def mixture_data(n: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    pick = torch.rand(n, 1, dtype=F64, generator=g) < 0.3
    z = torch.randn(n, 1, dtype=F64, generator=g)
    return torch.where(pick, -1.2 + 0.3 * z, 0.8 + 0.5 * z)


def test_error_falls_with_the_order():
    """Relative score error of the mixture at t = .3 for orders 1 to 8; E|s_hat - s|^2 = E|s|^2 - E s.s_hat up to sampling."""
    gm = sf.GaussianMixture(
        torch.tensor([[-1.2], [0.8]], dtype=F64), torch.tensor([[0.09], [0.25]], dtype=F64), [0.3, 0.7], OU()
    )
    data = mixture_data(20_000)
    x = torch.linspace(-6, 6, 4001, dtype=F64)[:, None]
    density = torch.exp(gm.log_prob(x, 0.3))
    exact = gm.score(x, 0.3)
    errors = []
    for order in (2, 4, 6, 8):
        gap = polynomial_score(data, OU(), order).score(x, 0.3) - exact
        ratio = torch.trapezoid(density * gap[:, 0] ** 2, x[:, 0]) / torch.trapezoid(
            density * exact[:, 0] ** 2, x[:, 0]
        )
        errors.append(float(ratio))
    assert errors == pytest.approx([8.1e-2, 2.3e-2, 7.6e-3, 2.9e-3], rel=0.15)


def line_error(model, gm, t):
    """E |s_hat - s|^2 and E |s|^2 on a line, by quadrature."""
    x = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    density, exact = torch.exp(gm.log_prob(x, t)), gm.score(x, t)[:, 0]
    gap = model.score(x, t)[:, 0] - exact
    return float(torch.trapezoid(density * gap**2, x[:, 0])), float(torch.trapezoid(density * exact**2, x[:, 0]))


def of_the_law(sde, order):
    """The polynomial with the moments of the mixture itself, by quadrature, and without its guard: no sampling error."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(40))
    x = torch.cat([-1.2 + 0.3 * nodes, 0.8 + 0.5 * nodes])
    w = torch.cat([0.3 * weights, 0.7 * weights]) / weights.sum()
    model = polynomial_score(torch.linspace(-1, 1, 9, dtype=F64)[:, None], sde, order)
    model._centre, model._scale = (w @ x)[None], float(torch.sqrt(w @ x**2 - (w @ x) ** 2))
    unit = (x - model._centre) / model._scale
    model._moments = torch.stack([w @ unit ** n[0] for n in model._tables.every])[None]
    model._low, model._high = torch.full((1,), -1e6, dtype=F64), torch.full((1,), 1e6, dtype=F64)
    return model


def on_a_line(sde):
    return sf.GaussianMixture(
        torch.tensor([[-1.2], [0.8]], dtype=F64), torch.tensor([0.09, 0.25], dtype=F64), [0.3, 0.7], sde
    )


KNOWN = [
    (0.3, {1: 8.07e-2, 2: 8.07e-2, 4: 2.29e-2, 6: 7.6e-3, 8: 2.8e-3, 10: 1.1e-3}),
    (0.6, {1: 6.56e-3, 2: 6.56e-3, 4: 8.8e-4, 6: 1.5e-4, 8: 2.9e-5, 10: 6.4e-6}),
    (1.0, {1: 3.8e-4, 2: 3.8e-4, 6: 9.1e-7, 8: 6.5e-8, 10: 5.5e-9}),
]


@pytest.mark.parametrize(("t", "known"), KNOWN)
def test_errors_of_the_orders_are_known(t, known):
    """Relative squared errors with the moments of the law itself."""
    for order, value in known.items():
        error, size = line_error(of_the_law(OU(), order), on_a_line(OU()), t)
        assert error / size == pytest.approx(value, rel=0.03), order


class Fixed(sf.GaussianSDE):
    """One alpha and sigma at all times."""

    def __init__(self, alpha, sigma):
        self.a, self.s = alpha, sigma

    def alpha(self, t):
        return torch.full_like(t, self.a)

    def sigma(self, t):
        return torch.full_like(t, self.s)


OTHERS = [
    (1.0, 0.7, (0.201, 0.0729, 0.0302, 0.0138)),
    (1.0, 2.0, (1.5e-3,)),
    (math.exp(-0.3), -math.expm1(-0.6), (0.291, 0.116, 0.0525, 0.0261)),
    (math.exp(-0.3), math.sqrt(-math.expm1(-0.6)), (8.1e-2, 2.3e-2, 7.6e-3, 2.8e-3)),
]


@pytest.mark.parametrize(("alpha", "sigma", "known"), OTHERS, ids=["VE 0.7", "VE 2", "sub-VP", "VP"])
def test_errors_of_other_processes_are_known(alpha, sigma, known):
    """Orders 2, 4, 6 and 8 of one formula for every alpha and sigma."""
    sde = Fixed(alpha, sigma)
    for order, value in zip((2, 4, 6, 8), known, strict=False):
        error, size = line_error(of_the_law(sde, order), on_a_line(sde), 0.5)
        assert error / size == pytest.approx(value, rel=0.05), order


def fit(model, t):
    """c and the weights of u, (P,), at a time."""
    time = torch.tensor([t], dtype=F64)
    c2, weights = model._fit(model.sde.alpha(time), model.sde.sigma(time) / model._scale)
    return float(c2.sqrt()) * model._scale, weights[0, 0]


def test_where_the_field_points_outward():
    """The highest weight in u is positive at order 6 at every t (.0155 at .05, .0019 at .3), at order 8 up to t = .05."""
    data = mixture_data(20_000)
    for order, times in ((6, (0.01, 0.05, 0.1, 0.3, 0.6, 1.0)), (8, (0.01, 0.05))):
        assert all(float(fit(polynomial_score(data, OU(), order), t)[1][-1]) > 0 for t in times)
    for t in (0.1, 0.3, 0.6):
        assert float(fit(polynomial_score(data, OU(), 8), t)[1][-1]) < 0
    for t, known, rel in ((0.05, 0.0155, 0.1), (0.3, 0.0019, 0.06)):
        c, weights = fit(polynomial_score(data, OU(), 6), t)
        assert float(weights[-1]) / c**6 == pytest.approx(known, rel=rel)  # of x^6; the sample decides at small t


def test_the_matrix_of_the_fit_is_that_of_noised_points():
    """A by moments beside means of grad phi . grad phi over 20,000 points at t = .3, by NumPy's polynomials: 3 % at order 4."""
    order, data, far = 4, mixture_data(20_000), []
    tables = _Tables.of(order, 1)
    a = torch.exp(torch.tensor([[-0.3]], dtype=F64))
    matrix = tables.system(tables.expectations(_monomials(data, tables.every).mean(0)[None], a, a**2))[0][0, 0]
    for seed in range(1, 6):
        noise = torch.randn(data.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
        x = OU().perturb(data, 0.3, noise)[:, 0].numpy()
        values = [n * np.polynomial.hermite_e.hermeval(x, np.eye(order)[n - 1]) for n in range(1, order + 1)]
        slopes = torch.from_numpy(np.stack(values))
        products = slopes[:, None] * slopes[None]
        gap = (products.mean(2) - matrix).abs()
        assert bool((gap < 4 * products.std(2) / math.sqrt(len(x)) + 1e-12).all())
        far.append(float(gap.max() / matrix.abs().max()))
    assert sorted(far)[2] < 0.03


@pytest.mark.parametrize(("order", "known"), [(2, 0.0065207331340), (4, 0.00087676306), (8, 2.8466e-5)])
def test_pythagoras(order, known):
    """E |s_hat - s|^2 = E |s + x / c^2|^2 - E |grad u|^2, the fit being a projection; t = .6, reference N(0, 1)."""
    gm, model = on_a_line(OU()), of_the_law(OU(), order)
    error, _ = line_error(model, gm, 0.6)
    assert error == pytest.approx(known, rel=1e-4)
    x = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    density, exact, fit = torch.exp(gm.log_prob(x, 0.6)), gm.score(x, 0.6)[:, 0], model.score(x, 0.6)[:, 0]
    c2 = float(torch.trapezoid(density * x[:, 0] ** 2, x[:, 0]))
    all_of_it = float(torch.trapezoid(density * (exact + x[:, 0] / c2) ** 2, x[:, 0]))
    fitted = float(torch.trapezoid(density * (fit + x[:, 0] / c2) ** 2, x[:, 0]))
    assert all_of_it - fitted == pytest.approx(error, rel=1e-6)


def test_samples_without_training_come_nearer_with_the_order():
    """W1 to the data by flow and SDE, t from 3 to .02: monotone in the order."""
    data = mixture_data(20_000)
    exact = data[:, 0].sort()[0][10::20]
    grid = torch.cat([torch.tensor([5.0], dtype=F64), torch.logspace(math.log10(3), math.log10(0.02), 31, dtype=F64)])
    for solver in (sf.Heun(), sf.EulerMaruyama()):
        far = []
        for order in (2, 4, 8):
            y = sf.sample(polynomial_score(data, OU(), order), 1000, solver, grid=grid, seed=0, denoise=False)
            far.append(float((y[:, 0].double().sort()[0] - exact).abs().mean()))
        assert far[0] > 1.2 * far[1] > 1.2**2 * far[2] * 0.99, far


def test_axis_basis_and_samples():
    """For entries that are independent the axis basis of order 2 is exact; samples without training have the right moments."""
    g = torch.Generator().manual_seed(0)
    data = torch.randn(4000, 3, dtype=F64, generator=g) * torch.tensor([0.3, 1.0, 2.0]) + torch.tensor([1.0, 0.0, -1.0])
    model = polynomial_score(data, sf.VP(), 2, "axis")
    mean, var = data.mean(0), data.var(0, correction=0)
    a, s = float(sf.VP().alpha(0.4)), float(sf.VP().sigma(0.4))
    x = a * data[:10]
    assert torch.allclose(model.score(x, 0.4), -(x - a * mean) / (a**2 * var + s**2), atol=1e-9)
    y = sf.sample(model, 2000, sf.DPMSolver(), steps=20, seed=0)
    assert torch.allclose(y.double().mean(0), mean, atol=0.15)
    assert torch.allclose(y.double().std(0), var.sqrt(), rtol=0.1)


def test_the_field_is_guarded_outside_the_data():
    """Order 6 of the mixture points outwards far away; outside the range of the data the pull is that of the Gaussian."""
    model = polynomial_score(mixture_data(20_000), OU(), 6)
    far = torch.tensor([[-60.0], [60.0]], dtype=F64)
    assert bool((model.score(far, 0.3) * far < 0).all())
    assert model.log_density_ratio(far, 0.3).shape == (2,)
    x = sf.sample(model, 500, sf.EulerMaruyama(), steps=100, seed=0, t_min=0.05)
    assert float(x.abs().max()) < 8


def test_a_network_on_top_starts_from_the_model():
    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 2))

        def forward(self, x, t):
            return x @ self.weight.to(x) * t[:, None]

    base = polynomial_score(rotated(300, 2), sf.VP(), 2)
    model, x = base | Residual(Zero()), rotated(5, 2, 3)
    for view in ("denoise", "score", "noise", "velocity"):
        assert torch.allclose(getattr(model, view)(x, 0.3), getattr(base, view)(x, 0.3), atol=1e-9), view
    assert [p.shape for p in model.parameters()] == [(2, 2)]
    loss = sf.dsm_loss(model, x, seed=0).sum()
    loss.backward()
    assert float(model.correction.weight.grad.abs().max()) > 0


def test_bad_input_is_one_line():
    data = rotated(30, 2)
    for arguments, match in (
        ((data, sf.VP(), 0), "order=0"),
        ((data[:1], sf.VP()), "at least 2"),
        ((torch.ones(10, 2), sf.VP()), "degenerate"),
        ((torch.full((4, 1), math.nan), sf.VP()), "entries are NaN or infinite"),
        ((rotated(30, 12), sf.VP(), 4), "use basis='axis'"),
    ):
        with pytest.raises(ValueError, match=match):
            polynomial_score(*arguments)


@recorded
def test_recording_of_the_systems():
    """A, b and the weights for a reference N(0, 1), in one dimension and in two."""
    r = load_file(SHARED / "29_oism.safetensors")
    alpha = torch.exp(-r["t"])[:, None]
    for order, data, name in ((6, r["data_1d"][:, None], "1d"), (3, r["data_2d"], "2d")):
        tables = _Tables.of(order, data.shape[1])
        moments = _monomials(data, tables.every).mean(0)[None]
        matrix, side = (v[:, 0] for v in tables.system(tables.expectations(moments, alpha, alpha**2)))
        if name == "1d":
            assert torch.allclose(matrix, r["A_1d"], rtol=1e-12, atol=1e-9)
            assert torch.allclose(side, r["b_1d"], rtol=1e-12, atol=1e-12)
        else:
            assert [list(n) for n in tables.basis] == r["multi_index_2d"].tolist()
        assert torch.allclose(torch.linalg.solve(matrix, side), r[f"alpha_{name}"], rtol=1e-9, atol=1e-9)


@recorded
def test_recording_of_polynomial_scores():
    r = load_file(SHARED / "29_oism.safetensors")
    one = polynomial_score(r["data_1d"][:, None], OU(), 6)
    two = polynomial_score(r["data_2d"], OU(), 3)
    for k, t in enumerate(r["t"].tolist()):
        for model, x, theirs in (
            (one, r["x_1d"][:, None], r["score_1d"][k][:, None]),
            (two, r["x_2d"], r["score_2d"][k]),
        ):
            ours = model.score(x, t)
            unguarded = (model._read(x, torch.tensor(t, dtype=F64))[0] - ours).abs().amax() == 0
            near = (ours - theirs).abs().amax(1) < 1e-9 * (1 + theirs.abs().amax(1))
            inside = _inside(model, x, t)
            assert unguarded
            assert bool(near[inside].all()), t


def _inside(model, x: Tensor, t: float) -> Tensor:
    """Where the polynomial itself is read, not its continuation."""
    alpha, s = float(model.sde.alpha(t)), float(model.sde.sigma(t)) / model._scale
    unit = (x - alpha * model._centre) / model._scale
    low, high = alpha * model._low - 2 * s, alpha * model._high + 2 * s
    return ((unit >= low) & (unit <= high)).all(1)


def test_a_correction_under_a_process_without_a_kernel_is_one_of_the_score():
    """With the stationary score 2 drift / g^2 as base the reverse drift is the forward one, less g^2 times the correction."""

    class Well(sf.SDE):
        def drift(self, x, t):
            return x - x**3

        def diffusion(self, x, t):
            return 0.7

    sde, x = Well(), torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    base = sf.ScoreModel.from_score(lambda y, t: 2 * sde.drift(y, t) / 0.49, sde, shape=(1,))

    class Correction(nn.Module):
        def forward(self, y, t):
            return torch.tanh(y)

    model = base | Residual(Correction())
    backward = -sde.reverse_drift(x, 0.3, model.score(x, 0.3))
    assert torch.allclose(backward, sde.drift(x, 0.3) + 0.49 * torch.tanh(x), atol=1e-12)
    assert torch.allclose(model.velocity(x, 0.3), -0.5 * 0.49 * torch.tanh(x), atol=1e-12)
    with pytest.raises(ValueError, match="needs a GaussianSDE"):
        model.denoise(x, 0.3)
