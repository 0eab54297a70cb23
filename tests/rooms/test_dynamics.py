"""The exact model of a data set, and dynamics learned from pairs of states (Liu et al. 2024)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.dynamics import _labels, learn_flow_map, pairs_of
from scorefield.empirical import Empirical, neighbours, posterior_mean

F64 = torch.float64
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "27_sdelearn_ode.safetensors"
SDES = [sf.VP(), sf.VE(), sf.SubVP()]


@pytest.mark.parametrize("sde", SDES)
def test_empirical_is_the_mixture_of_point_masses(sde):
    points = torch.randn(40, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    gm = sf.GaussianMixture(points, 0.0, None, sde)
    own = Empirical(points, sde)
    x = 2 * torch.randn(6, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.05, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=F64)
    for view in ("denoise", "score", "noise", "velocity"):
        a, b = getattr(own, view)(x, t), getattr(gm, view)(x, t)
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), view
    assert torch.allclose(own.log_prob(x, t), gm.log_prob(x, t), atol=1e-9)
    near = own.denoise(points[:5] + 1e-6, 0.0)
    assert torch.allclose(near, points[:5], atol=1e-12)


def test_conditions_weigh_the_points():
    """One weighted mixture for each condition, all neighbours or the nearest."""
    g = torch.Generator().manual_seed(0)
    points, given = torch.randn(60, 2, dtype=F64, generator=g), torch.randn(60, 2, dtype=F64, generator=g)
    x, at = torch.randn(4, 2, dtype=F64, generator=g), torch.randn(4, 2, dtype=F64, generator=g)
    for count in (None, 25):
        own = Empirical(points, sf.VP(), given, (0.4, 0.7), count)
        for i in range(4):
            squared = torch.square((at[i] - given) / torch.tensor([0.4, 0.7])).sum(1)
            near = squared.argsort()[: count or 60]
            gm = sf.GaussianMixture(points[near], 0.0, torch.exp(-0.5 * squared[near]), sf.VP())
            found = own.score(x[i : i + 1], 0.4, given=at[i : i + 1])
            assert torch.allclose(found, gm.score(x[i : i + 1], 0.4), atol=1e-9)
    with pytest.raises(ValueError, match="takes given="):
        own.score(x, 0.4)
    with pytest.raises(ValueError, match="bandwidth=None"):
        Empirical(points, sf.VP(), given)
    with pytest.raises(ValueError, match="neighbours=61"):
        Empirical(points, sf.VP(), given, 1.0, 61)
    with pytest.raises(ValueError, match="not numbers"):
        Empirical(torch.full((3, 1), math.nan), sf.VP())


def test_neighbours_on_a_line_are_those_of_all_distances():
    g = torch.Generator().manual_seed(0)
    known, wanted = torch.randn(300, 1, dtype=F64, generator=g), 2 * torch.randn(50, 1, dtype=F64, generator=g)
    index, squared = neighbours(known, wanted, torch.tensor([0.5]), 17)
    every = torch.square((wanted - known.T) / 0.5)
    expected = every.topk(17, largest=False)[0].sort(1)[0]
    assert torch.allclose(squared.sort(1)[0], expected, atol=1e-12)
    assert torch.allclose(every.gather(1, index), squared, atol=1e-12)


def test_labels_are_weighted_quantiles():
    """In one dimension the flow map is the quantile map of the weighted points, away from its jumps."""
    g = torch.Generator().manual_seed(0)
    states = torch.zeros(400, 1, dtype=F64)
    increments = torch.distributions.Exponential(1.0).icdf(torch.rand(400, 1, dtype=F64, generator=g))
    z = torch.linspace(-1.5, 1.5, 9, dtype=F64)[:, None]
    found = _labels(states, increments, torch.zeros(9, 1, dtype=F64), z, torch.ones(1, dtype=F64), 400, False)
    order = increments.flatten().sort()[0]
    expected = order[(torch.special.ndtr(z.flatten()) * 400).long()]
    assert float((found.flatten() - expected).abs().median()) < 5e-3


def ornstein_uhlenbeck(n: int, dt: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact pairs of dX = (1.2 - X) dt + 0.3 dW with states uniform on [0, 2.5]."""
    g = torch.Generator().manual_seed(seed)
    x = 2.5 * torch.rand(n, 1, dtype=F64, generator=g)
    decay = math.exp(-dt)
    std = 0.3 * math.sqrt((1 - decay**2) / 2)
    return x, 1.2 + decay * (x - 1.2) + std * torch.randn(n, 1, dtype=F64, generator=g)


