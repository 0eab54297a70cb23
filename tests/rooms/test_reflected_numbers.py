"""Every figure of reflected diffusion that has a closed form: kernel, cosine series, likelihood, samplers, guidance."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch

import scorefield as sf
from jump_oracles import nodes
from scorefield.reflected import Clamped, CosineSeries, ReflectedVE

F64 = torch.float64
WIDE, NARROW = ReflectedVE(0.01, 5.0), ReflectedVE(0.01, 2.0)
A = (0.8, 0.25, 0.1)
SERIES = CosineSeries(A, WIDE)


def time_of(sigma: float, sde: ReflectedVE = WIDE) -> float:
    return math.log(sigma / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)


def model_of(series: CosineSeries) -> sf.ScoreModel:
    return sf.ScoreModel.from_score(series.score, series.sde, shape=(1,))


def density(x0: float, sigma: float, cells: int = 400, each: int = 10) -> tuple[torch.Tensor, ...]:
    """Nodes, weights, p(x | x_0) and its score, p being the exponential of the score's integral, normalised.

    Also p at the edges of the cells. Nothing but the library's score goes in, and that p is a density.
    """
    inner, w = nodes(each, 0.0, 1.0 / cells)
    x = (torch.arange(cells, dtype=F64)[:, None] / cells + inner).reshape(-1, 1)
    score = WIDE.kernel_score(x, torch.full_like(x, x0), time_of(sigma)).reshape(cells, each)
    steps = (score * w).sum(1)
    at_edge = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    # Within a cell: the integral up to each node of the polynomial through all of them.
    powers = torch.arange(each, dtype=F64)
    unit = inner * cells
    whole = torch.linalg.solve(unit[:, None] ** powers, score.T).T
    inside = (whole / (powers + 1)) @ (unit[:, None] ** (powers + 1)).T / cells
    log_p = at_edge[:-1, None] + inside
    top = log_p.max()
    total = (torch.exp(log_p - top) * w).sum()
    p, edge = torch.exp(log_p - top) / total, torch.exp(at_edge - top) / total
    return x.flatten(), w.repeat(cells), p.flatten(), score.flatten(), edge


@pytest.mark.parametrize(
    ("sigma", "x0", "x", "p"),
    [
        (0.05, 0.1, 0.04, 4.0420301313),
        (0.1, 0.05, 0.02, 6.9364174883),
        (0.2, 0.3, 0.9, 2.2828423614e-2),
        (0.3, 0.9, 0.95, 2.4850168179),
        (0.5, 0.2, 0.6, 0.8507900591),
        (1.0, 0.2, 0.6, 0.9964040570),
    ],
)
def test_the_density_whose_score_it_is(sigma, x0, x, p):
    assert float(density(x0, sigma)[4][round(400 * x)]) == pytest.approx(p, rel=2e-9)


@pytest.mark.parametrize(("sigma", "excess"), [(0.5, 0.597), (1.0, 1.438e-2), (1.5, 3.01e-5), (2.0, 5.35e-9)])
def test_how_uniform_the_end_is(sigma, excess):
    """At worst, p(0 | 0) - 1 = 2 exp(-pi^2 sigma^2 / 2) and more; the default ends at 5e-9."""
    assert float(density(0.0, sigma)[4][0]) - 1 == pytest.approx(excess, rel=2e-3)
    assert ReflectedVE().sigma_max == 2.0


@pytest.mark.parametrize(
    ("sigma", "value", "error"),
    [
        (0.05, 0.92334, 1e-5),
        (0.1, 0.8467, 6e-5),
        (0.2, 0.6934, 6e-5),
        (0.3, 0.5398, 6e-5),
        (0.5, 0.2225, 6e-5),
        (1, 5.1e-4, 6e-6),
    ],
)
def test_what_a_loss_can_gain(sigma, value, error):
    """sigma^2 E |kernel score|^2, averaged over x_0: nothing is left to learn beyond one width of the box."""
    total = 0.0
    for x0, weight in zip(*nodes(48, 0.0, 0.5), strict=True):  # both halves are alike
        _, w, p, score, _ = density(float(x0), sigma, 100)
        total += 2 * float(weight) * float((w * p * score**2).sum()) * sigma**2
    assert abs(total - value) < error


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.1, 0.1414, 0.45])
def test_tails_keep_all_digits(sigma):
    """Mirror images in fifty digits; the sum of eigenfunctions is wrong by 4 at sigma = 0.1 and by 1e6 at 0.05."""
    getcontext().prec = 50
    s = Decimal(sigma)
    for x0, x in ((0.02, 0.97), (0.5, 0.999), (0.9, 0.0625), (0.1, 0.55)):
        top = bottom = Decimal(0)
        for k in range(-12, 13):
            for centre in (Decimal(x0) + 2 * k, -Decimal(x0) + 2 * k):
                away = (centre - Decimal(x)) / s
                weight = (-away * away / 2).exp()
                top, bottom = top + weight * away / s, bottom + weight
        found = WIDE.kernel_score(torch.tensor([[x]], dtype=F64), torch.tensor([[x0]], dtype=F64), time_of(sigma))
        assert float(found) == pytest.approx(float(top / bottom), rel=1e-11)


def test_the_oracle_is_a_density():
    x = torch.linspace(0, 1, 20_001, dtype=F64)[:, None]
    p = torch.exp(SERIES.log_prob(x))
    assert float(p.min()) == pytest.approx(0.35, abs=1e-12)
    assert float(torch.exp(SERIES.log_prob(x, 1e-5)).min()) == pytest.approx(0.35034, abs=5e-6)
    assert float(torch.trapezoid(p, x.flatten())) == pytest.approx(1, abs=1e-8)
    assert float(SERIES.cdf(torch.ones(1, 1, dtype=F64))) == pytest.approx(1, abs=1e-14)


def test_likelihood_and_codes_to_the_last_digits():
    """log p by the flow, and the flow keeps the distribution function of the entry."""
    x = torch.tensor([[0.03], [0.2], [0.5], [0.77], [0.99]], dtype=F64)
    tight = sf.Dopri5(1e-10, 1e-10)
    found = sf.log_prob(model_of(SERIES), x, "exact", solver=tight)
    torch.testing.assert_close(found.nats, SERIES.log_prob(x, 1e-5), rtol=0, atol=2e-9)
    z = sf.encode(model_of(SERIES), x, solver=tight)
    torch.testing.assert_close(SERIES.cdf(z, 1.0), SERIES.cdf(x, 1e-5), rtol=0, atol=1e-10)


def wasserstein(x: torch.Tensor, cdf) -> float:
    """W1 of a sample of one entry to a distribution function."""
    grid = torch.linspace(0, 1, 2001, dtype=F64)
    empirical = torch.searchsorted(x.flatten().double().sort().values, grid, right=True).double() / x.numel()
    return float(torch.trapezoid((empirical - cdf(grid[:, None])[:, 0]).abs(), grid))


def drawn() -> torch.Generator:
    """One generator of all samples, which is cheaper than a stream for each."""
    return torch.Generator().manual_seed(0)


N = 20_000
FLOOR = 4 * 0.3 / math.sqrt(N)
"""Four standard errors of a mean of points whose deviation is 0.3, that of the series."""


@pytest.mark.parametrize(
    ("steps", "folded", "clamped", "atoms"),
    [
        (20, 0.0218, 0.0568, 0.042),
        (50, 0.0082, 0.0315, 0.018),
        (100, 0.0040, 0.0210, 0.010),
        (200, 0.0023, 0.0133, 0.0063),
    ],
)
def test_folding_beside_clamping(steps, folded, clamped, atoms):
    """Clamping leaves atoms on the walls at any number of steps, and is several times further off."""
    x = sf.sample(model_of(SERIES), N, sf.EulerMaruyama(), steps=steps, seed=drawn(), t_min=1e-3, progress=False)
    assert wasserstein(x, SERIES.cdf) < 1.5 * folded + FLOOR
    assert ((x >= 0) & (x <= 1)).all()
    assert float(((x == 0) | (x == 1)).double().mean()) < 1e-3
    cut = model_of(CosineSeries(A, Clamped(0.01, 5.0)))
    y = sf.sample(cut, N, sf.EulerMaruyama(), steps=steps, seed=drawn(), t_min=1e-3, progress=False)
    share = float(((y == 0) | (y == 1)).double().mean())
    assert abs(share - atoms) < 0.05 * atoms + 4 * math.sqrt(atoms / N)
    assert abs(wasserstein(y, SERIES.cdf) - clamped) < 0.05 * clamped + FLOOR


@pytest.mark.parametrize(("steps", "far"), [(20, 0.0395), (50, 0.0186), (100, 0.0090), (200, 0.0048)])
def test_reverse_diffusion_is_folded_too(steps, far):
    """A step by the variance that the forward one has: of the same order as Euler's, and twice as far off."""
    x = sf.sample(model_of(SERIES), N, sf.ReverseDiffusion(), steps=steps, seed=drawn(), t_min=1e-3, progress=False)
    assert abs(wasserstein(x, SERIES.cdf) - far) < 0.05 * far + FLOOR
    assert ((x >= 0) & (x <= 1)).all()


