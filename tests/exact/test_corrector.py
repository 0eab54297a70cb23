"""Song et al. 2021, Alg. 1 to 5: predictor-corrector sampling of a Gaussian, by affine recursion of its variance."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import scorefield as sf
from oracles import PAPER, gaussian, name
from scorefield.randomness import FromFunction, source
from scorefield.solve.integrate import Field

TABLE = {  # relative error of the variance at N = 10, 20, 50, 100
    ("Ancestral", False): (-0.55, -0.34, -0.155, -0.081),
    ("ReverseDiffusion", False): (1.98, 0.62, 0.196, 0.091),
    ("ProbabilityFlow", False): (16.5, 3.4, 0.80, 0.34),
    ("Ancestral", True): (-0.217, -0.076, 0.012, 0.025),
    ("ReverseDiffusion", True): (1.62, 0.28, 0.035, 0.026),
    ("ProbabilityFlow", True): (15.0, 1.92, 0.050, 0.026),
}
DIGITS = 0.5e-3  # the table is printed to three digits after the point (fewer for large entries)


def one_dimensional(sde: sf.GaussianSDE, variance: float = 1.0) -> sf.GaussianMixture:
    return sf.GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), variance, None, sde)


def affine(stage: sf.Solver, field: Field, t: torch.Tensor, s: torch.Tensor) -> tuple[float, float]:
    """(a, c) of the step x -> a x + c z."""

    def call(x: float, z: float) -> float:
        noise = FromFunction(1, lambda: torch.full((1, 1), z, dtype=torch.float64))
        return float(stage.step(field, torch.full((1, 1), x, dtype=torch.float64), t, s, None, noise)[0])

    return call(1.0, 0.0), call(0.0, 1.0)


@dataclass(frozen=True)
class Exact(sf.Langevin):
    """With the ensemble's (|z| / |score|)^2 = c^2 / v computed from the variance instead of measured."""

    known: float = 1.0

    def ratio(self, field, score, z, t, s, i):
        return torch.tensor(self.known, dtype=torch.float64)


def variance_error(predictor: sf.Solver, corrected: bool, levels: int) -> float:
    sde = sf.VE()
    field = Field(one_dimensional(sde), {}, 1)
    grid = torch.linspace(1.0, 0.0, levels, dtype=torch.float64)
    v = 2500.0
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        a, c = affine(predictor, field, t, s)
        v = a * a * v + c * c
        if corrected:
            a, c = affine(Exact(snr=0.16, known=(1 + float(sde.sigma(s)) ** 2) ** 2 / v), field, t, s)
            v = a * a * v + c * c
    return v / (1 + 1e-4) - 1


@pytest.mark.parametrize("corrected", [False, True], ids=["P", "PC"])
@pytest.mark.parametrize("predictor", [sf.Ancestral(), sf.ReverseDiffusion(), sf.solve.ProbabilityFlow()], ids=name)
def test_variance_table_of_the_paper_in_miniature(predictor, corrected):
    for levels, expected in zip((10, 20, 50, 100), TABLE[name(predictor), corrected], strict=True):
        assert variance_error(predictor, corrected, levels) == pytest.approx(expected, rel=0.02, abs=DIGITS)


@pytest.mark.parametrize("norm", ["expected", "batch"])
def test_sampler_itself_gives_the_table(norm):
    """Through `sample`: the pilot's expected norm, and the paper's batch mean in many dimensions."""
    d, n = (1, 60_000) if norm == "expected" else (100, 600)
    gm = sf.GaussianMixture(torch.zeros(1, d, dtype=torch.float64), 1.0, None, sf.VE())
    solver = sf.PC(sf.ReverseDiffusion(), sf.Langevin(snr=0.16, norm=norm))
    generator = torch.Generator().manual_seed(0)
    pilots = 16_384 if norm == "expected" else None
    x = sf.sample(gm, n, solver, steps=19, t_min=0.0, denoise=False, seed=generator, pilots=pilots)
    error = float((x**2).mean()) / (1 + 1e-4) - 1
    assert error == pytest.approx(TABLE["ReverseDiffusion", True][1], abs=4 * 1.28 * (2 / (n * d)) ** 0.5 + 0.02 * 0.28)


