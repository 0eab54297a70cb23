"""Position and velocity: the kernel, its score, the views, the splitting scheme, and recordings of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from scorefield.likelihood import log_prob
from scorefield.phase import CLD, SSCS, PhaseModel, hsm_loss, log_prob_bound, split
from scorefield.randomness import FromFunction, source
from scorefield.sampling import sample
from scorefield.solve import RK4, EulerMaruyama, Tsit5
from scorefield.solve.integrate import Field, Solver

F64 = torch.float64
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "53_cld.safetensors"
recorded = pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")


@pytest.fixture(scope="module")
def recording() -> dict[str, Tensor]:
    return load_file(RECORDING)


@pytest.mark.parametrize(
    ("t", "cov", "ell", "mean"),
    [
        (0.01, (0.000823913, 0.00670808, 0.07553549), 6.91381, 0.99696565),
        (0.1, (0.22181006, 0.12985984, 0.21575835), 2.67518, 0.80879214),
        (0.5, (0.98646073, 0.00528689, 0.24793355), 2.00843, 0.09157819),
        (1.0, (0.99998397, 7.076e-6, 0.24999688), 2.00001, 0.00301916),
    ],
)
def test_kernel_at_the_defaults(t, cov, ell, mean):
    m, c = CLD().kernel_matrices(t)
    assert (float(c[0, 0]), float(c[0, 1]), float(c[1, 1])) == pytest.approx(cov, rel=1e-4)
    assert float(1 / CLD().factor(t)[1, 1]) == pytest.approx(ell, rel=1e-5)
    assert float(m[0, 0]) == pytest.approx(mean, abs=1e-8)


@pytest.mark.parametrize("sde", [CLD(), CLD(beta=2.5, mass=0.6, gamma=0.3)])
@pytest.mark.parametrize("known", [False, True])
def test_kernel_solves_the_moment_equations(sde, known):
    """d mean / dt = F mean and d cov / dt = F cov + cov F^T + Q, F and Q read off drift and diffusion."""
    rows = torch.eye(2, dtype=F64)
    matrix = sde.drift(rows, 0.0).T
    noise = torch.diag(sde.diffusion(rows, 0.0)[0] ** 2)
    for t in (1e-5, 0.003, 0.1, 0.4, 1.0):
        time = torch.tensor(t, dtype=F64)
        mean, cov = sde.kernel_matrices(time, known)
        d_mean, d_cov = torch.autograd.functional.jacobian(lambda u: sde.kernel_matrices(u, known), time)
        assert torch.allclose(d_mean, matrix @ mean, atol=1e-12)
        assert torch.allclose(d_cov, matrix @ cov + cov @ matrix.T + noise, atol=1e-12)


def test_covariance_keeps_its_digits_near_zero():
    """Sxx = z^3 / 6 - ... of the velocity's own noise; the published difference loses it in float32 and half in float64."""
    sde = CLD(gamma=0.0)
    for t in (1e-5, 1e-7):
        z = float(sde.elapsed(t))
        series = z**3 / 6 - z**4 / 8 + z**5 / 20
        assert float(sde.kernel_matrices(t)[1][0, 0]) == pytest.approx(series, rel=1e-9)
    assert float(CLD().kernel_matrices(1e-5)[1][0, 0]) == pytest.approx(2.57e-10, rel=2e-3)
    ell = 1 / CLD().factor(torch.tensor([1e-2, 1e-3, 1e-5], dtype=F64))[:, 1, 1]
    assert ell.tolist() == pytest.approx([6.91, 19.9, 194], rel=3e-3)