def test_it_is_ve_with_a_fold_that_nobody_forgets():
    """VE with a uniform prior and a fold as a hook gives the same samples; likelihood and codes at default tolerances."""
    series = CosineSeries(A, NARROW)
    model = model_of(series)
    x = sf.sample(model, N, sf.EulerMaruyama(), steps=50, seed=0, t_min=1e-3, progress=False)
    assert wasserstein(x, series.cdf) < 1.5 * 0.0067 + FLOOR
    plain = sf.ScoreModel.from_score(series.score, sf.VE(0.01, 2.0), shape=(1,))
    same = {"prior": NARROW.prior((100, 1)), "hooks": [lambda x, t, field, noise: NARROW.fold(x)]}
    y = sf.sample(plain, 100, sf.EulerMaruyama(), steps=50, seed=0, t_min=1e-3, progress=False, denoise=False, **same)
    torch.testing.assert_close(y, x[:100], rtol=0, atol=2e-5)
    points = torch.tensor([[0.0], [0.03], [0.2], [0.5], [0.77], [0.99], [1.0]], dtype=F64)
    error = (sf.log_prob(model, points, "exact").nats - series.log_prob(points, 1e-5)).abs().max()
    assert float(error) < 2 * 6.7e-5
    code = (sf.encode(model, points) - series.cdf(points, 1e-5)).abs().max()
    assert float(code) < 2 * 1.9e-4


