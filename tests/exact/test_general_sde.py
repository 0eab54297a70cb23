"""General drift and diffusion (Song et al. 2021, App. A): reverse drifts, flows and simulations against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scorefield.sde import SDE, GaussianSDE
from scorefield.sdes import VP

F64 = torch.float64


class Reversible(SDE):
    """f = 1/2 (a grad log pi + div a): stationary under pi, so that backwards it is itself."""

    P = torch.tensor([[1.5, 0.4], [0.4, 0.8]], dtype=F64)
    m = torch.tensor([0.3, -0.2], dtype=F64)

    def score(self, x: Tensor) -> Tensor:
        return -(x - self.m) @ self.P - 0.1 * torch.sin(x)

    def diffusion(self, x, t):
        c, s = torch.cos(x[:, 0]), torch.sin(x[:, 0])
        first, second = 1 + 0.3 * torch.sin(x[:, 1]), 0.5 + 0.2 * torch.cos(x[:, 0] * x[:, 1])
        return torch.stack([torch.stack([c * first, -s * second], 1), torch.stack([s * first, c * second], 1)], 1)

    def drift(self, x, t):
        g = self.diffusion(x, t)
        a = g @ g.mT
        return 0.5 * ((a @ self.score(x).unsqueeze(2)).squeeze(2) + self.divergence(x, t))


def test_a_reversible_diffusion_is_its_own_reverse():
    sde, x = Reversible(), torch.randn(50, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    score = sde.score(x)
    assert torch.allclose(sde.reverse_drift(x, 0.3, score), -sde.drift(x, 0.3), atol=1e-13)
    assert sde.velocity(x, 0.3, score).abs().max() < 1e-13


def test_numbers_of_the_rotated_diffusion():
    sde, x = Reversible(), torch.tensor([[0.7, -0.4]], dtype=F64)
    g = sde.diffusion(x, 0.0)
    a = (g @ g.mT)[0]
    assert a.flatten().tolist() == pytest.approx([0.65514323, 0.14823184, 0.14823184, 0.60401015], abs=1e-8)
    assert sde.divergence(x, 0.0)[0].tolist() == pytest.approx([-0.09507163, 0.30010656], abs=1e-8)
    assert sde.drift(x, 0.0)[0].tolist() == pytest.approx([-0.23608959, 0.11849895], abs=1e-8)


class RotatedOU(SDE):
    """dX = -A X dt + G dW with a lower triangular G, for which G^T G is another matrix than G G^T."""

    T = 1.5
    A = torch.tensor([[1.0, 0.8], [-0.3, 0.6]], dtype=F64)
    G = torch.tensor([[0.7, 0.0], [0.5, 0.4]], dtype=F64)

    def drift(self, x, t):
        return -x @ self.A.T

    def diffusion(self, x, t):
        return self.G.expand(len(x), 2, 2)


def moments_forward(sde: RotatedOU, s0: Tensor, t: float) -> Tensor:
    """Covariance at t: e^{-At} (S_0 - S_inf) e^{-A^T t} + S_inf."""
    eye = torch.eye(2, dtype=F64)
    lyapunov = torch.kron(sde.A, eye) + torch.kron(eye, sde.A)
    limit = torch.linalg.solve(lyapunov, (sde.G @ sde.G.T).flatten()).reshape(2, 2)
    decay = torch.linalg.matrix_exp(-sde.A * t)
    return decay @ (s0 - limit) @ decay.T + limit


@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_reverse_moments_of_a_rotated_process_return_to_the_start(noise):
    sde, s0 = RotatedOU(), torch.tensor([[0.5, 0.2], [0.2, 1.2]], dtype=F64)
    assert moments_forward(sde, s0, 1.5).flatten().tolist() == pytest.approx(
        [0.27748821, -0.01449383, -0.01449383, 0.47501340], abs=1e-8
    )
    a = sde.G @ sde.G.T

    def slope(cov: Tensor, t: float) -> Tensor:
        """d cov / dt of the process that runs backward, in forward time; the drift is linear, so two points give it."""
        inverse = torch.linalg.inv(moments_forward(sde, s0, t))
        rows = torch.eye(2, dtype=F64)
        drift = sde.reverse_drift(rows, t, -rows @ inverse, noise).T
        return drift @ cov + cov @ drift.T - noise**2 * a

    cov, steps = moments_forward(sde, s0, 1.5), 400
    for i in range(steps):
        t, h = 1.5 - 1.5 * i / steps, -1.5 / steps
        k1 = slope(cov, t)
        k2 = slope(cov + 0.5 * h * k1, t + 0.5 * h)
        k3 = slope(cov + 0.5 * h * k2, t + 0.5 * h)
        cov = cov + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(cov + h * k3, t + h))
    assert torch.allclose(cov, s0, atol=1e-9)


class Geometric(SDE):
    """dX = mu X dt + s X dW."""

    def drift(self, x, t):
        return 0.1 * x

    def diffusion(self, x, t):
        return 0.5 * x


def test_strong_order_of_euler_maruyama_and_milstein():
    """Against the exact solution on the same path: 1/2 and 1 (Kloeden & Platen 1992, ch. 10)."""
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


def test_divergence_of_scalar_diagonal_and_matrix_diffusions_agree():
    class Scalar(SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return 1 + 0.1 * (x**2).sum(1)

    class Diagonal(Scalar):
        def diffusion(self, x, t):
            return (1 + 0.1 * (x**2).sum(1, keepdim=True)).expand_as(x)

    class Matrix(Scalar):
        def diffusion(self, x, t):
            return (1 + 0.1 * (x**2).sum(1))[:, None, None] * torch.eye(3, dtype=x.dtype)

    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    expected = 2 * (1 + 0.1 * (x**2).sum(1, keepdim=True)) * 0.2 * x
    for sde in (Scalar(), Diagonal(), Matrix()):
        assert torch.allclose(sde.divergence(x, 0.1), expected, atol=1e-13), type(sde).__name__
        again = sde.simulate(x, 0.3, 4, seed=3)
        assert torch.equal(again, sde.simulate(x, 0.3, 4, seed=3))
        assert torch.allclose(again, Scalar().simulate(x, 0.3, 4, seed=3), atol=1e-12)


def test_a_gaussian_sde_is_one_of_them():
    """The same drift and flow through the general formulas, for every sample's own time too."""
    sde, x = VP(), torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(4))
    score, t = torch.sin(x), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=F64)
    for time in (0.3, t):
        for noise in (0.0, 0.5, 1.0):
            general = SDE.reverse_drift(sde, x, time, score, noise)
            assert torch.allclose(general, sde.reverse_drift(x, time, score, noise), atol=1e-13)
    assert issubclass(VP, GaussianSDE)
    assert issubclass(GaussianSDE, SDE)


