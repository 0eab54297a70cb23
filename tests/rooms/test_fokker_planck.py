"""The Fokker-Planck residual by probes, what of it is free of gauge, the gap it stands for, and training with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import scorefield as sf
from scorefield.errors import InputError
from scorefield.fokker_planck import _divergence, fokker_planck_loss, fokker_planck_residual, fokker_planck_spread
from scorefield.nn import Potential
from scorefield.solve.integrate import Field
from scorefield.training.batches import Batch
from scorefield.training.config import TrainConfig
from scorefield.training.loss import Objective

F64 = torch.float64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
recorded = pytest.mark.skipif(not SHARED.exists(), reason="the recordings are not here")
SDES = [sf.VP(), sf.VE(0.01, 5.0), sf.SubVP()]


class Smooth(nn.Module):
    """A potential that is no log-density, or its field; with a constant of its own at each time."""

    def __init__(self, outputs=1, constant=0.0):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.first, self.last = (nn.Parameter(torch.randn(s, dtype=F64, generator=g)) for s in ((4, 3), (outputs, 4)))
        self.constant = constant

    def forward(self, x, t):
        inner = torch.tanh(torch.cat([x, t[:, None]], 1) @ self.first.T) @ self.last.T
        return inner + self.constant * torch.sin(3 * t)[:, None]


def potential(**options):
    return sf.ScoreModel(Potential(Smooth(**options)), sf.VP(), "score", shape=(2,))


def field():
    return sf.ScoreModel(Smooth(2), sf.VP(), "score", shape=(2,))


X = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
T = torch.tensor([0.2, 0.5, 0.9], dtype=F64)


def rotated(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(d, d, dtype=F64, generator=g)
    return torch.randn(n, d, dtype=F64, generator=g) @ root + torch.randn(d, dtype=F64, generator=g)


MEANS = torch.tensor([[-1.2, -0.3], [0.8, 0.5]], dtype=F64)
COVS = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.4]]], dtype=F64)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_the_exact_score_solves_its_equation(sde):
    """Score form and potential form of a rotated mixture, at most 1e-10 of the terms."""
    gm = sf.GaussianMixture(MEANS, COVS, [0.3, 0.7], sde)
    t = torch.linspace(0.05, 0.9, 12, dtype=F64)
    x = gm.sample(12, 0.5, seed=0)
    residual = fokker_planck_residual(gm, x, t)
    scale = float((sde.g2(t) / sde.sigma(t) ** 3).max())
    assert float(residual.abs().max()) < 1e-10 * max(scale, 1.0)

    class Exact(nn.Module):
        def forward(self, x, t):
            return gm.log_prob(x, t)

    model = sf.ScoreModel(Potential(Exact()), sde, "score", shape=(2,))
    assert float(fokker_planck_residual(model, x, t).abs().max()) < 1e-10 * max(scale, 1.0)


@pytest.mark.parametrize("delta", [0.2, -0.2])
@pytest.mark.parametrize("d", [1, 3])
def test_a_mis_scaled_potential_has_this_residual(delta, d):
    """phi = -(1 + delta) |x|^2 / 2 under VP: R = 1/2 beta delta (d - (1 + delta) |x|^2), r = -beta delta (1 + delta) x."""

    class Body(nn.Module):
        def forward(self, x, t):
            return -0.5 * (1 + delta) * (x**2).sum(1) + 0 * t

    sde, x = sf.VP(), rotated(6, d)
    t = torch.linspace(0.1, 0.9, 6, dtype=F64)
    model = sf.ScoreModel(Potential(Body()), sde, "score", shape=(d,))
    beta = sde.beta(t)
    expected = 0.5 * beta * delta * (d - (1 + delta) * (x**2).sum(1))
    assert torch.allclose(fokker_planck_residual(model, x, t), expected, atol=1e-10)
    plain = sf.ScoreModel.from_score(lambda x, t: -(1 + delta) * x, sde, shape=(d,))
    assert torch.allclose(fokker_planck_residual(plain, x, t), -(beta * delta * (1 + delta))[:, None] * x, atol=1e-10)


def test_penalty_has_gradients_and_samplers_need_none():
    body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x, t):
            return self.body(torch.cat([x, t[:, None]], 1)) - 0.5 * (x**2).sum(1, keepdim=True)

    model = sf.ScoreModel(Potential(Body()), sf.VP(), "score", shape=(2,))
    x0 = rotated(8, 2)
    loss = sf.dsm_loss(model, x0, seed=0).mean() + 0.1 * fokker_planck_loss(model, x0, seed=0).mean()
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) and float(p.grad.abs().max()) > 0 for p in body[:1].parameters())
    with torch.inference_mode():
        x = sf.sample(model, 3, sf.DDIM(), steps=4, seed=0)
    assert x.shape == (3, 2)
    score = fokker_planck_loss(sf.ScoreModel.from_score(lambda x, t: -1.2 * x, sf.VP(), shape=(2,)), x0, seed=0)
    assert score.shape == (8,)
    with pytest.raises(ValueError, match="one number for each"):
        Potential(nn.Bilinear(2, 1, 3).double())(x0, x0[:, :1])


@recorded
def test_recorded_residuals_of_the_authors():
    r = load_file(SHARED / "30_fp_potential.safetensors")

    class Reference(sf.GaussianSDE):
        """dx = -x dt + dw."""

        T = 12.0

        def alpha(self, t):
            return torch.exp(-t)

        def sigma(self, t):
            return torch.sqrt(-0.5 * torch.expm1(-2 * t))

    layers = [(r[f"state/{n}.weight"], r[f"state/{n}.bias"]) for n in ("input", "hidden1", "hidden2", "output")]

    class Body(nn.Module):
        def forward(self, x, t):
            y = torch.cat([t[:, None], x], 1)
            for k, (w, b) in enumerate(layers):
                y = y @ w.T + b
                y = nn.functional.softplus(y, beta=100) if k < 3 else y
            return y

    model = sf.ScoreModel(Potential(Body()), Reference(), "score", shape=(2,))
    x, t = r["x"].to(F64), r["t"].to(F64)
    assert torch.allclose(model.score(x, t), r["score"], atol=1e-10)
    assert torch.allclose(fokker_planck_residual(model, x, t) ** 2, r["residual_squared"], rtol=1e-11, atol=1e-13)
    s = load_file(SHARED / "30_fp_score.safetensors")

    def closed(x, t):
        return torch.tanh(torch.cat([x, t[:, None].to(x)], 1) @ s["W1"].T + s["b1"]) @ s["W2"].T - x

    own = sf.ScoreModel.from_score(closed, sf.VP(), shape=(3,))
    assert torch.allclose(own.score(s["x"], s["t"]), s["score"], atol=1e-10)
    assert torch.allclose(fokker_planck_residual(own, s["x"], s["t"]), s["vp/vector"], rtol=1e-5, atol=1e-4)
    # The authors' time derivative is a difference quotient; their sum of norms under VE is of the same kind.
    ve = sf.ScoreModel.from_score(closed, sf.VE(0.01, 50.0), shape=(3,))
    norms = torch.linalg.vector_norm(fokker_planck_residual(ve, s["x"], s["t"]), dim=1)
    assert float(norms.sum()) == pytest.approx(float(s["ve/vector"]), rel=1e-6)
    # Their scalar is (beta / 2) (div s + |s|^2 + x.s), the equation's rate less its d beta / 2.
    x = s["x"].clone().requires_grad_()
    score = closed(x, s["t"])
    divergence = _divergence(score, x, None)
    rate = 0.5 * sf.VP().beta(s["t"]) * (divergence + (score**2).sum(1) + (x * score).sum(1))
    assert float(torch.linalg.vector_norm(rate).detach()) == pytest.approx(float(s["vp/scalar"]), rel=1e-10)


@pytest.mark.parametrize("model", [potential(), field()], ids=["potential", "score"])
def test_probes_are_unbiased(model):
    exact, n = fokker_planck_residual(model, X, T), 3000
    x, t = (v.repeat_interleave(n, 0) for v in (X, T))
    one = fokker_planck_residual(model, x, t, probes=1, seed=0).reshape(3, n, *exact.shape[1:])
    assert bool((one.std(1) > 1e-3).all())
    assert bool(((one.mean(1) - exact).abs() < 4 * one.std(1) / math.sqrt(n)).all())
    four = fokker_planck_residual(model, x, t, probes=4, seed=0).reshape(3, n, *exact.shape[1:])
    assert bool((four.std(1) / one.std(1) - 0.5).abs().max() < 0.05)


@pytest.mark.parametrize("model", [potential(), field()], ids=["potential", "score"])
def test_the_penalty_by_probes_is_unbiased(model):
    """The product of two estimates has the mean of the square; the square of one would have its variance on top."""
    noise = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    exact = fokker_planck_loss(model, X, t=T, noise=noise)
    n = 3000
    x0, t, z = (v.repeat_interleave(n, 0) for v in (X, T, noise))
    found = fokker_planck_loss(model, x0, t=t, noise=z, probes=1, seed=0).detach().reshape(3, n)
    stderr = found.std(1) / math.sqrt(n)
    assert bool(((found.mean(1) - exact).abs() < 4 * stderr + 1e-9).all())
    x = model.sde.perturb(x0, t, z)
    r = fokker_planck_residual(model, x, t, probes=1, seed=0)
    scale = (model.sde.sigma(t) ** 2 / model.sde.g2(t)) ** 2
    scale = scale if r.ndim == 1 else scale * model.sde.sigma(t) ** 2
    one = (scale * (r**2 if r.ndim == 1 else (r**2).sum(1))).reshape(3, n)
    assert bool((one.mean(1) > exact + 4 * one.std(1) / math.sqrt(n)).any())


@pytest.mark.parametrize("delta", [0.2, -0.1])
def test_the_spread_of_a_mis_scaled_potential_is_known(delta):
    """R = beta delta (d - (1 + delta) |x|^2) / 2 on N(0, I): sigma^4 delta^2 (1 + delta)^2 d / 2 of variance."""

    class Body(nn.Module):
        def forward(self, x, t):
            return -0.5 * (1 + delta) * (x**2).sum(1)

    x0 = torch.randn(20_000, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    model = sf.ScoreModel(Potential(Body()), sf.VP(), "score", shape=(3,))
    plain = sf.ScoreModel.from_score(lambda x, t: -(1 + delta) * x, sf.VP(), shape=(3,))
    for t in (0.2, 0.7):
        s2 = float(sf.VP().sigma(torch.tensor(t, dtype=F64))) ** 2
        known = s2**2 * delta**2 * (1 + delta) ** 2 * 3 / 2
        kurtosis = 3 + 12 / 3  # of a chi-squared of 3 degrees
        bar = 4 * math.sqrt((kurtosis - 1) / 20_000)
        for probes in (None, 1):  # the Laplacian is the same for all signs here
            assert float(fokker_planck_spread(model, x0, [t], probes=probes, seed=1)[0]) == pytest.approx(
                known, rel=bar
            )
        of_score = s2**3 * delta**2 * (1 + delta) ** 2 * 3
        assert float(fokker_planck_spread(plain, x0, [t], seed=1)[0]) == pytest.approx(
            of_score, rel=4 * math.sqrt(2 / 3 / 20_000)
        )


def test_a_constant_of_the_potential_changes_the_penalty_but_not_the_spread():
    x0 = torch.randn(400, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    one, two = potential(), potential(constant=2.0)
    a, b = (fokker_planck_spread(m, x0, [0.3, 0.8], seed=3) for m in (one, two))
    assert torch.allclose(a, b, rtol=1e-9)
    assert (
        float((fokker_planck_loss(two, x0, seed=0).mean() / fokker_planck_loss(one, x0, seed=0).mean()).detach()) > 1.05
    )


TABLE = [
    (0.2, 0.1340, 0.7143, 0.47911, 0.49977, 7.719, 3.913),
    (0.1, 0.3660, 0.8333, 0.30786, 0.32564, 1.621, 0.814),
    (0.05, 0.6050, 0.9091, 0.17564, 0.18731, 0.369, 0.185),
    (-0.1, 2.7319, 1.2499, 0.53485, 0.58798, 1.085, 0.546),
    (-0.2, 7.4633, 1.6651, 1.44153, 1.62619, 3.430, 1.769),
]


@pytest.mark.parametrize(("delta", "flow", "sde", "gap", "bound", "score", "square"), TABLE)
def test_the_residual_stands_for_a_gap(delta, flow, sde, gap, bound, score, square):
    """Data N(0, 1), s = -(1 + delta) x: variances by flow and SDE, their W2 and its bound, integrals of E r^2 and E R^2.

    W2 <= int_0^T e^(int_0^t L) 1/2 g^2 (E_SDE |grad log p_SDE - s|^2)^(1/2) dt with the one-sided Lipschitz constant
    L = -1/2 beta delta of the reversed flow (Groenwall).
    """
    model = sf.ScoreModel.from_score(lambda x, t: -(1 + delta) * x, sf.VP(), shape=(1,))
    y = sf.sample(model, 1, sf.Dopri5(1e-9, 1e-9), x_init=torch.ones(1, 1, dtype=F64), t_min=1e-9)
    assert float(y) ** 2 == pytest.approx(flow, abs=6e-5 * max(flow, 1))
    found, bounds = [], []
    for steps in (400, 800):
        v, times, at = [1.0], torch.linspace(1, 0, steps + 1, dtype=F64), torch.tensor([[0.0], [1.0]], dtype=F64)
        for t, s in zip(times[:-1], times[1:], strict=True):
            mean, std = sf.EulerMaruyama().kernel(Field.of(model, {}, 2), at, t, s)
            v.append(float(mean[1] - mean[0]) ** 2 * v[-1] + float(std) ** 2)
        found.append(v[-1])
        growth = torch.exp(-0.5 * delta * -2 * torch.log(model.sde.alpha(times)))  # int_0^t beta = -2 log alpha
        spread = torch.tensor(v, dtype=F64)
        wrong = spread.sqrt() * (1 + delta - 1 / spread).abs()
        bounds.append(-float(torch.trapezoid(growth * 0.5 * model.sde.g2(times) * wrong, times)))
    by_sde = 2 * found[1] - found[0]
    assert 2 * bounds[1] - bounds[0] == pytest.approx(bound, rel=2e-3)
    assert gap < bound < 1.13 * gap
    assert by_sde == pytest.approx(sde, abs=5e-4 * max(sde, 1))
    assert abs(float(y) - math.sqrt(by_sde)) == pytest.approx(gap, rel=2e-3)
    t = (torch.arange(400, dtype=F64) + 0.5) / 400
    r = fokker_planck_residual(model, torch.ones(400, 1, dtype=F64), t)
    assert float((r**2).mean()) == pytest.approx(score, rel=1e-3)

    class Body(nn.Module):
        def forward(self, x, t):
            return -0.5 * (1 + delta) * (x**2).sum(1)

    phi = sf.ScoreModel(Potential(Body()), sf.VP(), "score", shape=(1,))
    nodes, weights = [-math.sqrt(3), 0.0, math.sqrt(3)], [1 / 6, 2 / 3, 1 / 6]  # exact for polynomials of degree 5
    total = sum(
        w * fokker_planck_residual(phi, torch.full((400, 1), n, dtype=F64), t) ** 2
        for n, w in zip(nodes, weights, strict=True)
    )
    assert float(total.mean()) == pytest.approx(square, rel=1e-3)


@pytest.mark.parametrize("probes", [0, 2])
def test_the_option_of_train_is_the_sum(probes):
    """The objective with the penalty is that without it, and the weight times the penalty of the same batch."""
    g = torch.Generator().manual_seed(0)
    batch = Batch(X.float(), T, torch.ones(3, dtype=F64), torch.randn(3, 2, generator=g), None)
    model = sf.ScoreModel(Smooth(2).float(), sf.VP(), "score", shape=(2,))
    plain, config = Objective(model, TrainConfig(), None)(batch), TrainConfig(fokker_planck=0.5, probes=probes)
    torch.manual_seed(4)
    both = Objective(model, config, None)(batch)
    torch.manual_seed(4)
    seed = int(torch.randint(2**62, ()))
    penalty = fokker_planck_loss(model, batch.x0, t=T, noise=batch.noise, probes=probes or None, seed=seed)
    assert torch.allclose(both, plain + 0.5 * penalty.to(plain) / 2, rtol=1e-5)
    assert float((both - plain).detach().abs().min()) > 1e-6


def test_training_takes_the_option(tmp_path):
    """A run with a weight has a lower penalty than one without, and resumes with it."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    options = {
        "steps": 40,
        "batch_size": 64,
        "lr": 0.03,
        "warmup": 0,
        "progress": False,
        "report": False,
        "trackers": (),
    }
    found = []
    for weight in (0.0, 3.0):
        model = sf.ScoreModel(Smooth(2).float(), sf.VP(), "score", shape=(2,))
        run = sf.train(model, x, out=tmp_path / str(weight), fokker_planck=weight, probes=1, **options)
        found.append(float(fokker_planck_spread(run.model, x, [0.1, 0.3, 0.6]).mean()))
    assert found[1] < 0.8 * found[0]
    model = sf.ScoreModel(Smooth(2).float(), sf.VP(), "score", shape=(2,))
    with pytest.raises(sf.errors.CheckpointError, match="fokker_planck"):
        sf.train(model, x, out=tmp_path / "3.0", fokker_planck=1.0, **(options | {"steps": 61}))


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match="probes=0"):
        fokker_planck_residual(field(), X, T, probes=0)
    with pytest.raises(ValueError, match="has no f and g2"):
        fokker_planck_loss(sf.ScoreModel.from_score(lambda x, t: x, sf.ReflectedVE(), shape=(2,)), X, t=T)
    with pytest.raises(ValueError, match="PhaseModel knows the score of some entries alone"):
        fokker_planck_residual(sf.phase.PhaseModel(lambda u, t: u, sf.CLD(), shape=(1,)), X, T)
    with pytest.raises(ValueError, match="x0 has 1 items"):
        fokker_planck_spread(field(), X[:1], [0.5])
    with pytest.raises(InputError, match="fokker_planck=-1"):
        TrainConfig(fokker_planck=-1.0)
    with pytest.raises(InputError, match="goes with score matching"):
        Objective(field(), TrainConfig(fokker_planck=1.0), lambda model, x0, **_: x0[:, 0])
