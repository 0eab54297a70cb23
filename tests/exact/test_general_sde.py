"""General drift and diffusion (Song et al. 2021, App. A): reverse drifts, flows and simulations against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.errors import ScorefieldWarning
from scorefield.randomness import FromFunction
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


def test_a_gaussian_process_takes_the_same_chain_through_either_door():
    """VP as a subclass of SDE with its drift and diffusion alone: the samples of Euler-Maruyama are the same numbers."""

    class Plain(SDE):
        t_min = VP().t_min

        def drift(self, x, t):
            return VP().drift(x, t)

        def diffusion(self, x, t):
            return VP().diffusion(x, t)

    start = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    ends = [
        sf.sample(
            sf.ScoreModel.from_score(lambda x, t: -torch.tanh(x), sde, shape=(3,)),
            5,
            sf.EulerMaruyama(),
            steps=40,
            x_init=start,
            seed=1,
            denoise=False,
        )
        for sde in (VP(), Plain())
    ]
    assert torch.equal(*ends)


def test_the_transposed_product_would_not_do():
    """G^T G in place of G G^T: the reverse moments of the rotated process miss the start by half."""

    class Transposed(RotatedOU):
        def diffusion(self, x, t):
            return self.G.T.expand(len(x), 2, 2)

    right, wrong, x = RotatedOU(), Transposed(), torch.eye(2, dtype=F64)
    gap = right.reverse_drift(x, 0.0, x) - wrong.reverse_drift(x, 0.0, x)
    expected = -x @ (right.G @ right.G.T - right.G.T @ right.G)
    assert torch.allclose(gap, expected, atol=1e-14)
    assert gap.abs().max() > 0.2


def test_mean_and_limit_of_the_rotated_process():
    sde = RotatedOU()
    decay = torch.linalg.matrix_exp(-sde.A * 1.5)
    assert (decay @ torch.tensor([1.0, -0.5], dtype=F64)).tolist() == pytest.approx([0.31966128, -0.03423226], abs=1e-8)
    limit = moments_forward(sde, torch.eye(2, dtype=F64), 60.0)
    assert limit.flatten().tolist() == pytest.approx([0.19136905, 0.06703869, 0.06703869, 0.37518601], abs=1e-8)


@pytest.mark.parametrize(
    ("noise", "shift"), [(1.0, 2 * 0.2 * math.log(0.2 / 0.45)), (0.0, 2 * 0.2 - 2 * math.sqrt(0.09))]
)
def test_what_the_divergence_is_worth_on_a_geometric_process(noise, shift):
    """log x is Gaussian, N(0, 0.2) at 0 and of variance 0.45 at 1: without div a its mean comes back wrong by `shift`.

    The reverse process in y = log x has an affine drift, b(x) / x - noise^2 sigma^2 / 2 backward; two points give it.
    """

    class Blind(Geometric):
        def divergence(self, x, t):
            return torch.zeros_like(x)

    def law(t: float) -> tuple[float, float]:
        return (0.1 - 0.125) * t, 0.2 + 0.25 * t

    def slope(sde: SDE, m: float, t: float) -> float:
        mean, variance = law(t)
        y = torch.tensor([[0.0], [1.0]], dtype=F64)
        x = torch.exp(y)
        score = (-1 - (y - mean) / variance) / x
        rate = (sde.reverse_drift(x, t, score, noise) / x + 0.5 * noise**2 * 0.25)[:, 0]
        return float(rate[0] + m * (rate[1] - rate[0]))

    ends = []
    for sde in (Geometric(), Blind()):
        m, steps = law(1.0)[0], 200
        for i in range(steps):
            t, h = 1 - i / steps, -1 / steps
            k1 = slope(sde, m, t)
            k2 = slope(sde, m + h / 2 * k1, t + h / 2)
            k3 = slope(sde, m + h / 2 * k2, t + h / 2)
            m += h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(sde, m + h * k3, t + h))
        ends.append(m)
    assert ends[0] == pytest.approx(0.0, abs=1e-9)
    assert ends[1] == pytest.approx(shift, abs=1e-8)


def test_weak_error_of_forward_steps():
    """E X and E X^2 of Euler-Maruyama from 1, exactly, by noise of +1 and -1: relative errors at 10, 20 and 40 steps."""
    sde, first, second = Geometric(), [], []
    for steps in (10, 20, 40):
        h = torch.tensor(1 / steps, dtype=F64)
        noise = FromFunction(2, lambda shape: torch.tensor([[1.0], [-1.0]], dtype=F64))
        x = sde._forward_step(torch.ones(2, 1, dtype=F64), torch.zeros((), dtype=F64), h, noise, False)
        first.append(float(x.mean()) ** steps / math.exp(0.1) - 1)
        second.append(float(x.square().mean()) ** steps / math.exp(0.45) - 1)
    assert first == pytest.approx([-4.966e-4, -2.491e-4, -1.248e-4], rel=1e-3)
    assert second == pytest.approx([-8.835e-3, -4.489e-3, -2.263e-3], rel=1e-3)


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


def test_bad_processes_and_priors_are_one_line():
    class Falling(GaussianSDE):
        def alpha(self, t):
            return 1 - 0.5 * t

        def sigma(self, t):
            return 1 - 0.9 * t

    class Word(SDE):
        def drift(self, x, t):
            return -x

        def diffusion(self, x, t):
            return "much"

    class Root(Word):
        def diffusion(self, x, t):
            return 2 * torch.sqrt(x)

    class DrawOnly:
        def draw(self, noise, dtype, device):
            return torch.zeros(2, 1)

    x = torch.full((200, 1), 0.1)
    falling = sf.ScoreModel.from_score(lambda y, t: -y, Falling(), shape=(1,))
    with pytest.raises(ValueError, match=r"Falling has g\^2 = -.* at t = 1: sigma / alpha must rise"):
        sf.sample(falling, 3, sf.EulerMaruyama(), steps=2, denoise=False)
    with pytest.raises(ValueError, match=r"Word\.diffusion returned str"):
        Word().simulate(x)
    with pytest.warns(ScorefieldWarning, match=r"of 200 paths of Root left the numbers .* more than steps=5"):
        Root().simulate(x, steps=5, seed=0)
    model = sf.ScoreModel.from_score(lambda y, t: -y, VP(), shape=(1,))
    with pytest.raises(ValueError, match="give an object with draw"):
        sf.sample(model, 2, sf.EulerMaruyama(), steps=2, prior=object())
    with pytest.raises(ValueError, match="has no log_prob"):
        sf.log_prob(model, torch.zeros(2, 1), prior=DrawOnly())
    assert float(VP(0.0, 20.0).diffusion(x, 0.0)) == 0.0  # no noise yet is no fault
