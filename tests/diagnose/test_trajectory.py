"""Trajectories: the mean shift under the optimal denoiser, planes and lines of Gaussian data, the recorded geometry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from map_oracles import EDM
from oracles import mixture, power, rotated
from scorefield.diagnose import report, trajectory

SDE = EDM()
GRID = sf.times.sampling_grid(SDE, 40, 80.0, 0.002, "karras")


@pytest.fixture(scope="module")
def cloud():
    generator = torch.Generator().manual_seed(0)
    return sf.Empirical(torch.randn(200, 8, generator=generator, dtype=torch.float64), SDE)


@pytest.fixture(scope="module")
def ways(cloud):
    return trajectory(cloud, 64, sf.Euler(), grid=GRID, seed=1)


def test_euler_under_the_optimal_denoiser_is_an_annealed_mean_shift(cloud, ways):
    x = ways.x[0]
    for k, (s, r) in enumerate(zip(GRID[:-1], GRID[1:], strict=True)):
        weights = torch.softmax(-0.5 * torch.square(torch.cdist(x, cloud.points) / s), 1)
        shifted = weights @ cloud.points
        assert torch.allclose(ways.denoised[k], shifted, atol=1e-9)
        x = r / s * x + (1 - r / s) * shifted
        assert torch.allclose(ways.x[k + 1], x, atol=1e-9)


def test_euler_costs_one_evaluation_a_step_and_one_at_the_end(cloud):
    calls = []

    def counted(x, t):
        calls.append(len(x))
        return cloud.score(x, t)

    trajectory(sf.ScoreModel.from_score(counted, SDE, (8,)), 4, sf.Euler(), grid=GRID)
    assert len(calls) == len(GRID)


@pytest.mark.parametrize(
    ("sigma", "chosen", "far"),
    [(5.4, (0.02, 0.33), (2.2, 13.4)), (1.8, (0.12, 0.60), (1.6, 3.8)), (1.07, (0.60, 0.76), (1.2, 2.4))],
)
def test_the_denoiser_leads_in_distance_and_not_in_choice(cloud, ways, sigma, chosen, far):
    """Chen et al. 2024: far from the data D is nearer to the end than x, yet nearest to the final point less often."""
    k = int((ways.sigma - sigma).abs().argmin())
    end = ways.denoised[-1]
    final = torch.cdist(end, cloud.points).argmin(1)
    for states, share, distance in zip((ways.denoised[k], ways.x[k]), chosen, far, strict=True):
        right = (torch.cdist(states, cloud.points).argmin(1) == final).double()
        # Both are shares and means of other draws of 200 points and of fewer starts than these.
        assert float(right.mean()) == pytest.approx(share, abs=4 * (max(share * (1 - share), 0.05) / 64) ** 0.5)
        assert float((states - end).norm(dim=1).mean()) == pytest.approx(distance, rel=0.2)
    ahead = [float((v[k] - end).norm(dim=1).mean()) for v in (ways.denoised, ways.x)]
    assert ahead[0] < 0.6 * ahead[1]


def test_likelihood_rises_along_the_denoiser_and_along_euler_as_the_inequalities_say(cloud, ways):
    broken = 0
    for k in range(len(GRID) - 1):
        s, w = GRID[k], 1 - GRID[k + 1] / GRID[k]
        jump = torch.square(ways.denoised[k] - ways.x[k]).sum(1) / (2 * s**2)
        here = cloud.log_prob(ways.x[k], s)
        broken += int((cloud.log_prob(ways.denoised[k], s) - here < jump - 1e-8).sum())
        broken += int((cloud.log_prob(ways.x[k + 1], s) - here < (1 - (1 - w) ** 2) * jump - 1e-8).sum())
    assert broken == 0


def test_ways_are_nearly_straight_and_end_in_a_training_point(cloud, ways):
    length = torch.linalg.vector_norm(ways.x[-1] - ways.x[0], dim=1)
    bend = ways.chord().amax(0) / length
    assert 0.002 < float(bend.mean()) < 0.02
    x, denoised = ways.distance()
    assert float((denoised < x)[:-1].double().mean()) > 0.93
    assert float((x.diff(dim=0) < 0).double().mean()) > 0.995
    assert float(torch.cdist(ways.denoised[-1], cloud.points).amin(1).max()) < 1e-6
    assert float(ways.deviation(cloud).max()) < 1e-9
    assert float(ways.components(2, orthogonal=False)[:, 0].min()) > 0.999


def test_a_trajectory_of_gaussian_data_with_two_variances_lies_in_a_plane():
    _, basis = torch.linalg.eigh(rotated(5)[1])
    spectrum = torch.tensor([0.3, 0.3, 2.0, 2.0, 2.0], dtype=torch.float64)
    cov = basis @ torch.diag(spectrum) @ basis.T
    gm = sf.GaussianMixture(torch.zeros(1, 5, dtype=torch.float64), cov[None], None, SDE)
    way = trajectory(gm, 3, sf.solve.RK4(), grid=sf.times.sampling_grid(SDE, 200, 80.0, 0.002, "karras"))
    eye = torch.eye(5, dtype=torch.float64)
    for k in (50, 150, 200):
        s = float(way.sigma[k])
        exact = way.x[0] @ (power(cov + s**2 * eye, 0.5) @ power(cov + 80.0**2 * eye, -0.5)).T
        assert torch.allclose(way.x[k], exact, atol=1e-6)
    assert bool((way.components(1) > 1 - 1e-6).all())  # without the chord a plane is a line
    assert float(way.chord().max()) > 0.1
    line = sf.GaussianMixture(torch.zeros(1, 5, dtype=torch.float64), 0.7, None, SDE)
    assert float(trajectory(line, 3, sf.Heun(), steps=30, grid="karras").chord().max()) < 1e-9


def test_every_gaussian_process_is_followed_in_one_variable():
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.7, None, sf.VP())
    way = trajectory(gm, 2, sf.DDIM(), steps=10)
    assert torch.allclose(way.sigma, sf.VP().sigma(way.times) / sf.VP().alpha(way.times))
    assert way.x.shape == way.denoised.shape == (11, 2, 2)
    flow = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.7, None, sf.RectifiedFlow())
    assert trajectory(flow, 2, sf.Euler(), steps=10).x.isfinite().all()  # alpha(1) = 0: the start is left out
    with pytest.raises(ValueError, match="batch_size: trajectory decides"):
        trajectory(gm, 2, batch_size=1)


@pytest.mark.parametrize("solver", [sf.Euler(), sf.Heun()], ids=lambda s: type(s).__name__.lower())
def test_the_recorded_geometry_is_reproduced(solver):
    place = Path(__file__).parents[3] / "shared" / "parity" / "32_geometry.safetensors"
    if not place.exists():
        pytest.skip("the recording 32_geometry is not here")
    assert json.loads(place.with_suffix(".json").read_text())["num_points"] == 21
    held, name = load_file(place), type(solver).__name__.lower()
    model = sf.Empirical(held["data"], SDE)
    way = trajectory(model, 5, solver, grid=held["t_steps"], x_init=held["latents"] * held["t_steps"][0])
    scale = float(held[f"{name}/x"].abs().max())
    assert torch.allclose(way.x, held[f"{name}/x"], atol=1e-10 * scale, rtol=0)
    assert torch.allclose(way.chord()[1:-1].T, held[f"{name}/deviation"], atol=1e-10 * scale, rtol=0)
    if name == "euler":  # the recorded ones of Heun are of its second evaluation
        assert torch.allclose(way.denoised[:-1], held["euler/denoised"], atol=1e-10, rtol=0)


def test_the_bend_of_a_rotation_is_that_of_a_spiral_and_the_chapter_names_it():
    """-x + w J x keeps N(0, I) and turns by w B / 2 on the way: an arc, whose height over its chord is known."""
    turn, sde = 0.6, sf.VP()
    j = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0, None, sde)
    model = sf.ScoreModel.from_score(lambda x, t: -x + turn * x @ j.to(x), sde, shape=(2,)).double()
    way = trajectory(model, 3, sf.Dopri5(1e-8, 1e-8), steps=None)
    b = -2 * torch.log(sde.alpha(way.times))
    size = torch.exp(0.5 * b)  # |x / alpha|, x turning at unit speed
    angle = 0.5 * turn * (b[0] - b)
    path = torch.stack([size * torch.cos(angle), size * torch.sin(angle)], 1)
    chord = path[-1] - path[0]
    away = ((path - path[0]) @ torch.stack([-chord[1], chord[0]]) / chord.norm()).abs().max() / chord.norm()
    assert torch.allclose(way.bend(), away.expand(3), rtol=1e-4)
    straight = report(gm, only=["trajectory"], n=2000).chapters["trajectory"]
    assert straight.verdict == "good"
    assert straight.figures["bend"][0] < 1e-9
    bent = report(model, only=["trajectory"], n=2000).chapters["trajectory"]
    assert bent.verdict == "watch"
    assert "calibrated and a gradient" in bent.advice


def test_the_chapter_tells_a_memory_from_what_is_new():
    gm = mixture(sf.VP(), 3)
    train = gm.sample(60, seed=1)
    name = "to memory"
    new, old = (
        report(model, gm.sample(20, seed=2), train, ["trajectory"]).chapters["trajectory"].figures[name]
        for model in (gm, sf.Empirical(train, sf.VP()))
    )
    assert max(old) < 1e-9
    assert new[-1] > 0.1
