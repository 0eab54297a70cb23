"""Interpolants between two samples against exact Gaussian models: the map of the flow, moments with noise, both ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.bridge import I2SB, Bridge, InterpolantModel, InterpolantSDE, interpolant_loss
from scorefield.evaluation.distances import gaussian_w2
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field

F64 = torch.float64
S0 = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64)
S1 = torch.tensor([[1.0, -0.5], [-0.5, 0.6]], dtype=F64)
M0, M1 = torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([-0.3, 0.4], dtype=F64)


class Exact(torch.nn.Module):
    """E[x_1 - x_0 | x_t] and E[z | x_t] of two Gaussians with Cov(x_0, x_1) = cross, by linear regression."""

    def __init__(self, sigma: float, cross: Tensor | None = None, mean: bool = True) -> None:
        super().__init__()
        self.sigma = sigma
        self.cross = torch.zeros(2, 2, dtype=F64) if cross is None else cross
        self.means = (M0, M1) if mean else (0 * M0, 0 * M1)

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        m0, m1 = self.means
        both = t * (1 - t)
        cov = (1 - t) ** 2 * S0 + t**2 * S1 + both * (self.cross + self.cross.T)
        return (1 - t) * m0 + t * m1, cov + self.sigma**2 * both * torch.eye(2, dtype=F64)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        m0, m1 = self.means
        out = []
        for row, u in zip(x, t.tolist(), strict=True):
            mean, cov = self.law(u)
            rest = torch.linalg.inv(cov) @ (row - mean)
            change = (1 - u) * (self.cross.T - S0) + u * (S1 - self.cross)
            out.append(torch.cat([m1 - m0 + change @ rest, self.sigma * math.sqrt(u * (1 - u)) * rest]))
        return torch.stack(out)


def model_of(sigma: float, **law) -> InterpolantModel:
    return InterpolantModel(Exact(sigma, **law), Bridge(sigma), shape=(2,))


def test_flow_of_two_independent_gaussians_is_the_rectified_map():
    """Columns of the map by the images of unit vectors; it pushes S0 to S1 at the cost of 1.169360, not the least, 1.142416."""
    model = model_of(1e-7, mean=False)
    image = sf.encode(model, torch.eye(2, dtype=F64), sf.solve.RK4(), steps=60, t_min=0.0)
    expected = torch.tensor([[1.658601, -1.228618], [-0.926189, 1.280565]], dtype=F64)
    torch.testing.assert_close(image.T, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(expected @ S0 @ expected.T, S1, rtol=0, atol=2e-5)
    cost = float((S0 + S1 - 2 * image.T @ S0).trace())
    assert cost == pytest.approx(1.169360, abs=5e-5)
    assert float((S0 + S1).trace()) == pytest.approx(3.6)  # of pairs as they come
    zero = torch.zeros(2, dtype=F64)
    assert gaussian_w2(zero, S0, zero, S1) ** 2 == pytest.approx(1.142416, abs=1e-6)
    turns = torch.linalg.eigvals(image.T).real.sort().values  # none negative: straight after one reflow
    assert turns.tolist() == pytest.approx([0.386, 2.553], abs=1e-3)
    back = sf.decode(model, image, sf.solve.RK4(), steps=60, t_min=0.0)
    torch.testing.assert_close(back, torch.eye(2, dtype=F64), rtol=0, atol=1e-4)


def test_views_solve_the_equations_of_the_law():
    """Velocity carries the mean and covariance of x_t, the score is that of its Gaussian, denoise is E[x_0 | x_t]."""
    cross = torch.tensor([[0.3, -0.1], [0.2, 0.1]], dtype=F64)
    model = model_of(0.7, cross=cross)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    h = 1e-5
    for t in (0.15, 0.6):
        (m0, c0), (m, c), (m2, c2) = (model.net.law(t + k * h) for k in (-1, 0, 1))
        torch.testing.assert_close(model.score(x, t), -torch.linalg.solve(c, (x - m).T).T, rtol=1e-9, atol=1e-9)
        offset = model.velocity(m[None], t)[0]
        slope = (model.velocity(m + torch.eye(2, dtype=F64), t) - offset).T
        torch.testing.assert_close(offset, (m2 - m0) / (2 * h), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(slope @ c + c @ slope.T, (c2 - c0) / (2 * h), rtol=1e-5, atol=1e-5)
        gain = ((1 - t) * S0 + t * cross) @ torch.linalg.inv(c)
        torch.testing.assert_close(model.denoise(x, t), M0 + (x - m) @ gain.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_noise_keeps_the_marginals(strength):
    """Moments of the solver's own affine steps tend to those of x_0 at first order, whatever the noise."""
    model = model_of(0.9)
    errors = []
    for steps in (40, 80):
        mean, cov, field = M1, S1, Field(model, {}, 3)
        solver = InterpolantSDE(strength)
        for t, s in torch.linspace(1, 0, steps + 1, dtype=F64).unfold(0, 2, 1):
            start = torch.cat([torch.zeros(1, 2, dtype=F64), torch.eye(2, dtype=F64)])
            still = FromFunction(3, lambda shape: torch.zeros(3, 2, dtype=F64))
            out = solver.step(field, start, t, s, None, still)[0]
            unit = FromFunction(3, lambda shape: torch.ones(3, 2, dtype=F64))
            std = float((solver.step(field, start, t, s, None, unit)[0] - out)[0, 0])
            a = (out[1:] - out[0]).T
            mean, cov = a @ mean + out[0], a @ cov @ a.T + std**2 * torch.eye(2, dtype=F64)
        errors.append((float((mean - M0).abs().max()), float((cov - S0).abs().max())))
    (_, coarse), (off, fine) = errors
    assert off < 1e-12  # the mean moves along a line
    assert fine < 0.06
    assert fine < 0.6 * coarse


