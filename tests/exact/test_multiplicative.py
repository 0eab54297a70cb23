"""Noise that grows with the state: geometric Brownian motion and the square-root process, against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.randomness import FromFunction
from scorefield.sde import SDE

F64 = torch.float64


class Geometric(SDE):
    """dX = 0.1 X dt + 0.5 X dW; log X is N(0, 0.2) at 0 here, and N(-0.025 t, 0.2 + t / 4) at t."""

    def drift(self, x, t):
        return 0.1 * x

    def diffusion(self, x, t):
        return 0.5 * x


def law(t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Mean and variance of log X_t."""
    return (0.1 - 0.125) * t, 0.2 + 0.25 * t


class Blind(Geometric):
    """Its reverse process without div a."""

    def divergence(self, x, t):
        return torch.zeros_like(x)


def lognormal(x: Tensor, t: Tensor) -> Tensor:
    """The exact score."""
    mean, variance = law(t[:, None])
    return (-1 - (torch.log(x) - mean) / variance) / x


def one_step(z: Tensor, h: float, milstein: bool = False) -> Tensor:
    """A step from 1 with the given noise, (K,) like z."""
    noise = FromFunction(len(z), lambda shape: z[:, None])
    time, length = torch.zeros((), dtype=F64), torch.tensor(h, dtype=F64)
    return Geometric()._forward_step(torch.ones(len(z), 1, dtype=F64), time, length, noise, milstein)[:, 0]


@pytest.mark.parametrize(
    ("milstein", "drawn"), [(False, (6.70e-2, 4.76e-2, 3.38e-2, 2.39e-2)), (True, (7.2e-3, 3.6e-3, 1.85e-3, 9.3e-4))]
)
def test_strong_error_of_forward_steps(milstein, drawn):
    """E (X_N - X)^2 at 16, 32, 64 and 128 steps, exactly: X_N, X and their product are products over the steps.

    Orders 1/2 and 1 (Kloeden & Platen 1992, ch. 10). `drawn` are estimates from a sample, which are within 2.5 %.
    """
    z, w = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(40))
    w, found = w / w.sum(), []
    for steps in (16, 32, 64, 128):
        ours = one_step(z, 1 / steps, milstein)
        exact = torch.exp((0.1 - 0.125) / steps + 0.5 * z / math.sqrt(steps))
        both = [float((w * v).sum()) ** steps for v in (ours**2, ours * exact, exact**2)]
        found.append(math.exp(0.2) * math.sqrt(both[0] - 2 * both[1] + both[2]))  # times E X_0^2
    assert found == pytest.approx(drawn, rel=0.025)
    assert math.log2(found[2] / found[3]) == pytest.approx(1.0 if milstein else 0.5, abs=0.01)


def test_strong_order_of_whole_simulations():
    """`simulate` against the exact solution on the same path."""
    n, errors = 4000, {False: [], True: []}
    x0 = torch.ones(n, 1, dtype=F64)
    for milstein, found in errors.items():
        for steps in (16, 64):
            draws = torch.Generator().manual_seed(1)
            total = torch.zeros_like(x0)
            for _ in range(steps):
                total += torch.randn(n, 1, dtype=F64, generator=draws)
            brownian = total / math.sqrt(steps)
            exact = torch.exp((0.1 - 0.125) + 0.5 * brownian)
            x = Geometric().simulate(x0, 1.0, steps, torch.Generator().manual_seed(1), milstein=milstein)
            found.append(float((x - exact).square().mean().sqrt()))
    assert 0.4 < math.log(errors[False][0] / errors[False][1], 4) < 0.6
    assert 0.85 < math.log(errors[True][0] / errors[True][1], 4) < 1.15


def test_weak_error_of_forward_steps():
    """E X and E X^2 of Euler-Maruyama from 1, exactly, by noise of +1 and -1: relative errors at 10 to 160 steps."""
    first, second = [], []
    for steps in (10, 20, 40, 80, 160):
        x = one_step(torch.tensor([1.0, -1.0], dtype=F64), 1 / steps)
        first.append(float(x.mean()) ** steps / math.exp(0.1) - 1)
        second.append(float(x.square().mean()) ** steps / math.exp(0.45) - 1)
    assert first == pytest.approx([-4.966e-4, -2.491e-4, -1.248e-4, -6.245e-5, -3.124e-5], rel=2e-4)
    assert second == pytest.approx([-8.835e-3, -4.489e-3, -2.263e-3, -1.136e-3, -5.691e-4], rel=2e-4)