def test_simulation_has_the_kernel_of_a_gaussian_sde():
    """Mean and variance of Euler-Maruyama at T by the recursion of the scheme itself, which the draws follow to 4 sigma."""
    sde, n, steps = VP(), 20_000, 50
    x = sde.simulate(torch.full((n, 1), 0.8, dtype=F64), 0.5, steps, seed=0)
    mean, variance, h = 0.8, 0.0, 0.5 / steps
    for i in range(steps):
        beta = float(sde.beta(i * h))
        mean, variance = (1 - 0.5 * h * beta) * mean, (1 - 0.5 * h * beta) ** 2 * variance + h * beta
    assert abs(float(x.mean()) - mean) < 4 * math.sqrt(variance / n)
    assert abs(float(x.var()) - variance) < 4 * variance * math.sqrt(2 / n)
    path = sde.simulate(torch.zeros(3, 2, dtype=F64), torch.tensor([0.1, 0.2, 0.3]), 5, seed=0, path=True)
    assert path.shape == (6, 3, 2)


def test_wrong_shapes_are_named():
    class Bad(SDE):
        def drift(self, x, t):
            return x.sum(1)

        def diffusion(self, x, t):
            return torch.ones(len(x), 7)

    class BadDiffusion(Bad):
        def drift(self, x, t):
            return x

    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"Bad.drift returned \(4,\)"):
        Bad().reverse_drift(x, 0.1, x)
    with pytest.raises(ValueError, match=r"BadDiffusion.diffusion returned shape \(4, 7\)"):
        BadDiffusion().simulate(x)
    with pytest.raises(ValueError, match="at least one step"):
        VP().simulate(x, steps=0)
    with pytest.raises(ValueError, match="does not know the law"):
        Reversible().prior((4, 2))