def test_an_ornstein_uhlenbeck_process_is_learned():
    x, after = ornstein_uhlenbeck(8000, 0.05)
    fm = learn_flow_map(x, after, 0.05, neighbours=600, labels=1000, steps=250, seed=0, progress=False)
    found = fm.moments(torch.tensor([[0.5], [1.2], [2.0]]))
    exact = 0.3 * math.sqrt((1 - math.exp(-0.1)) / 0.1)
    assert found.diffusion.flatten().tolist() == pytest.approx([exact] * 3, rel=0.05)
    drift = (1 - math.exp(-0.05)) / 0.05 * (1.2 - torch.tensor([0.5, 1.2, 2.0], dtype=F64))
    assert bool(((found.drift.flatten() - drift).abs() < 4 * found.stderr.flatten()).all())
    path = fm.rollout(torch.full((400, 1), 0.3), 120, seed=1)
    assert path.shape == (121, 400, 1)
    assert float(path[-1].mean()) == pytest.approx(1.2, abs=0.06)
    assert float(path[-1].std()) == pytest.approx(0.2121, rel=0.15)
    again = fm.rollout(torch.full((400, 1), 0.3), 120, seed=1)
    assert torch.equal(path, again)


def test_series_become_pairs():
    series = torch.arange(6.0)
    x, after = pairs_of(series, 1.0)
    assert torch.equal(after - x, torch.ones(5, 1))
    x, after = pairs_of(series, 1.0, time=torch.tensor([0.0, 1, 2, 5, 6, 7]))
    assert x.flatten().tolist() == [0, 1, 3, 4]
    for arguments, match in (
        ((torch.tensor([1.0]), 1.0), "at least 2"),
        ((torch.tensor([1.0, math.nan]), 1.0), "all of them numbers"),
        ((series, 0.0), "dt=0"),
        ((series, 1.0, torch.tensor([0.0, 1, 1, 2, 3, 4])), "without duplicates"),
        ((series, 0.3, torch.arange(6.0)), "is not the time between"),
    ):
        with pytest.raises(ValueError, match=match):
            pairs_of(*arguments)
    with pytest.raises(ValueError, match="5 pairs"):
        learn_flow_map(series[:5], series[1:], 1.0)
    with pytest.raises(ValueError, match="not numbers"):
        learn_flow_map(torch.full((20, 1), math.nan), torch.zeros(20, 1), 1.0)


@pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")
def test_recorded_labels_by_the_official_discretisation():
    """Explicit Euler of the flow of alpha = 1 - t + h, sigma^2 = t + h, every coefficient read one step too early in time.

    The score is that of the weighted points, here under a process that has this alpha and sigma.
    """
    r, steps = load_file(RECORDING), 200
    h = 1 / steps

    class Shifted(sf.GaussianSDE):
        def alpha(self, t):
            return 1 - t + h

        def sigma(self, t):
            return torch.sqrt(t + h)

    squared = torch.square(r["x_query"].unsqueeze(1) - r["x_samples"]).sum(2)
    z = r["z"]
    for j in range(steps):
        t = 1 - (j + 1) * h  # the end of the step
        alpha, variance = 1 - t + h, t + h
        time = torch.full((), t, dtype=F64)
        data = posterior_mean(z, r["increments"], -0.5 * squared, Shifted(), time)
        score = (alpha * data - z) / variance
        f, g2 = -1 / alpha, 1 + 2 / alpha * variance
        z = z - h * (f * z - 0.5 * g2 * score)
        if j + 1 == steps // 2:
            assert torch.allclose(z, r["state_half"], atol=1e-10)
    assert torch.allclose(z, r["y"], atol=1e-9)
