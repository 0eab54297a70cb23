"""The layer that turns predicted histograms into denoised values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.likelihood import log_prob
from scorefield.likelihood.forward import pushforward
from scorefield.nn import HistogramUNet, cell_edges
from scorefield.nn.histogram import posterior_shift
from scorefield.solve.ode import Dopri5

CELLS = (0, 1, 10, 40, 80, 120, 160, 200, 240, 252, 253, 254, 255)
EDGES = torch.tensor(cell_edges(CELLS, 256, -1.0, 1.0), dtype=torch.float64)


def draws(noise: float, count: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """y (count, 1), s and logits of random histograms."""
    generator = torch.Generator().manual_seed(1)
    clean = 2 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 1
    y = clean + noise * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    logits = 2 * torch.randn(count, 1, len(EDGES) - 1, generator=generator, dtype=torch.float64)
    return y, torch.full((count, 1), noise, dtype=torch.float64), logits


def quadrature(y: float, noise: float, logits: Tensor) -> float:
    """The first moment over the mass of z = (x_0 - y) / s, cell by cell on a fine grid."""
    heights = torch.softmax(logits, -1) / EDGES.diff()
    moment = mass = 0.0
    for height, low, high in zip(heights, EDGES[:-1], EDGES[1:], strict=True):
        low, high = max(float(low), y - 12 * noise), min(float(high), y + 12 * noise)
        if low < high:
            x = torch.linspace(low, high, 2001, dtype=torch.float64)
            z = (x - y) / noise
            weight = torch.exp(-0.5 * z * z) * height
            mass += float(torch.trapezoid(weight, x))
            moment += float(torch.trapezoid(weight * z, x))
    return moment / mass


@pytest.mark.parametrize("noise", [1e-3, 0.01, 0.03, 0.1, 0.5, 2.0, 80.0])
def test_shift_is_the_posterior_mean(noise: float) -> None:
    y, s, logits = draws(noise)
    got = posterior_shift(y, s, logits, EDGES)[:, 0]
    # a start further than five standard deviations outside the range is cut there by design
    inside = (y[:, 0] > -1 - 5 * noise) & (y[:, 0] < 1 + 5 * noise)
    expected = torch.tensor([quadrature(float(v), noise, w[0]) for v, w in zip(y[:, 0], logits, strict=True)])
    assert inside.sum() > 95
    torch.testing.assert_close(got[inside], expected.double()[inside], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", [1e-3, 0.02, 0.5, 20.0])
def test_single_precision_keeps_its_digits(noise: float) -> None:
    y, s, logits = draws(noise)
    exact = posterior_shift(y, s, logits, EDGES)
    single = posterior_shift(y.float(), s.float(), logits.float(), EDGES.float()).double()
    # the input itself is rounded to 6e-8 of 1, which is 6e-8 / s standard deviations
    assert float((single - exact).abs().max()) < 2e-5 + 2e-7 / noise * 4


def test_outside_the_range_the_denoised_value_stays_inside() -> None:
    y = torch.tensor([[-9.0], [-1.5], [1.5], [9.0]])
    s = torch.full((4, 1), 0.01)
    denoised = y + s * posterior_shift(y, s, torch.zeros(4, 1, len(CELLS)), EDGES.float())
    assert bool((denoised.abs() <= 1).all())


def test_a_value_held_to_be_impossible_has_a_posterior_mean() -> None:
    logits = torch.zeros(1, 1, len(CELLS))
    logits[..., 0] = 200.0  # paper for certain, and ink is seen
    shift = posterior_shift(torch.tensor([[0.9]]), torch.tensor([[0.001]]), logits, EDGES.float())
    assert bool(torch.isfinite(shift).all())


def test_flow_has_the_density_of_the_histogram() -> None:
    """A model whose histograms depend on nothing is a product of histograms, whose density is known."""
    edges = torch.tensor([-1.0, -0.5, 0.25, 1.0], dtype=torch.float64)
    chances = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    sde = sf.VP()

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.reshape(-1, 1) for v in (sde.alpha(t), sde.sigma(t)))
        logits = chances.log().expand(*x.shape, 3)
        return posterior_shift(x / alpha, sigma / alpha, logits, edges) / sigma

    x = torch.tensor([[-0.8, 0.1], [0.0, 0.7], [0.9, -0.6]], dtype=torch.float64)
    found = log_prob(sf.ScoreModel.from_score(score, sde), x, trace="exact", solver=Dopri5(1e-7, 1e-7))
    cell = torch.bucketize(x, edges) - 1
    expected = torch.log(chances[cell] / edges.diff()[cell]).sum(1)
    torch.testing.assert_close(found.nats, expected, atol=2e-3, rtol=0)


def test_network_tangents_agree_with_torch() -> None:
    torch.manual_seed(0)
    net = HistogramUNet(cell_edges(CELLS, 256, -1.0, 1.0), nf=8, sigma_data=0.6)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    model = sf.ScoreModel(net.double().eval(), sf.VP(), "edm", shape=(1, 8, 8), sigma_data=0.6)
    x, v = torch.randn(2, 2, 1, 8, 8, dtype=torch.float64)
    for t in (1e-4, 0.05, 0.9):
        _, tangent = pushforward(lambda z, t=t: model.velocity(z, t), x, v.unsqueeze(0))
        _, expected = torch.func.jvp(lambda z, t=t: model.velocity(z, t), (x,), (v,))
        torch.testing.assert_close(tangent[0], expected, rtol=1e-9, atol=1e-9)


def test_little_noise_leaves_a_value_inside_a_cell_alone() -> None:
    """Where noise is far smaller than a cell, the density is flat and the score vanishes, trained or not."""
    net = HistogramUNet(cell_edges((0, 64, 128, 192), 256, -1.0, 1.0), nf=8, sigma_data=0.6).eval()
    model = sf.ScoreModel(net, sf.VP(), "edm", shape=(1, 4, 4), sigma_data=0.6)
    x = torch.full((1, 1, 4, 4), 0.26)
    t = 1e-4
    denoised = model.denoise(x * float(model.sde.alpha(t)), t)
    torch.testing.assert_close(denoised, x, atol=1e-5, rtol=0)
    assert math.isclose(float(model.sde.sigma(t)), 0.0039, rel_tol=0.2)


def test_labels_reach_the_network() -> None:
    torch.manual_seed(0)
    net = HistogramUNet(cell_edges(CELLS, 256, -1.0, 1.0), nf=8, num_classes=3).eval()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, c = torch.randn(1, 1, 8, 8), torch.zeros(1)
    assert not torch.equal(net(x, c, torch.tensor([0])), net(x, c, torch.tensor([2])))
    assert torch.equal(net(x, c, None), net(x, c, torch.tensor([-1])))
