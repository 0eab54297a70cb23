"""Song et al. 2021, eq. 13: the flow of a rotated Gaussian, and orders of convergence by affine moment recursion."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from oracles import PAPER, SDES, flow_map, gaussian, mixture, name
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field

START = {"VE": 1e-5, "VP": 1e-3, "SubVP": 1e-3}
RUNGE_KUTTA = [sf.Euler(), sf.Heun(), sf.solve.Bosh3(), sf.solve.RK4(), sf.Dopri5(), sf.solve.Tsit5()]


@pytest.mark.parametrize("solver", [sf.Dopri5, sf.solve.Tsit5], ids=lambda s: s.__name__)
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_adaptive_flow_reaches_the_closed_form(sde, solver):
    gm, end = gaussian(sde, d=4), START[name(sde)]
    x = sde.prior((6, 4)).sample(seed=0, dtype=torch.float64)
    exact = flow_map(gm, x, 1.0, end)
    tight = sf.sample(gm, 6, solver(1e-9, 1e-9), x_init=x, t_min=end)
    assert (tight - exact).abs().max() < 1e-8 * max(1.0, float(exact.abs().max()))
    loose = sf.sample(gm, 6, solver(1e-5, 1e-5), x_init=x, t_min=end, full=True)
    assert (loose.x - exact).abs().max() < 1e-4
    assert int(loose.nfe.max()) <= 100
    assert (loose.status == 0).all()


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_encoding_is_the_closed_form_and_decoding_inverts_it(sde):
    gm = gaussian(sde)
    x = gm.sample(5, seed=0)
    z = sf.encode(gm, x, sf.Dopri5(1e-9, 1e-9))
    torch.testing.assert_close(z, flow_map(gm, x, 1e-5, 1.0), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sf.decode(gm, z, sf.Dopri5(1e-9, 1e-9)), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_flow_of_a_mixture_keeps_its_density(sde):
    """log p_u(x_u) = log p_t(x_t) - integral of the divergence: the two ends agree with the exact trace."""
    gm = mixture(sde)
    x = gm.sample(4, 0.2, seed=1)
    z = sf.encode(gm, x, sf.Dopri5(1e-8, 1e-8), t_min=0.2)
    lp = sf.log_prob(gm, x, "exact", prior="exact", solver=sf.Dopri5(1e-8, 1e-8), t_min=0.2)
    torch.testing.assert_close(lp.latent, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lp.nats, gm.log_prob(x, 0.2), rtol=0, atol=1e-6)


def affine(
    solver: sf.Solver, gm: sf.GaussianMixture, t: Tensor, s: Tensor, state: object
) -> tuple[float, float, float]:
    """(a, b, c) of a step x -> a x + b + c z in one dimension, by a step of the solver itself from three (x, z)."""
    x, z = torch.tensor([[[0.0], [1.0], [0.0]], [[0.0], [0.0], [1.0]]], dtype=torch.float64)
    b, with_x, with_z = solver.step(Field(gm, {}, 3), x, t, s, state, FromFunction(3, lambda: z))[0].flatten().tolist()
    return with_x - b, b, with_z - b


def variance_error(solver: sf.Solver, sde: sf.GaussianSDE, steps: int) -> float:
    """N(1, 0.25) from the exact p_1 to t = 1e-3 on a uniform grid; relative error of the variance."""
    gm = sf.GaussianMixture(torch.ones(1, 1, dtype=torch.float64), 0.25, None, sde)
    grid = torch.linspace(1.0, 1e-3, steps + 1, dtype=torch.float64)

    def exact(t: Tensor) -> float:
        return float(sde.alpha(t) ** 2 * 0.25 + sde.sigma(t) ** 2)

    v = exact(grid[0])
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        a, _, c = affine(solver, gm, t, s, None)
        v = a * a * v + c * c
    return v / exact(grid[-1]) - 1


@pytest.mark.parametrize(
    ("solver", "coarse", "fine"),
    [
        (sf.EulerMaruyama(), 3.3e-2, 9.0e-4),
        (sf.Euler(), 1.7e-2, 5.7e-4),
        (sf.Heun(), 2.1e-3, 2.2e-6),
        (sf.DDIM(), 0.107, 3.5e-3),
    ],
    ids=lambda v: name(v) if isinstance(v, sf.Solver) else "",
)
def test_variance_errors_are_those_of_the_reference(solver, coarse, fine):
    assert abs(variance_error(solver, sf.VP(), 50)) == pytest.approx(coarse, rel=0.05)
    assert abs(variance_error(solver, sf.VP(), 1600)) == pytest.approx(fine, rel=0.05)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize(
    "solver", [sf.EulerMaruyama(), sf.ReverseDiffusion(), sf.Ancestral(), sf.solve.ProbabilityFlow()], ids=name
)
def test_first_order_solvers_converge_at_their_order(solver, sde):
    errors = [abs(variance_error(solver, sde, n)) for n in (200, 400)]
    assert math.log2(errors[0] / errors[1]) > 0.9


def flow_error(solver: sf.Solver, sde: sf.GaussianSDE, steps: int) -> float:
    gm = gaussian(sde, low=0.5)
    x = sde.prior((4, 3)).sample(seed=0, dtype=torch.float64)
    # Away from t = 0, where a uniform grid in t is far from asymptotic for the higher orders.
    end = sf.sample(gm, 4, solver, steps=steps, x_init=x, t_min=0.1, denoise=False)
    return float((end - flow_map(gm, x, 1.0, 0.1)).abs().max())


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("solver", RUNGE_KUTTA, ids=name)
def test_observed_order_is_nominal(solver, sde):
    steps = 80 if solver.order < 4 else 48
    errors = [flow_error(solver, sde, n) for n in (steps, 2 * steps)]
    slack = 0.1 if solver.order < 3 else 0.2
    assert math.log2(errors[0] / errors[1]) > solver.order - slack


def test_adaptive_steps_belong_to_each_sample():
    """A sample that starts far out needs more steps, and does not make its batch-mates take them."""
    gm = sf.GaussianMixture(torch.tensor([[-3.0], [3.0]], dtype=torch.float64), 1e-4, None, sf.VP())
    x = torch.tensor([[1e-3], [2.0]], dtype=torch.float64)
    both = sf.sample(gm, 2, sf.Dopri5(), x_init=x, full=True)
    alone = [sf.sample(gm, 1, sf.Dopri5(), x_init=row.unsqueeze(0), full=True) for row in x]
    assert both.nfe.tolist() == [int(r.nfe) for r in alone]
    assert both.nfe[0] != both.nfe[1]


def test_a_sample_that_cannot_finish_gets_a_status():
    gm = gaussian(sf.VP())
    with pytest.warns(RuntimeWarning, match="stopped after max_steps"):
        r = sf.sample(gm, 2, sf.Dopri5(1e-9, 1e-9, max_steps=5), seed=0, full=True)
    assert r.status.tolist() == [1, 1]
    broken = sf.ScoreModel.from_score(lambda x, t: torch.full_like(x, math.nan), sf.VP(), (2,))
    with pytest.warns(RuntimeWarning, match="finite"):
        assert sf.sample(broken, 1, sf.Dopri5(), seed=0, full=True).status.tolist() != [0]


def test_the_largest_norm_holds_every_entry_to_the_tolerance():
    """One entry of 400 moves; averaged over all, its error may be twenty times the tolerance."""
    d, v = 400, 0.01
    variance = torch.ones(d, dtype=torch.float64)
    variance[0] = v
    sde = sf.VP()

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t).reshape(-1, 1), sde.sigma(t).reshape(-1, 1)
        return -x / (alpha**2 * variance + sigma**2)

    x = torch.ones(1, d, dtype=torch.float64)
    model = sf.ScoreModel.from_score(score, sde)
    first, last = (
        float(sde.alpha(1e-5) ** 2 * v + sde.sigma(1e-5) ** 2),
        float(sde.alpha(1.0) ** 2 * v + sde.sigma(1.0) ** 2),
    )
    exact = math.sqrt(last / first)
    errors = [
        abs(float(sf.encode(model, x, sf.Dopri5(1e-4, 1e-4, norm=norm))[0, 0]) - exact) / exact
        for norm in ("rms", "max")
    ]
    assert errors[1] < 1e-3  # some steps of 1e-4
    assert errors[0] > 5 * errors[1]