def test_loss_is_least_at_the_exact_parts():
    model, n = model_of(0.8), 3000
    draws = torch.Generator().manual_seed(0)
    x0, x1 = (
        m + torch.randn(n, 2, dtype=F64, generator=draws) @ torch.linalg.cholesky(s).T for m, s in ((M0, S0), (M1, S1))
    )
    off = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=F64)
    wrong = InterpolantModel(lambda x, t: model.net(x, t) + off, Bridge(0.8), shape=(2,))
    gap = interpolant_loss(wrong, x0, x1, seed=1) - interpolant_loss(model, x0, x1, seed=1)
    assert abs(float(gap.mean()) - float(off.square().sum())) < 4 * float(gap.std()) / math.sqrt(n)


def test_the_door_carries_samples_and_densities():
    """sample from rows of x_1, and log_prob by the flow with the law of x_1, on a Gaussian whose density is known."""
    model = model_of(0.6)
    x1 = M1 + torch.randn(300, 2, dtype=F64, generator=torch.Generator().manual_seed(3)) @ torch.linalg.cholesky(S1).T
    x = sf.sample(model, 300, InterpolantSDE(), x_init=x1, steps=25, t_min=0.0, seed=0)
    assert (x.mean(0) - M0).abs().max() < 4 / math.sqrt(300) + 0.05
    assert torch.linalg.norm(torch.cov(x.T) - S0) / torch.linalg.norm(S0) < 4 * math.sqrt(2 / 300)

    class Law:
        def draw(self, noise, dtype, device):
            return x1

        def log_prob(self, y):
            return torch.distributions.MultivariateNormal(M1, S1).log_prob(y)

    points = M0 + torch.tensor([[0.0, 0.0], [0.5, 0.4]], dtype=F64)
    found = sf.log_prob(model, points, trace="exact", prior=Law(), solver=sf.solve.RK4(), steps=60, t_min=0.0)
    exact = torch.distributions.MultivariateNormal(M0, S0).log_prob(points)
    torch.testing.assert_close(found.nats.double(), exact, rtol=0, atol=0.02)  # c' is cut at 1e-3 from the ends


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="a Brownian bridge"):
        InterpolantModel(lambda x, t: x, I2SB())
    with pytest.raises(ValueError, match="twice the channels"):
        InterpolantModel(lambda x, t: x, Bridge()).velocity(torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match="no single noise"):
        model_of(0.5).noise(torch.zeros(2, 2, dtype=F64), 0.5)
    with pytest.raises(ValueError, match="give x1="):
        InterpolantModel(lambda x, t, x1: x, Bridge(), sees_end=True).velocity(torch.zeros(2, 3), 0.5)
    with pytest.raises(ValueError, match="noise=-1"):
        InterpolantSDE(-1.0)
    with pytest.raises(ValueError, match="the same shape"):
        interpolant_loss(model_of(0.5), torch.zeros(3, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="InterpolantSDE follows"):
        sf.sample(sf.ScoreModel(lambda x, t: x, sf.VP(), shape=(2,)), 2, InterpolantSDE(), steps=2)
