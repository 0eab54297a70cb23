"""A new SDE is two methods, written as they stand on paper: constants, plain arithmetic, torch functions of t."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import PAPER, SDES, Cubic, gaussian, moments, name
from scorefield.solve.integrate import Field

TIMES = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)


class PlainVE(sf.GaussianSDE):
    """The paper's VE with a constant for alpha."""

    def alpha(self, t):
        return 1

    def sigma(self, t):
        return 0.01 * 5000**t


class PlainVP(sf.GaussianSDE):
    """The paper's VP in functions of torch that take tensors alone."""

    def alpha(self, t):
        return torch.exp(-0.5 * (0.1 * t + 9.95 * t**2))

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-(0.1 * t + 9.95 * t**2)))


TWINS = [(PlainVE(), sf.VE()), (PlainVP(), sf.VP())]


@pytest.mark.parametrize(("user", "paper"), TWINS, ids=lambda v: name(v))
def test_two_formulas_make_the_papers_sde(user, paper):
    for method in ("alpha", "sigma", "f", "g2", "log_snr"):
        torch.testing.assert_close(getattr(user, method)(TIMES), getattr(paper, method)(TIMES), rtol=1e-9, atol=1e-9)
    assert user.prior((2, 3)).std == pytest.approx(paper.prior((2, 3)).std)
    x = paper.prior((3, 3)).sample(seed=0, dtype=torch.float64)
    for solver, steps in ((sf.Dopri5(), None), (sf.PC(), 5), (sf.DPMSolver(), 6), (sf.EulerMaruyama(), 5)):
        ends = [
            sf.sample(gaussian(sde), 3, solver, steps=steps, x_init=x, seed=0, t_min=1e-3, denoise=False)
            for sde in (user, paper)
        ]
        torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", [*SDES, PlainVE(), PlainVP()], ids=name)
@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.full((2, 3), 0.25)], ids=["float", "float32", "shaped"])
def test_formulas_give_float64_of_the_shape_of_time(sde, t):
    for method in ("alpha", "sigma", "f", "g2", "log_snr"):
        value = getattr(sde, method)(t)
        assert value.dtype == torch.float64
        assert value.shape == torch.as_tensor(t).shape


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_no_time_no_transition(sde, t):
    x = torch.ones(2, 3, dtype=torch.float64)
    mean, std = sde.transition(x, t, t)
    assert torch.equal(mean, x)
    assert float(std) == 0.0


@pytest.mark.parametrize(
    "solver", [sf.EulerMaruyama(), sf.ReverseDiffusion(), sf.Ancestral(), sf.DDIM(eta=1.0)], ids=name
)
def test_an_sde_that_ends_without_signal_can_be_reversed(solver):
    """alpha(1) = 0, where f and g^2 are infinite: the covariance within 4 standard errors and a first-order bias."""
    gm, n = gaussian(Cubic()), 4000
    seed = torch.Generator().manual_seed(0)
    x = sf.sample(gm, n, solver, steps=200, seed=seed, denoise=False, grid="uniform")
    mean, cov = moments(gm, gm.sde.t_min)
    assert torch.linalg.norm(torch.cov(x.T) - cov) / torch.linalg.norm(cov) < 4 * (2 / n) ** 0.5 + 0.05
    assert ((x.mean(0) - mean) / torch.sqrt(torch.diagonal(cov))).abs().max() < 4 / n**0.5 + 0.02


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_the_inverse_of_log_snr_reaches_the_ends(sde):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(sde.inverse_log_snr(sde.log_snr(ends)), ends, rtol=1e-9, atol=1e-12)


def test_a_noise_rate_that_starts_at_zero_has_a_start():
    assert float(sf.VP(beta_min=0.0).inverse_log_snr(torch.tensor(torch.inf))) == 0.0


@pytest.mark.parametrize("solver", [sf.EulerMaruyama(), sf.DDIM(eta=0.5), sf.PC()], ids=name)
def test_codes_need_a_solver_without_noise(solver):
    gm = gaussian(sf.VP())
    with pytest.raises(ValueError, match="give a solver without noise"):
        sf.encode(gm, torch.zeros(2, 3), solver)


@pytest.mark.parametrize("wrong", [sf.Heun, "heun"], ids=str)
def test_a_solver_is_an_object(wrong):
    with pytest.raises(ValueError, match=r"give an? (solver )?object"):
        sf.sample(gaussian(sf.VP()), 2, wrong)


def test_field_counts_and_follows_rows():
    model = sf.ScoreModel(lambda x, t, **cond: x, sf.VP())
    field = Field(model, {"weight": torch.arange(4), "shared": torch.ones(3), "name": "x"}, 4)
    part = field.take(torch.tensor([3, 0]))
    assert part.cond["weight"].tolist() == [3, 0]
    assert part.cond["shared"].shape == (3,)
    assert part.cond["name"] == "x"
    field.score(torch.zeros(1, 3), 0.5)
    assert (field.calls, part.calls) == (1, 0)