@pytest.mark.parametrize(
    ("noise", "shift"), [(1.0, 2 * 0.2 * math.log(0.2 / 0.45)), (0.0, 2 * 0.2 - 2 * math.sqrt(0.09))]
)
def test_what_the_divergence_is_worth_on_a_geometric_process(noise, shift):
    """log x is Gaussian, N(0, 0.2) at 0 and of variance 0.45 at 1: without div a its mean comes back wrong by `shift`.

    The reverse process in y = log x has an affine drift, b(x) / x - noise^2 sigma^2 / 2 backward; two points give it.
    """

    def slope(sde: SDE, m: float, t: float) -> float:
        y = torch.tensor([[0.0], [1.0]], dtype=F64)
        x = torch.exp(y)
        score = lognormal(x, torch.full((2,), t, dtype=F64))
        rate = (sde.reverse_drift(x, t, score, noise) / x + 0.5 * noise**2 * 0.25)[:, 0]
        return float(rate[0] + m * (rate[1] - rate[0]))

    ends = []
    for sde in (Geometric(), Blind()):
        m, steps = law(1.0)[0], 100
        for i in range(steps):
            t, h = 1 - i / steps, -1 / steps
            k1 = slope(sde, m, t)
            k2 = slope(sde, m + h / 2 * k1, t + h / 2)
            k3 = slope(sde, m + h / 2 * k2, t + h / 2)
            m += h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(sde, m + h * k3, t + h))
        ends.append(m)
    assert ends[0] == pytest.approx(0.0, abs=1e-9)
    assert ends[1] == pytest.approx(shift, abs=1e-8)


@pytest.mark.parametrize(("sde", "mean"), [(Geometric(), 0.0), (Blind(), 2 * 0.2 * math.log(0.2 / 0.45))])
def test_reverse_samples_of_a_geometric_process(sde, mean):
    """100 steps of Euler-Maruyama through the door: log x is N(0, 0.2) again, or shifted by what div a is worth.

    Bars of four standard errors, and the scheme's own bias, which 200,000 samples show to be below 0.002 and 0.001.
    """
    n = 20_000
    draws = torch.Generator().manual_seed(0)
    end = torch.exp(law(1.0)[0] + math.sqrt(law(1.0)[1]) * torch.randn(n, 1, dtype=F64, generator=draws))
    model = sf.ScoreModel.from_score(lognormal, sde, shape=(1,))
    y = torch.log(sf.sample(model, n, sf.EulerMaruyama(), steps=100, prior=end, seed=0, t_min=0.0, denoise=False))
    assert float(y.mean()) == pytest.approx(mean, abs=4 * math.sqrt(0.2 / n) + 0.002)
    assert float(y.var()) == pytest.approx(0.2, abs=4 * 0.2 * math.sqrt(2 / n) + 0.001)


def test_a_law_that_moves_solves_fokker_planck():
    x = 0.3 + torch.rand(6, 1, dtype=F64, generator=torch.Generator().manual_seed(1))
    right, wrong = (sf.ScoreModel.from_score(lognormal, sde) for sde in (Geometric(), Blind()))
    assert sf.diagnose.fokker_planck_residual(right, x, 0.4).abs().max() < 1e-11
    assert sf.diagnose.fokker_planck_residual(wrong, x, 0.4).abs().max() > 0.1


def test_the_divergence_keeps_the_graph_of_its_states():
    """d (div a) / dx of diffusions that are a number for each sample, like x, and matrices, by the caller's own graph."""

    class Cubes(Geometric):
        def __init__(self, kind):
            self.kind = kind

        def diffusion(self, x, t):
            match self.kind:
                case "sample":
                    return x[:, 0] ** 3
                case "entry":
                    return x**3
            return torch.diag_embed(x**3)

    for kind in ("sample", "entry", "matrix"):
        x = torch.tensor([[0.7, 0.4], [1.1, -0.3]], dtype=F64, requires_grad=True)
        found = Cubes(kind).divergence(x, 0.1)
        expected = 6 * x.detach() ** 5
        if kind == "sample":
            expected = expected * torch.tensor([1.0, 0.0], dtype=F64)
        torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)
        (slope,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(slope, 5 * expected / x.detach(), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not Cubes("entry").divergence(x, 0.1).requires_grad


def test_square_root_process_is_its_own_reverse():
    """kappa = 1.3, theta = 0.8, sigma = 0.6, stationary under a Gamma law of shape 2 kappa theta / sigma^2."""

    class SquareRoot(SDE):
        def drift(self, x, t):
            return 1.3 * (0.8 - x)

        def diffusion(self, x, t):
            return 0.6 * torch.sqrt(x)

    x = torch.linspace(0.05, 3, 40, dtype=F64)[:, None]
    rate = 2 * 1.3 / 0.36
    score = (rate * 0.8 - 1) / x - rate
    sde = SquareRoot()
    assert torch.allclose(-sde.reverse_drift(x, 0.0, score), sde.drift(x, 0.0), atol=1e-12)
    assert sde.velocity(x, 0.0, score).abs().max() < 1e-12
