"""Probabilities of integers, where those of a Gaussian's cells are known."""

import math

import pytest
import torch

import scorefield as sf
from scorefield.likelihood import VariationalDequantizer, dequantization_loss, discrete_log_prob

LEVELS, T_MIN = 8, 1e-5
STD = 0.35
# The Jacobian of an isotropic Gaussian is a multiple of the identity, on which one Rademacher probe is exact.
FLOW = {"prior": "exact", "solver": sf.solve.RK4(), "steps": 8, "t_min": 1e-3}


def model():
    """A narrow Gaussian on eight levels of [-1, 1]: a cell holds much of its curvature."""
    return sf.GaussianMixture(torch.zeros(1, 2).double(), STD**2, None, sf.VP())


def cell_log_probability(x, gm):
    variance = gm.sde.alpha(1e-3) ** 2 * STD**2 + gm.sde.sigma(1e-3) ** 2
    edges = -1 + 2 * torch.stack([x, x + 1]).double() / LEVELS
    upper, lower = torch.special.ndtr(edges.flip(0) / torch.sqrt(variance))
    return torch.log(upper - lower).sum(1)


def perturbed(seed=0):
    torch.manual_seed(seed)
    flow = VariationalDequantizer((2, 4, 4), LEVELS, width=8)
    for p in flow.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return flow.double()


@pytest.mark.parametrize("levels", [17, 256])
def test_uniform_dequantisation_fills_the_range(levels):
    x = torch.tensor([[0, levels - 1]]).expand(2000, 2)
    y = sf.likelihood.dequantize(x, levels, -1.0, 1.0, seed=0)
    width = 2 / levels
    assert float(y[:, 0].min()) == pytest.approx(-1, abs=width / 100)
    assert float(y[:, 1].max()) == pytest.approx(1, abs=width / 100)
    assert float(y[:, 0].mean()) == pytest.approx(-1 + width / 2, abs=width / 20)


@pytest.mark.parametrize("bad", [-1, 256])
def test_values_that_are_no_levels_are_refused(bad):
    with pytest.raises(ValueError, match=r"0 .. 255"):
        sf.likelihood.dequantize(torch.tensor([[bad]]))


def test_a_fresh_dequantizer_is_uniform():
    x = torch.randint(LEVELS, (3, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    floats, log_q = VariationalDequantizer((2, 4, 4), LEVELS)(x, seed=0)
    assert torch.allclose(log_q, torch.zeros(3), atol=1e-4)
    assert torch.equal(torch.floor((floats + 1) / 2 * LEVELS).long(), x)


@pytest.mark.parametrize("shape", [(3,), (2, 6), (2, 4, 4), (1, 2, 2, 4)])
def test_a_dequantizer_takes_any_shape_and_stays_in_the_cell(shape):
    flow = VariationalDequantizer(shape, LEVELS, low=0.0)
    for p in flow.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    x = torch.randint(LEVELS, (2, *shape), generator=torch.Generator().manual_seed(0))
    floats, log_q = flow(x, seed=0)
    assert bool(((floats * LEVELS >= x) & (floats * LEVELS <= x + 1)).all())
    assert log_q.shape == (2,)


def test_log_q_is_the_log_determinant_of_the_flow():
    """q(u) = |det d base / d u|: the Jacobian of u with respect to the uniform base noise, by finite differences."""
    flow = VariationalDequantizer((4,), LEVELS, width=8).double()
    for p in flow.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).double()
    x = torch.tensor([[1, 5, 0, 7]])
    z = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def cell(noise, monkeypatch):
        class Given:
            def normal(self, *_):
                return noise

        monkeypatch.setattr("scorefield.likelihood.variational.source", lambda *_: Given())
        return flow(x)

    with pytest.MonkeyPatch.context() as patch:
        log_q = cell(z, patch)[1]
        jacobian = torch.autograd.functional.jacobian(lambda n: cell(n, patch)[0].flatten(), z).reshape(4, 4)
    # d u / d z: the base density of z is a standard normal, and floats are u scaled by the width of a cell.
    normal = (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum()
    expected = normal - torch.linalg.slogdet(jacobian * flow.cells)[1]
    assert float(log_q) == pytest.approx(float(expected), abs=1e-9)


def test_the_importance_weighted_bound_reaches_the_probability_of_the_cell():
    gm = model()
    x = torch.tensor([[3, 4], [1, 6], [2, 2]])
    exact = cell_log_probability(x, gm)
    bound = discrete_log_prob(gm, x, samples=40, levels=LEVELS, seed=0, **FLOW)
    assert bool((bound.nats < exact + 4 * bound.stderr).all())
    assert float(bound.nats.mean()) < float(exact.mean())
    tighter = bound.importance_weighted()
    assert bool((tighter.nats > bound.nats).all())
    assert bool(((tighter.nats - exact).abs() < 4 * tighter.stderr + 1e-3).all())
    assert torch.allclose(tighter.bits_per_dim(), -tighter.nats / (2 * math.log(2)))
    assert bound.nfe.tolist() == [40 * 4 * 8] * 3
    with pytest.raises(ValueError, match="without arguments"):
        bound.bits_per_dim(256)


def test_one_run_has_no_error_bar_and_five_have():
    x = torch.tensor([[3, 4], [1, 6]])
    options = FLOW | {"steps": 4}
    assert bool(discrete_log_prob(model(), x, samples=1, levels=LEVELS, **options).bits_stderr().isnan().all())
    five = discrete_log_prob(model(), x, levels=LEVELS, **options)
    assert five.draws.shape == (2, 5)
    assert bool((five.bits_stderr() > 0).all())


def test_training_a_dequantizer_tightens_the_bound():
    gm = model()
    x = torch.tensor([[0, 7], [1, 6], [2, 5], [1, 1]]).repeat(32, 1)
    torch.manual_seed(0)
    flow = VariationalDequantizer((2,), LEVELS, width=16)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)

    def gap():
        with torch.no_grad():
            floats, log_q = flow(x, seed=123)
        exact = cell_log_probability(x, gm)
        return float((exact - gm.log_prob(floats.double()) + 2 * math.log(flow.cells) + log_q).mean())

    before = gap()
    for step in range(60):
        optimiser.zero_grad()
        dequantization_loss(gm, flow, x, seed=step).mean().backward()
        optimiser.step()
    assert gap() < 0.8 * before


def test_the_loss_reaches_model_and_dequantizer_alike():
    from scorefield.nn import MLP

    net = MLP(2, width=8, depth=1)
    net.exit.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    flow = VariationalDequantizer((2,), LEVELS, width=8)
    dequantization_loss(sf.ScoreModel(net, sf.VP(), "noise"), flow, torch.tensor([[3, 4]]), seed=0).sum().backward()
    assert float(net.exit.weight.grad.abs().sum()) > 0
    assert sum(float(p.grad.abs().sum()) for p in flow.parameters()) > 0