GIVEN, OTHER = A, (-0.5, 0.2, 0.0)
"""Series of two classes that are equally frequent; that of both together is their mean."""


def guided_law(scale: float, cells: int = 200) -> torch.Tensor:
    """The distribution function, at edges of cells, of what the guided reverse process ends in.

    The equation of Fokker and Planck in the integrated noise v = sigma^2, p' = 1/2 p'' - (p s)' backward, with no flux
    through the walls, by implicit steps from the uniform law; s is the guided score in closed form.
    """
    both = CosineSeries(tuple(0.5 * (a + b) for a, b in zip(GIVEN, OTHER, strict=True)), NARROW)
    one, h = CosineSeries(GIVEN, NARROW), 1.0 / cells
    edges = torch.arange(1, cells, dtype=F64)[:, None] * h
    law, sigmas = torch.full((cells,), h, dtype=F64), torch.logspace(math.log10(2.0), -2, 401, dtype=F64)
    for late, early in zip(sigmas[:-1], sigmas[1:], strict=True):
        middle = math.sqrt(0.5 * float(late**2 + early**2))
        t = time_of(middle, NARROW)
        score = both.score(edges, t) + scale * (one.score(edges, t) - both.score(edges, t))
        right, left = 0.5 / h**2 + 0.5 * score.flatten() / h, 0.5 / h**2 - 0.5 * score.flatten() / h
        q = torch.diag(right, 1) + torch.diag(left, -1)  # rates between neighbours
        q = q - torch.diag(q.sum(1))
        law = torch.linalg.solve(torch.eye(cells, dtype=F64) - float(late**2 - early**2) * q.T, law)
    return torch.cat([law.new_zeros(1), law.cumsum(0)])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_guided_samples_stay_in_the_box_and_have_the_law_of_the_guided_process(scale):
    """Classifier-free guidance, against the equation of its density; at scale 1 that is the class itself."""
    both = CosineSeries(tuple(0.5 * (a + b) for a, b in zip(GIVEN, OTHER, strict=True)), NARROW)
    one = CosineSeries(GIVEN, NARROW)

    def score(x, t, label=None):
        return (both if label is None else one).score(x, t)

    model = sf.ScoreModel.from_score(score, NARROW, shape=(1,)) | sf.ClassifierFree(scale=scale)
    x = sf.sample(model, N, sf.EulerMaruyama(), steps=150, seed=drawn(), t_min=1e-3, label=1, progress=False)
    assert ((x >= 0) & (x <= 1)).all()
    law, edges = guided_law(scale), torch.linspace(0, 1, 201, dtype=F64)

    def cdf(points):
        return torch.from_numpy(np.interp(points.numpy(), edges.numpy(), law.numpy()))

    grid = torch.linspace(0, 1, 2001, dtype=F64)[:, None]
    apart = float((cdf(grid) - one.cdf(grid)).abs().mean())
    assert apart < 1e-3 if scale == 1 else apart > 0.05
    assert wasserstein(x, cdf) < 0.004 + FLOOR


def test_every_solver_runs_inside_the_box_or_is_refused_in_one_line():
    model, ran, refused = model_of(SERIES), set(), {}
    for name, kind in sf.solve.solvers().items():
        if name in ("PC", "Tuned"):
            continue
        try:
            x = sf.sample(model, 3, kind(), steps=None if kind().adapts else 4, seed=0, progress=False)
        except ValueError as error:
            refused[name] = str(error)
            continue
        ran.add(name)
        assert ((x >= 0) & (x <= 1)).all(), name
    assert ran >= {"EulerMaruyama", "ReverseDiffusion", "Euler", "Heun", "RK4", "Dopri5", "Tsit5", "Bosh3"}
    assert all("ReflectedVE" in words and "\n" not in words for words in refused.values()), refused
    with pytest.raises(ValueError, match="ReflectedVE"):
        sf.sample(model, 3, sf.PC(sf.ReverseDiffusion(), sf.Langevin()), steps=3, seed=0)
    assert not ran & {"DDIM", "DEIS", "UniPC", "DPMSolver", "DPMSolverSingle", "Ancestral", "AnalyticAncestral"}


def test_what_needs_a_denoiser_is_refused():
    model, mask = model_of(SERIES), sf.Mask(torch.tensor([True]))
    with pytest.raises(ValueError, match="ReflectedVE"):
        sf.sample(model | sf.Posterior(mask, torch.tensor([[0.5]]), noise=0.1), 2, sf.Euler(), steps=3, seed=0)
    with pytest.raises(ValueError, match="ReflectedVE"):
        sf.sample(model, 2, sf.EulerMaruyama(), steps=3, seed=0, denoise=True)