@pytest.mark.parametrize("snr", [0.16, 0.30])
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_stationary_variance_of_the_corrector(sde, snr):
    """c (1 + a r^2) with the batch-mean norm, in many dimensions: v = (1 - e/c)^2 v + 2e, e = 2 a r^2 c^2 / v."""
    d, n = 64, 1500
    gm = sf.GaussianMixture(torch.zeros(1, d, dtype=torch.float64), 0.7, None, sde)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.31, 0.30))
    c = float(sde.alpha(s) ** 2 * 0.7 + sde.sigma(s) ** 2)
    shrink = float((sde.alpha(t) / sde.alpha(s)) ** 2)
    field, noise = Field(gm, {}, n), source(torch.Generator().manual_seed(0), n)
    x = c**0.5 * noise.normal((n, d), torch.float64, torch.device("cpu"))
    corrector = sf.Langevin(snr=snr, norm="batch", steps=60)
    x, _ = corrector.step(field, x, t, s, None, noise)
    measured = float((x**2).mean()) / c
    assert measured == pytest.approx(1 + shrink * snr**2, abs=4 * (2 / (n * d)) ** 0.5 + 2e-3)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize(
    ("corrector", "pilots"),
    [(sf.Langevin(snr=0.16), 4096), (sf.Langevin(snr=0.16), None), (sf.solve.AnnealedLangevin(snr=0.16), None)],
    ids=["Langevin-pilots", "Langevin", "AnnealedLangevin"],
)
def test_correctors_are_right_in_three_dimensions(sde, corrector, pilots):
    gm, n = gaussian(sde), 4000
    cov = gm.covs[0]
    seed = torch.Generator().manual_seed(0)
    x = sf.sample(gm, n, sf.PC(corrector=corrector), steps=100, seed=seed, denoise=False, pilots=pilots)
    off = torch.linalg.norm(torch.cov(x.T) - cov) / torch.linalg.norm(cov)
    assert off < 4 * (2 / n) ** 0.5 + 0.04  # 4 standard errors, the corrector's r^2 = 2.6 %, and discretisation


def test_own_norm_is_wrong_in_three_dimensions_and_is_not_the_default():
    gm, n = gaussian(sf.VE()), 4000
    cov = gm.covs[0]
    corrector = sf.Langevin(snr=0.16, norm="sample")
    x = sf.sample(gm, n, sf.PC(corrector=corrector), steps=100, seed=torch.Generator().manual_seed(0), denoise=False)
    assert torch.linalg.norm(torch.cov(x.T) - cov) / torch.linalg.norm(cov) > 0.2
    assert sf.Langevin().norm == "expected"


def test_step_size_follows_the_grid():
    """a = (alpha_t / alpha_s)^2 of the step at hand, not of a training ladder: fewer steps, smaller corrections."""
    sde = sf.VP()
    field = Field(one_dimensional(sde), {}, 1)
    s = torch.tensor(0.5, dtype=torch.float64)
    sizes = [affine(sf.solve.AnnealedLangevin(), field, s + h, s)[1] for h in (0.01, 0.1)]
    ratio = float(sde.alpha(s + 0.1) / sde.alpha(s + 0.01))
    assert sizes[1] / sizes[0] == pytest.approx(ratio, rel=1e-9)


def test_order_of_correction_and_prediction():
    calls: list[tuple[str, float]] = []

    class Watch(sf.solve.Identity):
        def step(self, field, x, t, s, state, noise):
            calls.append(("corrector", float(s)))
            return x, state

    class Predict(sf.solve.Identity):
        def step(self, field, x, t, s, state, noise):
            calls.append(("predictor", float(s)))
            return x, state

    gm = gaussian(sf.VP())
    for first in (False, True):
        calls.clear()
        sf.sample(gm, 1, sf.PC(Predict(), Watch(), correct_first=first), steps=2, t_min=0.5, seed=0, denoise=False)
        text = [("predictor", 0.75), ("corrector", 0.75), ("predictor", 0.5), ("corrector", 0.5)]
        code = [("corrector", 1.0), ("predictor", 0.75), ("corrector", 0.75), ("predictor", 0.5)]
        assert calls == (code if first else text)