class Gaussian(PhaseModel):
    """The exact model of N(mean, variance) data: the joint law of (x, v) is Gaussian at all times."""

    def __init__(self, sde: CLD, mean: float, variance: float, mixed: bool = False) -> None:
        super().__init__(torch.nn.Identity(), sde, shape=(1,), mixed=mixed)
        self.law = (mean, variance)

    def moments(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        mean, cov = self.sde.kernel_matrices(t)
        column = mean[..., :1]
        return self.law[0] * column[..., 0], cov + self.law[1] * column @ column.mT

    def velocity_noise(self, u, t, **cond):
        mean, cov = self.moments(t)
        rest = ((u - mean)[..., None, :] @ torch.linalg.inv(cov))[..., 0, :]  # minus the score
        return rest[:, 1:] * self.sde.factor(t)[..., 1, 1].reshape(-1, 1)


def test_views_are_exact_on_a_gaussian():
    sde, u = CLD(), torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    model = Gaussian(sde, 0.7, 0.3)
    for t in (0.02, 0.3, 0.8):
        mean, cov = model.moments(t)
        column = sde.kernel_matrices(t)[0][:, 0]
        expected = 0.7 + (u - mean) @ torch.linalg.solve(cov, column) * 0.3
        assert torch.allclose(model.denoise(u, t)[:, 0], expected, atol=1e-10)
        noise = model.noise(u, t)
        again = model.denoise(u, t) * column + noise @ sde.factor(t).T
        assert torch.allclose(again, u, atol=1e-10)
        score = model.score(u, t)
        assert torch.equal(score[:, 0], torch.zeros(6, dtype=F64))
        flow = sde.drift(u, t) - 0.5 * sde.diffusion(u, t) ** 2 * score
        assert torch.allclose(model.velocity(u, t), flow, atol=1e-12)


def affine_moments(solver: Solver, steps: int) -> float:
    """Relative error of the variance of x at t = 1e-3 from the exact start, by the affine map of every step.

    Rows of a step: 0, the unit states without noise, and 0 with a unit of each draw.
    """
    model = Gaussian(CLD(), 0.7, 0.3)
    cov = model.moments(1.0)[1]
    grid = torch.linspace(1, 1e-3, steps + 1, dtype=F64)
    field = Field(model, {}, 7)
    units = torch.eye(6, dtype=F64)
    states, draws = (torch.cat([torch.zeros(1, n, dtype=F64), u]) for n, u in ((2, units[:, :2]), (4, units[:, 2:])))
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        left = iter(draws.split(2, 1))
        noise = FromFunction(7, lambda shape, left=left: next(left))
        out = solver.step(field, states, t, s, None, noise)[0]
        moved = out[1:] - out[0]
        matrix, spread = moved[:2].T, moved[2:].T
        cov = matrix @ cov @ matrix.T + spread @ spread.T
    exact = model.moments(1e-3)[1]
    return float(cov[0, 0] / exact[0, 0] - 1)


def test_splitting_scheme_has_its_published_error():
    """Uniform grid: first order, with these errors of the variance of x (relative)."""
    found = [affine_moments(SSCS(), n) for n in (25, 50, 100, 200, 400, 800)]
    assert found == pytest.approx([-0.133, -0.0671, -0.0335, -0.0167, -0.00835, -0.00417], rel=5e-3)


def test_second_order_splitting():
    coarse, fine = (abs(affine_moments(SSCS(order=2), n)) for n in (50, 100))
    assert math.log2(coarse / fine) > 1.8
    assert fine < 0.004


def test_loss_is_least_at_the_exact_noise_and_tells_a_wrong_one():
    """E of the loss minus its least value is the mean square of what a model adds, exactly for the same draws' cross term."""
    sde, n = CLD(), 4000
    model = Gaussian(sde, 0.7, 0.3)
    x0 = 0.7 + math.sqrt(0.3) * torch.randn(n, 1, dtype=F64, generator=torch.Generator().manual_seed(1))

    class Off(Gaussian):
        def velocity_noise(self, u, t, **cond):
            return super().velocity_noise(u, t) + 0.5

    for hybrid in (True, False):
        right = hsm_loss(model, x0, hybrid=hybrid, seed=2, t=0.3)
        wrong = hsm_loss(Off(sde, 0.7, 0.3), x0, hybrid=hybrid, seed=2, t=0.3)
        ratio = float(sde.factor(0.3, not hybrid)[1, 1] / sde.factor(0.3)[1, 1])
        gap, expected = wrong - right, (0.5 * ratio) ** 2
        assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / math.sqrt(n)


@recorded
def test_kernel_and_drift_of_the_recording(recording):
    sde, t = CLD(), recording["t"].to(F64)
    u = recording["u"].to(F64)
    d = u.shape[1] // 2
    mean = sde.kernel_matrices(t)[0]
    x, v = u[:, :d], u[:, d:]
    moved = torch.cat(
        [mean[:, 0, :1] * x + mean[:, 0, 1:] * v, mean[:, 1, :1] * x + mean[:, 1, 1:] * v],
        1,
    )
    assert torch.allclose(moved, recording["mean"].to(F64), rtol=1e-8, atol=1e-9)
    for kind, known in (("hsm", False), ("dsm", True)):
        cov = sde.kernel_matrices(t, known)[1]
        ours = torch.stack([cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]], 1)
        later = t > 1e-3  # before, the recorded sums have lost their digits
        assert torch.allclose(ours[later], recording[f"{kind}/var"].to(F64)[later], rtol=1e-6, atol=1e-8)
        ell = 1 / sde.factor(t, known)[later, 1, 1]
        assert torch.allclose(-ell, recording[f"{kind}/noise_multiplier"].to(F64)[later], rtol=1e-6)
    assert torch.allclose(sde.drift(u, t), recording["drift"].to(F64), atol=1e-9)
    assert torch.allclose(sde.diffusion(u, t), recording["diffusion"].to(F64), atol=1e-9)
    score = torch.cat([torch.zeros(6, d, dtype=F64), recording["rev/score"].to(F64)], 1)
    for noise, name in ((1.0, "pf0"), (0.0, "pf1")):
        ours = -sde.reverse_drift(u, t, score, noise)
        assert torch.allclose(ours, recording[f"rev/drift_{name}"].to(F64), atol=1e-8)
        assert torch.allclose(noise * sde.diffusion(u, t), recording[f"rev/diffusion_{name}"].to(F64), atol=1e-9)
    prior = sde.prior(tuple(u.shape))
    assert torch.allclose(prior.log_prob(u), recording["prior_logp"].to(F64).sum(1), atol=1e-9)


