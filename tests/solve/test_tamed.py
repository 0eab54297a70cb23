"""Tamed Euler-Maruyama on a cubic drift with a known solution (Kloeden & Platen 1992, sec. 4.4), and where Euler runs away."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.errors import ScorefieldWarning

F64 = torch.float64
PUSH, PULL, NOISE = 0.5, 1.0, 0.6


class Cubic(sf.SDE):
    """dX = (a X - b X^3) dt + s X dW forward; with the sign turned and no score its reverse runs do the same."""

    def __init__(self, backward: bool = False) -> None:
        self.sign = -1.0 if backward else 1.0

    def drift(self, x, t):
        return self.sign * (PUSH * x - PULL * x**3)

    def diffusion(self, x, t):
        return NOISE * x

    def divergence(self, x, t):
        return torch.zeros_like(x)


def still(sde: sf.SDE) -> sf.ScoreModel:
    return sf.ScoreModel.from_score(lambda x, t: torch.zeros_like(x), sde, shape=(1,))


def paths(n: int, steps: int) -> tuple[Tensor, Tensor]:
    """Increments of Brownian motion (steps, n, 1) on [0, 1], and the exact ends of the paths from 1, up to trapezoids."""
    dw = torch.randn(steps, n, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) / math.sqrt(steps)
    t = torch.linspace(0, 1, steps + 1, dtype=F64)[:, None, None]
    grown = torch.exp((PUSH - 0.5 * NOISE**2) * t + NOISE * torch.cat([torch.zeros(1, n, 1, dtype=F64), dw.cumsum(0)]))
    return dw, grown[-1] / torch.sqrt(1 + 2 * PULL * torch.trapezoid(grown**2, dx=1 / steps, dim=0))


def test_strong_order_is_one_half():
    """Along the same paths, forward by `simulate` and through the door; a reach of 1 and a longer one, which errs less."""
    dw, exact = paths(1000, 512)
    sde, model = Cubic(), still(Cubic(backward=True))
    errors: dict[str, list[float]] = {"reach 1": [], "reach 4": []}
    for steps in (8, 32, 128):
        draws = dw.reshape(steps, -1, *dw.shape[1:]).sum(1) * math.sqrt(steps)
        for name, reach in (("reach 1", 1.0), ("reach 4", 4.0)):
            left = iter(draws)
            x = sf.sample(
                model,
                1000,
                sf.solve.TamedEuler(reach),
                steps=steps,
                x_init=torch.ones(1000, 1, dtype=F64),
                noise=lambda left=left: next(left),
                t_min=0.0,
                denoise=False,
            )
            errors[name].append(float((x - exact).square().mean().sqrt()))
        if steps == 8:
            x = torch.ones(1000, 1, dtype=F64)
            left = iter(draws)
            noise = sf.randomness.FromFunction(1000, lambda shape, left=left: next(left))
            for i in range(steps):
                h = torch.tensor(1 / steps, dtype=F64)
                x = sde._forward_step(x, i * h, h, noise, False, True)
            assert float((x - exact).square().mean().sqrt()) == pytest.approx(errors["reach 1"][0], rel=1e-12)
    for found in errors.values():
        order = math.log(found[0] / found[2], 16)
        assert 0.42 < order < 0.75, errors
    assert errors["reach 4"][1] < errors["reach 1"][1]


def test_where_euler_maruyama_runs_away_it_does_not():
    """Steps of h with h x^2 > 2 overshoot: from 6 at h = 1/10 Euler is off the numbers, the tamed steps come home."""
    sde, start = Cubic(), torch.full((200, 1), 6.0)
    with pytest.warns(ScorefieldWarning, match=r"200 of 200 paths of Cubic left .* or tamed=True"):
        assert not sde.simulate(start, 1.0, steps=10, seed=0).isfinite().any()
    x = sde.simulate(start, 1.0, steps=10, seed=0, tamed=True)
    exact = math.exp(PUSH) * 6 / math.sqrt(1 + 36 * (math.exp(2 * PUSH) - 1) / PUSH)  # without noise
    assert float(x.median()) == pytest.approx(exact, rel=0.5)
    model, keys = still(Cubic(backward=True)), {"steps": 10, "x_init": start, "seed": 0, "t_min": 0.0, "denoise": False}
    with pytest.warns(RuntimeWarning, match="200 of 200 samples left the finite numbers"):
        sf.sample(model, 200, sf.EulerMaruyama(), **keys)
    y = sf.sample(model, 200, sf.solve.TamedEuler(), **keys)
    assert float(y.median()) == pytest.approx(exact, rel=0.5)
    assert x.isfinite().all()
    assert y.isfinite().all()


def test_outward_no_step_is_longer_than_its_reach():
    """dX = X^3 dt leaves every bound; the tamed chain moves by less than `reach` a step, root mean square."""

    class Outward(sf.SDE):
        def drift(self, x, t):
            return -(x**3)

        def diffusion(self, x, t):
            return 0.0

    x = torch.tensor([[2.0, -3.0, 1.0], [0.1, 0.2, 0.0]])
    for reach in (1.0, 0.25):
        done = sf.sample(
            sf.ScoreModel.from_score(lambda x, t: torch.zeros_like(x), Outward(), shape=(3,)),
            2,
            sf.solve.TamedEuler(reach),
            steps=40,
            x_init=x,
            full=True,
            denoise=False,
        )
        length = done.path.diff(dim=0).square().mean(2).sqrt()
        assert float(length.max()) <= reach * (1 + 1e-6)
        assert float(length.max()) > 0.95 * reach


def test_on_a_linear_drift_it_tends_to_euler_maruyama():
    """The gap of one step is h^2 f |f| / reach to first order, so that it falls by 4 at half the step."""
    gm = sf.GaussianMixture(torch.zeros(1, 2, dtype=F64), torch.tensor([[0.5, 2.0]], dtype=F64), [1.0], sf.VP())
    x, gaps = gm.sample(4, 0.5, seed=0), []
    for h in (0.01, 0.005):
        grid = torch.tensor([0.5, 0.5 - h], dtype=F64)
        ends = [
            sf.sample(gm, 4, s, grid=grid, x_init=x, t_start=0.5, seed=0, denoise=False)
            for s in (sf.EulerMaruyama(), sf.solve.TamedEuler(2.0))
        ]
        move = -h * gm.sde.reverse_drift(x, 0.5, gm.score(x, 0.5))
        expected = -move * move.square().mean(1, keepdim=True).sqrt() / 2
        gaps.append((ends[1] - ends[0], expected))
    for gap, expected in gaps:
        torch.testing.assert_close(gap, expected, rtol=0.2, atol=1e-4)
    assert float(gaps[0][0].norm() / gaps[1][0].norm()) == pytest.approx(4.0, rel=0.05)


def test_the_command_line_and_bad_input():
    from scorefield.cli.names import read_solver

    assert read_solver("tamed-euler:reach=3") == sf.solve.TamedEuler(reach=3.0)
    for reach in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"reach={reach}: give a positive length"):
            sf.solve.TamedEuler(reach)
