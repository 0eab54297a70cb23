"""Laws of samplers as matrices on a joint of three positions of four states: no draws at all."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from jump_oracles import H_MARGINALS, H, entropy, every_state, joint, law_after, nodes, product_of_marginals, tv
from scorefield.discrete.solve import jump_grid
from scorefield.solve.integrate import Field

J = joint()
LAZY = sf.discrete.Constant(T=8.0)


def test_the_joint_is_the_one_of_the_figures():
    factorised = product_of_marginals(J)
    assert abs(entropy(J) - H) < 1e-10
    assert abs(entropy(factorised) - H_MARGINALS) < 1e-10
    assert abs(tv(J, factorised) - 0.44693167) < 1e-8
    assert abs(tv(J, torch.full_like(J, 1 / 64)) - 0.48003340) < 1e-8


@pytest.mark.parametrize(
    ("solver", "grid", "expected"),
    [
        (sf.discrete.Euler(), "uniform", (0.473, 0.436, 0.303, 0.172, 0.0872, 0.0428)),
        (sf.discrete.Tweedie(), "uniform", (0.433, 0.363, 0.248, 0.142, 0.0731, 0.0364)),
        (sf.discrete.Euler(), "geometric", (0.234, 0.134, 0.0686, 0.0346, 0.0173, 0.00864)),
        (sf.discrete.Tweedie(), "geometric", (0.193, 0.107, 0.0549, 0.0274, 0.0136, 0.00677)),
    ],
    ids=["euler-uniform", "tweedie-uniform", "euler-geometric", "tweedie-geometric"],
)
def test_error_of_uniform_diffusion_by_steps(solver, grid, expected):
    model = sf.discrete.Table(J, sf.discrete.Uniform(4, LAZY))
    for steps, value in zip((4, 8, 16, 32, 64, 128), expected, strict=True):
        times = torch.linspace(8, 1e-3, steps + 1, dtype=torch.float64)
        if grid == "geometric":
            times = jump_grid(model.process, steps, 8.0, 1e-3)
        found = tv(law_after(solver, model, times, model.law(8.0)), model.law(1e-3))
        assert abs(found - value) < 0.006 * value, (steps, found)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (sf.discrete.LogLinear(), (0.44693, 0.24970, 0.17384, 0.13316, 0.06867, 0.03486, 0.01756, 0.00881)),
        (sf.discrete.Cosine(), (0.44693, 0.27998, 0.20256, 0.15774, 0.08297, 0.04244, 0.02145, 0.01078)),
    ],
    ids=["linear", "cosine"],
)
def test_error_of_masked_diffusion_by_steps(schedule, expected):
    model = sf.discrete.Table(J, sf.discrete.Absorbing(4, schedule))
    start = torch.zeros(5, 5, 5, dtype=torch.float64)
    start[4, 4, 4] = 1
    for steps, value in zip((1, 2, 3, 4, 8, 16, 32, 64), expected, strict=True):
        grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        law = law_after(sf.discrete.Tweedie(), model, grid, start)
        assert law[4].sum() + law[:, 4].sum() + law[:, :, 4].sum() == 0
        assert abs(tv(law[:4, :4, :4], J) - value) < 6e-6, steps


def test_one_masked_step_is_the_factorised_law():
    model = sf.discrete.Table(J, sf.discrete.Absorbing(4))
    start = torch.zeros(5, 5, 5, dtype=torch.float64)
    start[4, 4, 4] = 1
    law = law_after(sf.discrete.Tweedie(), model, torch.tensor([1.0, 0.0], dtype=torch.float64), start)
    torch.testing.assert_close(law[:4, :4, :4], product_of_marginals(J), rtol=1e-13, atol=1e-15)


def test_first_hitting_reveals_in_every_order_the_conditionals():
    """Revealing one position at a time by p(x_0 | x), in any random order, gives the joint itself."""
    model = sf.discrete.Table(J, sf.discrete.Absorbing(4))
    law = torch.zeros(5, 5, 5, dtype=torch.float64)
    law[4, 4, 4] = 1
    x = every_state(5, 3)
    for _ in range(3):
        after = torch.zeros_like(law)
        for state, mass in zip(x, law.flatten(), strict=True):
            hidden = (state == 4).nonzero().flatten().tolist()
            if mass == 0:
                continue
            posterior = model.posterior(state[None], 0.5)[0]
            for d in hidden:
                for y in range(4):
                    new = state.clone()
                    new[d] = y
                    after[tuple(new)] += mass / len(hidden) * posterior[d, y]
        law = after
    assert tv(law[:4, :4, :4], J) < 1e-15


def test_the_reverse_rates_reverse_the_forward_process():
    """The master equation p' = p Q of the reverse rates, from t = 8 to 1e-3, by collocation of order ten.

    From p_8 it ends in p_t but for rounding; from the uniform law it forgets 8.3e-5 of a wrong start down to 3.5e-8.
    """
    process = sf.discrete.Uniform(4, LAZY)
    model = sf.discrete.Table(J, process)
    uniform = torch.full_like(J, 1 / 64)
    assert tv(uniform, model.law(8.0)) == pytest.approx(8.3e-5, rel=0.01)
    p = torch.stack([model.law(8.0).flatten(), uniform.flatten()])
    c, _ = nodes(5, 0.0, 1.0)
    powers = torch.arange(1.0, 6.0, dtype=torch.float64)
    a = torch.linalg.solve((c[:, None] ** (powers - 1)).T, (c[:, None] ** powers / powers).T).T  # Butcher's matrix
    weight = torch.linalg.solve((c[:, None] ** (powers - 1)).T, 1 / powers)
    eye = torch.eye(5 * 64, dtype=torch.float64)
    grid = 8.0 * (1e-3 / 8.0) ** (torch.arange(41, dtype=torch.float64) / 40)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        q = torch.stack([generator(model, float(t - u * (t - s))) for u in c])
        coupled = torch.einsum("ij,iab->jaib", a, q).reshape(320, 320) * (t - s)
        k = torch.linalg.solve(eye - coupled.T, torch.einsum("na,iab->nib", p, q).reshape(2, 320).T)
        p = p + (t - s) * torch.einsum("i,nib->nb", weight, k.T.reshape(2, 5, 64))
    exact = model.law(1e-3)
    assert tv(p[0].reshape(4, 4, 4), exact) < 2e-11
    assert tv(p[1].reshape(4, 4, 4), exact) == pytest.approx(3.5e-8, rel=0.02)


def generator(model, t, rates=None):
    """The generator (64, 64) of one position jumping at a time, by the solver's own rates."""
    from scorefield.discrete.solve import reverse_rates

    x = every_state(4, 3)
    at = torch.tensor(t, dtype=torch.float64)
    each = reverse_rates(Field(model), x, at) if rates is None else rates(Field(model), x, at)
    q = torch.zeros(64, 64, dtype=torch.float64)
    weight = torch.tensor([16, 4, 1])
    for d in range(3):
        for y in range(4):
            to = (x * weight).sum(1) + (y - x[:, d]) * weight[d]
            q[torch.arange(64), to] += each[:, d, y]
    return q - torch.diag(q.sum(1))