@recorded
@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize(
    ("weighting", "name"), [("noise", "reweightedv2"), ("diffusion", "reweightedv1"), ("likelihood", "likelihood")]
)
def test_losses_of_the_recording(recording, hybrid, weighting, name):
    kind, sde = "hsm" if hybrid else "dsm", CLD()
    draws = [recording[k].to(F64) for k in sorted(k for k in recording if k.startswith(f"loss/{kind}/draw"))]
    x = recording["loss/x"].to(F64)
    velocity = None if hybrid else draws[0] * math.sqrt(sde.gamma * sde.mass)
    u, noise = draws[-2:]
    t = u.flatten() * (1 - 1e-5) + 1e-5

    def net(state, time):
        position, v = split(state)
        score = -0.7 * v + 0.3 * torch.tanh(position) - 0.1 * time[:, None]
        return -score * sde.factor(time)[:, 1, 1:]

    model = PhaseModel(net, sde, shape=(3,), mixed=False)
    ours = hsm_loss(model, x, hybrid=hybrid, weighting=weighting, t=t, noise=noise, velocity=velocity)
    assert torch.allclose(ours, recording[f"loss/{kind}_{name}"].to(F64), rtol=1e-5)


class Wide(PhaseModel):
    """The exact model of data with independent entries of that law."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), CLD(), shape=(3,))
        self.one = Gaussian(CLD(), 0.7, 0.3)

    def velocity_noise(self, u, t, **cond):
        position, velocity = split(u)
        pairs = torch.stack([position.flatten(), velocity.flatten()], 1)
        return self.one.velocity_noise(pairs, t).reshape(velocity.shape)


@recorded
@pytest.mark.parametrize(("solver", "name"), [(SSCS(), "sscs"), (EulerMaruyama(), "em")])
def test_chains_of_the_recording(recording, solver, name):
    """With the exact score of N(.7, .3) data, through the door; the last step is a noiseless Euler step."""
    wide = Wide()
    draws = iter([recording[k].to(F64) for k in sorted(k for k in recording if k.startswith(f"{name}/draw"))])
    grid = 1 - torch.linspace(0, 1 - 1e-3, 9, dtype=F64)
    start = recording[f"{name}/u_init"].to(F64)
    u = sample(wide, 4, solver, grid=grid, x_init=start, noise=lambda: next(draws), denoise=False)
    u = u - 1e-3 * wide.process.reverse_drift(u, 1e-3, wide.score(u, 1e-3))
    x, v = split(u)
    assert torch.allclose(x, recording[f"{name}/x"].to(F64), rtol=0, atol=3e-10)
    assert torch.allclose(v, recording[f"{name}/v"].to(F64), rtol=0, atol=3e-10)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="beta=-1"):
        CLD(beta=-1.0)
    with pytest.raises(ValueError, match="even second dimension"):
        CLD().drift(torch.zeros(2, 3), 0.1)
    with pytest.raises(ValueError, match="weighting='x'"):
        hsm_loss(Gaussian(CLD(), 0.0, 1.0), torch.zeros(2, 1), weighting="x")
    with pytest.raises(ValueError, match="order=3"):
        SSCS(order=3)
    prior = CLD().prior((2000, 4))
    draw = prior.sample(seed=0)
    assert draw[:, 2:].std() == pytest.approx(0.5, rel=0.05)
    assert prior.log_prob(torch.zeros(1, 4)).item() == pytest.approx(-2 * math.log(2 * math.pi) - math.log(0.25))


def test_euler_maruyama_has_its_known_error_too():
    found = [affine_moments(EulerMaruyama(), n) for n in (25, 50, 100, 200, 400, 800)]
    assert found == pytest.approx([0.399, 0.111, 0.0442, 0.0201, 0.00967, 0.00475], rel=5e-3)


def test_drift_is_critically_damped_and_keeps_its_equilibrium():
    """Both eigenvalues are -2 beta, and F S + S F^T + Q = 0 at S = diag(1, M)."""
    sde = CLD(beta=3.0)
    rows = torch.eye(2, dtype=F64)
    matrix, noise = sde.drift(rows, 0.0).T, torch.diag(sde.diffusion(rows, 0.0)[0] ** 2)
    assert float(matrix.trace()) == pytest.approx(-12.0)
    assert float(torch.linalg.det(matrix)) == pytest.approx(36.0)
    stationary = torch.diag(torch.tensor([1.0, sde.mass], dtype=F64))
    assert torch.allclose(matrix @ stationary + stationary @ matrix.T + noise, torch.zeros(2, 2, dtype=F64), atol=1e-12)


def test_the_bound_on_positions():
    """As v_0 does not depend on x_0, the bound on log p(x) is tight at the exact model."""
    sde = CLD()
    model = Gaussian(sde, 0.7, 0.3)
    first, last = (torch.distributions.MultivariateNormal(*model.moments(t)) for t in (1e-3, 1.0))

    class Last:
        def draw(self, noise, dtype, device):
            raise AssertionError

        def log_prob(self, y):
            return last.log_prob(y)

    x = torch.tensor([[0.4], [1.1]], dtype=F64)
    keys = {"trace": "exact", "t_min": 1e-3, "solver": RK4(), "steps": 40, "grid": "quadratic"}
    bound, _ = log_prob_bound(model, x, draws=2, seed=0, prior=Last(), **keys)
    noise, std = source(0, 2), math.sqrt(sde.gamma * sde.mass)
    drawn = [first.log_prob(torch.cat([x, std * noise.like(x)], 1)) for _ in range(2)]
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    torch.testing.assert_close(bound, torch.stack(drawn).mean(0) + entropy, rtol=0, atol=4e-3)
    # with v_0 and x_0 independent the bound is tight: E log N(v_0) = -entropy
    tight = torch.distributions.MultivariateNormal(*model.moments(1e-7))
    grid = torch.linspace(-6, 6, 2001, dtype=F64) * std
    weights = torch.softmax(-0.5 * (grid / std) ** 2, 0)
    mean = (weights * tight.log_prob(torch.stack([torch.full_like(grid, 0.4), grid], 1))).sum()
    density = torch.distributions.Normal(0.7, math.sqrt(0.3)).log_prob(torch.tensor(0.4))
    assert float(mean) + entropy == pytest.approx(float(density), abs=1e-4)


def test_joint_likelihood_to_rounding():
    """To 4e-12 from t = 0.6, the adaptive solver being asked for 1e-11; another prior counts by its ratio at the end."""
    model = Gaussian(CLD(), 0.7, 0.3)
    u = torch.tensor([[0.4, 0.05]], dtype=F64)
    first, last = (torch.distributions.MultivariateNormal(*model.moments(t)) for t in (0.6, 1.0))

    class Last:
        def draw(self, noise, dtype, device):
            raise AssertionError

        def log_prob(self, y):
            return last.log_prob(y)

    keys = {"trace": "exact", "t_min": 0.6, "solver": Tsit5(1e-11, 1e-11)}
    found = log_prob(model, u, prior=Last(), **keys)
    torch.testing.assert_close(found.nats, first.log_prob(u), rtol=0, atol=4e-12)
    end = found.latent
    nominal = found.nats + model.process.prior((1, 2)).log_prob(end) - last.log_prob(end)
    torch.testing.assert_close(
        log_prob(model, u, trace="exact", t_min=0.6, solver=RK4(), steps=12).nats, nominal, rtol=0, atol=1e-5
    )
    assert 1e-4 < float((nominal - found.nats).abs()) < 2e-3


@pytest.mark.parametrize("shape", [(2,), (1, 6), (2, 4, 3), (1, 2, 3, 2)])
def test_any_event_shape(shape):
    """A network that returns eps_v, for vectors, signals, images and volumes: loss, sampling and views."""
    model = PhaseModel(lambda u, t: 0.1 * split(u)[1], CLD(), shape=shape)
    x0 = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert hsm_loss(model, x0, seed=0).shape == (3,)
    u = sample(model, 3, SSCS(), steps=3, seed=0, denoise=False)
    assert u.shape == (3, 2 * shape[0], *shape[1:])
    assert model.denoise(u, 0.5).shape == (3, *shape)
