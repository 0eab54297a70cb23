"""General drift and diffusion (Song et al. 2021, App. A): reverse drifts, flows and simulations against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.errors import ScorefieldWarning
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


def test_the_law_at_rest_solves_fokker_planck():
    """The residual of the exact score is rounding; that of another score is not."""
    sde, x = Reversible(), torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    right, wrong = (sf.ScoreModel.from_score(lambda x, t, k=k: k * sde.score(x), sde, shape=(2,)) for k in (1.0, 1.1))
    for probes in (None, 2):
        assert sf.diagnose.fokker_planck_residual(right, x, 0.3, probes=probes, seed=0).abs().max() < 1e-12
    assert sf.diagnose.fokker_planck_residual(wrong, x, 0.3).abs().max() > 0.1


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


def returned(noise: float, sde: SDE | None = None, steps: int = 400) -> Tensor:
    """Covariance at 0 of the reverse process from the exact one at T, by RK4; the drift may be that of another process."""
    right, s0 = RotatedOU(), torch.tensor([[0.5, 0.2], [0.2, 1.2]], dtype=F64)
    rows = torch.eye(2, dtype=F64)

    def slope(cov: Tensor, t: float) -> Tensor:
        """d cov / dt of the process that runs backward, in forward time; the drift is linear, so two points give it."""
        inverse = torch.linalg.inv(moments_forward(right, s0, t))
        drift = (sde or right).reverse_drift(rows, t, -rows @ inverse, noise).T
        return drift @ cov + cov @ drift.T - noise**2 * right.G @ right.G.T

    cov = moments_forward(right, s0, 1.5)
    for i in range(steps):
        t, h = 1.5 - 1.5 * i / steps, -1.5 / steps
        k1 = slope(cov, t)
        k2 = slope(cov + 0.5 * h * k1, t + 0.5 * h)
        k3 = slope(cov + 0.5 * h * k2, t + 0.5 * h)
        cov = cov + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(cov + h * k3, t + h))
    return cov


@pytest.mark.parametrize("noise", [0.0, 0.6, 1.0])
def test_reverse_moments_of_a_rotated_process_return_to_the_start(noise):
    sde, s0 = RotatedOU(), torch.tensor([[0.5, 0.2], [0.2, 1.2]], dtype=F64)
    assert moments_forward(sde, s0, 1.5).flatten().tolist() == pytest.approx(
        [0.27748821, -0.01449383, -0.01449383, 0.47501340], abs=1e-8
    )
    assert torch.allclose(returned(noise), s0, atol=2e-11)


class Transposed(RotatedOU):
    """G^T in place of G."""

    def diffusion(self, x, t):
        return self.G.T.expand(len(x), 2, 2)


class Diagonal(RotatedOU):
    """The diagonal of G G^T alone."""

    def diffusion(self, x, t):
        return torch.sqrt(torch.diagonal(self.G @ self.G.T)).expand_as(x)


@pytest.mark.parametrize(("wrong", "sde", "flow"), [(Transposed(), 0.51, 0.55), (Diagonal(), 0.58, 0.88)])
def test_the_transposed_product_would_not_do(wrong, sde, flow):
    """With G^T G, or the diagonal of G G^T, before the score the moments at 0 are off by half and more."""
    s0 = torch.tensor([[0.5, 0.2], [0.2, 1.2]], dtype=F64)
    found = [float((returned(noise, wrong, 100) - s0).abs().max()) for noise in (1.0, 0.0)]
    assert found == pytest.approx((sde, flow), abs=6e-3)


def test_a_law_that_moves_solves_fokker_planck():
    """The exact score of a rotated Gaussian under a matrix G; under G^T it does not."""
    s0, m0 = torch.tensor([[0.5, 0.2], [0.2, 1.2]], dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)

    def score(x, t):
        decay = torch.linalg.matrix_exp(-RotatedOU.A * t[0])
        limit = moments_forward(RotatedOU(), torch.zeros_like(s0), 60.0)
        cov = decay @ (s0 - limit) @ decay.T + limit
        return -(x - decay @ m0) @ torch.linalg.inv(cov)

    x = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    right, wrong = (
        sf.diagnose.fokker_planck_residual(sf.ScoreModel.from_score(score, sde), x, 0.4).abs().max()
        for sde in (RotatedOU(), Transposed())
    )
    assert right < 1e-11
    assert wrong > 0.1


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


def test_mean_and_limit_of_the_rotated_process():
    sde = RotatedOU()
    decay = torch.linalg.matrix_exp(-sde.A * 1.5)
    assert (decay @ torch.tensor([1.0, -0.5], dtype=F64)).tolist() == pytest.approx([0.31966128, -0.03423226], abs=1e-8)
    limit = moments_forward(sde, torch.eye(2, dtype=F64), 60.0)
    assert limit.flatten().tolist() == pytest.approx([0.19136905, 0.06703869, 0.06703869, 0.37518601], abs=1e-8)


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

    class Negative(Word):
        def diffusion(self, x, t):
            return -1.0

    class Lost(Word):
        def diffusion(self, x, t):
            return math.nan

    class Whole(Root):
        def drift(self, x, t):
            return x.long()

    class Complex(Word):
        def diffusion(self, x, t):
            return torch.ones(len(x)) * 1j

    class DrawOnly:
        def draw(self, noise, dtype, device):
            return torch.zeros(2, 2)

    x = torch.full((200, 1), 0.1)
    falling = sf.ScoreModel.from_score(lambda y, t: -y, Falling(), shape=(1,))
    with pytest.raises(ValueError, match=r"Falling has g\^2 = -.* at t = 1: sigma / alpha must rise"):
        sf.sample(falling, 3, sf.EulerMaruyama(), steps=2, denoise=False)
    for process, told in (
        (Word(), r"Word\.diffusion returned str"),
        (Negative(), r"Negative\.diffusion returned -1\.0; return 0 or a positive number"),
        (Lost(), r"Lost\.diffusion returned nan"),
        (Complex(), r"Complex\.diffusion returned torch\.complex64; return real"),
        (Whole(), r"Whole\.drift returned torch\.int64; return real"),
    ):
        with pytest.raises(ValueError, match=told):
            process.simulate(x)
    with pytest.warns(ScorefieldWarning, match=r"of 200 paths of Root left the numbers .* more than steps=5"):
        Root().simulate(x, steps=5, seed=0)
    model = sf.ScoreModel.from_score(lambda y, t: -y, VP(), shape=(1,))
    with pytest.raises(ValueError, match="give an object with draw"):
        sf.sample(model, 2, sf.EulerMaruyama(), steps=2, prior=object())
    with pytest.raises(ValueError, match=r"prior: draw returned shape \(2, 2\); expected \(2, 1\)"):
        sf.sample(model, 2, sf.EulerMaruyama(), steps=2, prior=DrawOnly())
    with pytest.raises(ValueError, match="has no log_prob"):
        sf.log_prob(model, torch.zeros(2, 1), prior=DrawOnly())
    assert float(VP(0.0, 20.0).diffusion(x, 0.0)) == 0.0  # no noise yet is no fault