RANDOM = torch.tensor([[0, 0.5, 0.2, 0.3], [0.1, 0, 0.9, 0.4], [1.1, 0.2, 0, 0.6], [0.3, 0.7, 0.05, 0]]).double()
RANDOM = RANDOM - torch.diag(RANDOM.sum(1))
PROCESSES = [sf.discrete.Uniform(4), sf.discrete.RateMatrix(RANDOM), sf.discrete.Ordinal(4, spread=1.0)]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", ["both", "barker", "root"])
def test_correctors_leave_the_law_as_it_is(process, kind):
    model = sf.discrete.Table(J, process)
    q = generator(model, 0.3, sf.discrete.RateCorrector(kind).rates)
    assert (model.law(0.3).flatten() @ q).abs().max() < 1e-15


@pytest.mark.parametrize("process", [*PROCESSES, sf.discrete.Absorbing(4)], ids=lambda p: type(p).__name__)
def test_gibbs_leaves_the_law_as_it_is(process):
    model = sf.discrete.Table(J, process)
    p, x = model.law(0.3).flatten(), every_state(process.S, 3)
    weight = process.S ** torch.tensor([2, 1, 0])
    after = torch.zeros_like(p)
    for d in range(3):
        law = model.marginal_at(x, 0.3, torch.full((len(x),), d))
        for y in range(process.S):
            after.index_add_(0, (x * weight).sum(1) + (y - x[:, d]) * weight[d], p * law[:, y] / 3)
    assert (after - p).abs().max() < 1e-15
