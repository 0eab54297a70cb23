"""log_prob against closed-form densities and the variances of its probes."""

import math
import re
from dataclasses import replace

import pytest
import torch

import scorefield as sf
from scorefield.errors import ScorefieldWarning
from scorefield.likelihood import LogProb, elbo, moments

TIGHT = sf.Dopri5(rtol=1e-9, atol=1e-9)
LOOSE = sf.Dopri5(rtol=1e-3, atol=1e-3)
T_MIN = 1e-5


def log_of(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(torch.log(values)) @ vectors.mT


def integrated_jacobian(gm):
    """L = (log C_T - log C_eps) / 2 of a Gaussian's probability flow, C_t its covariance."""
    basis, spectrum, sde = gm._basis[0], gm._spectrum[0], gm.sde
    cov = basis @ torch.diag(spectrum) @ basis.mT
    eye = torch.eye(len(cov), dtype=torch.float64)
    late, early = (sde.alpha(t) ** 2 * cov + sde.sigma(t) ** 2 * eye for t in (sde.T, T_MIN))
    return 0.5 * (log_of(late) - log_of(early))


@pytest.mark.parametrize("model", ["gaussian", "mixture"])
def test_log_density_to_a_millionth_of_a_nat(model, request):
    gm = request.getfixturevalue(model)
    x = gm.sample(3, seed=1)
    lp = sf.log_prob(gm, x, trace="exact", prior="exact", solver=TIGHT)
    assert float((lp.nats - gm.log_prob(x, T_MIN)).abs().max()) < 1e-6
    assert bool((lp.stderr == 0).all())


def test_the_integral_of_the_divergence_is_the_trace_of_l(gaussian):
    x = gaussian.sample(2, seed=1)
    lp = sf.log_prob(gaussian, x, trace="exact", prior="exact", solver=TIGHT)
    integral = lp.nats - gaussian.log_prob(lp.latent, gaussian.sde.T)
    assert torch.allclose(integral, integrated_jacobian(gaussian).trace().expand(2), atol=1e-7)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_each_probe_gives_its_quadratic_form_of_l(gaussian, distribution):
    """The estimate is e^T L e, since L_t commute along a Gaussian's flow; its variance is then that of the formula."""
    x = gaussian.sample(1, seed=1)
    bank = torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = iter(bank)
    lp = sf.log_prob(
        gaussian, x, probes=4, noise=lambda: next(draws), distribution=distribution, prior="exact", solver=TIGHT
    )
    e = (bank.sign() if distribution == "rademacher" else bank).squeeze(1)
    expected = torch.einsum("ki,ij,kj->k", e, integrated_jacobian(gaussian), e)
    integral = lp.draws[0] - gaussian.log_prob(lp.latent, gaussian.sde.T)
    assert torch.allclose(integral, expected, atol=1e-6)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_variance_of_the_probes_within_three_percent(gaussian, distribution):
    """2 sum_{i != j} L_ij^2 for Rademacher probes, 2 |L|^2 for Gaussian ones."""
    count = 40_000  # relative standard error of a variance: about sqrt(2 / n), 0.7 %, more for heavy tails
    lp = sf.log_prob(
        gaussian,
        gaussian.sample(1, seed=1),
        probes=count,
        seed=2,
        distribution=distribution,
        solver=sf.solve.RK4(),
        steps=25,
    )
    square = integrated_jacobian(gaussian) ** 2
    expected = 2 * (square.sum() - (square.trace() if distribution == "rademacher" else 0))
    assert float(lp.draws.var()) == pytest.approx(float(expected), rel=0.03)
    assert float(lp.stderr) == pytest.approx(math.sqrt(float(expected) / count), rel=0.03)


def test_a_diagonal_covariance_leaves_rademacher_probes_no_variance():
    gm = sf.GaussianMixture(torch.zeros(1, 3).double(), torch.tensor([[0.1, 1.0, 4.0]]).double(), None, sf.VP())
    lp = sf.log_prob(gm, gm.sample(2, seed=0), probes=3, seed=0, solver=LOOSE)
    assert float(lp.stderr.max()) < 1e-12


def test_hutch_plus_plus_with_a_full_sketch_is_the_exact_density(mixture):
    x = mixture.sample(2, seed=1)
    lp = sf.log_prob(mixture, x, trace="hutch++", probes=4, seed=0, prior="exact", solver=TIGHT)
    assert float((lp.nats - mixture.log_prob(x, T_MIN)).abs().max()) < 1e-6


def test_rounding_does_not_choose_the_basis_of_hutch_plus_plus(mixture):
    """Three columns of signs in four dimensions are dependent for a third of the samples; both modes round differently."""
    x, options = mixture.sample(12, seed=1), {"probes": 3, "seed": 0, "solver": sf.solve.RK4(), "steps": 3}
    one, two = (sf.log_prob(mixture, x, "hutch++", mode=mode, **options).nats for mode in ("forward", "reverse"))
    assert torch.allclose(one, two, rtol=0, atol=1e-8)


@pytest.mark.parametrize("mode", ["forward", "lean", "reverse"])
def test_both_ways_of_differentiating_agree(mixture, mode):
    x = mixture.sample(2, seed=1)
    lp = sf.log_prob(mixture, x, probes=2, seed=0, mode=mode, solver=sf.solve.RK4(), steps=10)
    auto = sf.log_prob(mixture, x, probes=2, seed=0, solver=sf.solve.RK4(), steps=10)
    assert torch.allclose(lp.draws, auto.draws, atol=1e-9)


@pytest.mark.parametrize("solver", [LOOSE, sf.Dopri5(rtol=1e-3, atol=1e-3)])
def test_a_result_depends_on_neither_batch_mates_nor_chunks(mixture, solver):
    x = mixture.sample(3, seed=1)
    whole = sf.log_prob(mixture, x, probes=2, seed=5, solver=solver)
    parts = sf.log_prob(mixture, x, probes=2, seed=5, solver=solver, batch_size=2)
    assert torch.allclose(whole.nats, parts.nats, atol=1e-10)
    assert torch.equal(whole.nfe, parts.nfe)
    alone = sf.log_prob(mixture, x[1:2], probes=2, seed=[9], solver=solver)
    among = sf.log_prob(mixture, x, probes=2, seed=[3, 9, 4], solver=solver)
    assert torch.allclose(alone.nats[0], among.nats[1], atol=1e-10)


def test_fixed_steps_converge_and_are_counted(mixture):
    x = mixture.sample(2, seed=1)
    exact = mixture.log_prob(x, 1e-3)
    errors = []
    for steps in (15, 30):
        lp = sf.log_prob(mixture, x, trace="exact", prior="exact", solver=sf.solve.RK4(), steps=steps, t_min=1e-3)
        errors.append(float((lp.nats - exact).abs().max()))
        assert lp.nfe.tolist() == [4 * steps] * 2
    assert math.log2(errors[0] / errors[1]) > 3
    fixed = sf.log_prob(mixture, x, trace="exact", solver=sf.Dopri5(), steps=20)
    assert fixed.nfe.tolist() == [120, 120]


def test_gradient_of_the_density_is_the_score(mixture):
    x = mixture.sample(2, seed=1).requires_grad_()
    lp = sf.log_prob(mixture, x, trace="exact", prior="exact", solver=sf.solve.RK4(), steps=40, t_min=1e-2, grad=True)
    (back,) = torch.autograd.grad(lp.nats.sum(), x)
    assert torch.allclose(back, mixture.score(x.detach(), 1e-2), atol=1e-4)


def test_no_graph_unless_it_is_asked_for(mixture):
    x = mixture.sample(2, seed=1).requires_grad_()
    assert not sf.log_prob(mixture, x, seed=0, solver=LOOSE).nats.requires_grad


def test_a_uniform_density_costs_log2_of_the_levels():
    for levels, low, high in ((256, -1.0, 1.0), (256, 0.0, 1.0), (17, -1.0, 1.0), (17, 0.0, 1.0)):
        nats = torch.full((2,), -12 * math.log(high - low), dtype=torch.float64)
        lp = LogProb.of_draws(nats.unsqueeze(1), torch.zeros(2), torch.zeros(2), 12)
        assert lp.bits_per_dim(levels, low, high).tolist() == pytest.approx([math.log2(levels)] * 2, abs=1e-13)


def test_a_network_that_says_nothing_has_the_density_of_a_change_of_scale():
    """With score 0 the flow is x -> alpha_T / alpha_eps x, and every trace is exact."""
    sde = sf.VP()
    model = sf.ScoreModel.from_score(lambda x, t: 0 * x, sde, (1, 2, 3))
    x = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = sde.alpha(sde.T) / sde.alpha(T_MIN)
    expected = sde.prior(x.shape).log_prob(ratio * x) + 6 * torch.log(ratio)
    lp = sf.log_prob(model, x, seed=0, solver=TIGHT)
    assert torch.allclose(lp.nats, expected, atol=1e-6)
    assert lp.latent.shape == x.shape
    assert bool(lp.stderr.isnan().all())  # one probe has no spread


# --- priors ---


def test_the_moments_prior_of_a_gaussian_is_its_exact_end(gaussian):
    basis, spectrum = gaussian._basis[0], gaussian._spectrum[0]
    prior = moments(gaussian.sde, mean=gaussian.means[0], cov=basis @ torch.diag(spectrum) @ basis.mT)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(prior.log_prob(x), gaussian.log_prob(x, gaussian.sde.T), atol=1e-12)


def test_the_moments_prior_removes_the_bias_of_ve():
    """With sigma_max = 5 and data of variance near 1, N(0, sigma_max^2) is wrong by percents of a nat."""
    sde = sf.VE(sigma_max=5.0)
    gm = sf.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double(), 0.3, None, sde)
    x = gm.sample(2, seed=0)
    exact = gm.log_prob(x, T_MIN)
    fitted = sf.log_prob(
        gm, x, trace="exact", prior="moments", data=gm.sample(20_000, seed=torch.Generator().manual_seed(1))
    )
    nominal = sf.log_prob(gm, x, trace="exact")
    assert float((fitted.nats - exact).abs().max()) < 1e-2
    assert float((nominal.nats - exact).abs().max()) > 3e-2


@pytest.mark.parametrize("cov", [0.25, "diagonal", "full"])
def test_draws_from_the_moments_prior_have_its_moments(cov):
    sde = sf.VE(sigma_max=1.0)
    mean = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    full = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    given = {"diagonal": full.diagonal().reshape(1, 2), "full": full}.get(cov, cov)
    x = (
        moments(sde, mean=mean, cov=given)
        .sample(20_000, seed=torch.Generator().manual_seed(0), dtype=torch.float64)
        .flatten(1)
    )
    expected = torch.diag(full.diagonal()) if cov == "diagonal" else full if cov == "full" else 0.25 * torch.eye(2)
    assert torch.allclose(x.mean(0), mean[0], atol=5 * math.sqrt(1.5 / 20_000))
    assert torch.allclose(torch.cov(x.T), expected.double() + torch.eye(2).double(), atol=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "trace"}, "hutchinson, exact, hutch"),
        ({"distribution": "normal"}, "rademacher, gaussian"),
        ({"probes": 0}, "at least one probe"),
        ({"mode": "backward"}, "auto, forward, lean, reverse"),
        ({"mode": "forward", "grad": True}, "mode='reverse'"),
        ({"prior": "moments"}, "data="),
        ({"data": torch.zeros(3, 4)}, "prior='moments'"),
        ({"prior": "moments", "data": torch.zeros(3, 5)}, "event shape"),
        ({"prior": "moments", "data": torch.zeros(1, 4)}, "at least 2"),
        ({"batch_size": 0}, "at least one sample"),
        ({"steps": 0}, "at least one is needed"),
        ({"solver": "rk4"}, "solver object"),
    ],
)
def test_bad_arguments_are_named(mixture, options, message):
    with pytest.raises(ValueError, match=message):
        sf.log_prob(mixture, torch.zeros(2, 4, dtype=torch.float64), **options)


def test_adaptive_steps_of_each_sample_do_not_cost_the_forward_mode(monkeypatch):
    """With per-sample times the network has to be tried on the whole batch, or it looks as if it had no tangents."""
    from scorefield.likelihood import trace

    seen = []
    wanted = trace.Linearizer.__call__

    def spy(self, *args, **kwargs):
        result = wanted(self, *args, **kwargs)
        seen.append(self.chosen)
        return result

    monkeypatch.setattr(trace.Linearizer, "__call__", spy)
    torch.manual_seed(0)
    model = sf.ScoreModel(sf.nn.MLP(3), sf.VP(), "noise", shape=(3,))
    sf.log_prob(model, torch.randn(4, 3), seed=0, solver=sf.Dopri5(1e-2, 1e-2))
    assert set(seen) == {trace.Forward}


def test_bits_count_the_levels_of_the_data_the_model_was_trained_on():
    """17 levels in [0, 1]: the default of 256 in [-1, 1] would be off by log2(256 / 2 / 17) bits, silently."""
    nats = torch.full((2, 1), -3.0, dtype=torch.float64)
    lp = replace(LogProb.of_draws(nats, torch.zeros(2), torch.zeros(2), 12), levels=17, range=(0.0, 1.0))
    expected = math.log2(17) + 3 / (12 * math.log(2))
    assert lp.bits_per_dim().tolist() == pytest.approx([expected] * 2)
    with pytest.warns(ScorefieldWarning, match="17 levels"):
        assert lp.bits_per_dim(256, 0.0, 1.0).tolist() == pytest.approx([expected + math.log2(256 / 17)] * 2)


def test_bits_of_real_numbers_are_refused_where_nobody_names_levels():
    """A density of 0 nats counted as 256 levels in [-1, 1] is 7 bits, which a model of real numbers never meant."""
    lp = replace(LogProb.of_draws(torch.zeros(2, 1).double(), torch.zeros(2), torch.zeros(2), 12), levels=0)
    with pytest.raises(ValueError, match=r"real numbers.*take nats, or bits_per_dim\(levels="):
        lp.bits_per_dim()
    assert lp.bits_per_dim(8, 0.0, 2.0).tolist() == [2.0, 2.0]
    with pytest.warns(ScorefieldWarning, match="give low and high"):
        assert lp.bits_per_dim(8).tolist() == [2.0, 2.0]
    assert replace(lp, range=(0.0, 1.0)).bits_per_dim(8).tolist() == [3.0, 3.0]  # floats whose ends are known


def test_a_loaded_model_knows_the_levels_and_range_of_its_data(mixture):
    model = sf.load("digits")
    assert (model.data_levels, model.data_range) == (256, (-1.0, 1.0))
    mixture.data_levels, mixture.data_range = 17, (0.0, 1.0)
    guided = mixture | sf.ClassifierFree(1.0)
    lp = sf.log_prob(guided, mixture.sample(1, seed=0), seed=0, solver=LOOSE)
    assert (lp.levels, lp.range) == (17, (0.0, 1.0))


def test_one_line_says_a_likelihood(mixture):
    lp = sf.log_prob(mixture, mixture.sample(3, seed=0), seed=0, solver=LOOSE)
    assert re.fullmatch(
        r"LogProb\(3 samples of 4 dims: mean -\d\.\d{4} ± \d\.\d{4} nats, nfe=.*, unfinished=0\)", repr(lp)
    )


# --- what does not arrive ---


def broken_late(dtype=torch.float64):
    """A network of NaN for t > 1/2, where the first of two samples goes alone."""

    def net(x, t):
        lost = (t > 0.5)[:, None] & (x[:, :1] > 0)
        return torch.where(lost, torch.nan, x)

    return sf.ScoreModel(net, sf.VP(), "noise", shape=(2,)), torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [{"solver": sf.Dopri5(1e-2, 1e-2, min_step=1e-3)}, {"solver": sf.solve.RK4(), "steps": 20}],
    ids=["adaptive", "fixed"],
)
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_sample_that_does_not_arrive_has_no_likelihood(options, trace):
    model, x = broken_late()
    with pytest.warns(RuntimeWarning, match="1 of 2 samples left the finite numbers"):
        lp = sf.log_prob(model, x, trace, seed=0, **options)
    assert lp.status.tolist() == [3, 0]
    assert lp.nats.isnan().tolist() == [True, False]
    assert lp.bits_per_dim().isnan().tolist() == [True, False]
    assert lp.draws.isnan().any(1).tolist() == [True, False]
    assert "unfinished=1" in repr(lp)


def test_a_sample_that_was_given_up_has_no_likelihood(gaussian):
    with pytest.warns(RuntimeWarning, match="2 of 2 samples stopped after max_steps"):
        lp = sf.log_prob(gaussian, gaussian.sample(2, seed=0), "exact", solver=sf.Dopri5(max_steps=3))
    assert lp.status.tolist() == [1, 1]
    assert bool(lp.nats.isnan().all())


def test_a_bound_of_a_broken_network_is_none():
    model, x = broken_late()
    with pytest.warns(RuntimeWarning, match="left the finite numbers"):
        lp = elbo(model, x, 20, seed=0)
    assert lp.status[0] == 3
    assert bool(lp.nats[0].isnan())


@pytest.mark.parametrize("door", [lambda m, x: sf.log_prob(m, x, seed=0), lambda m, x: elbo(m, x, 2, seed=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused_by_number(gaussian, door, bad):
    x = gaussian.sample(4, seed=0)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="1 of 4 samples, first in sample 2"):
        door(gaussian, x)


def test_progress_goes_with_the_time_of_the_samples(gaussian, monkeypatch):
    """All samples arrive nearly together: counting arrivals would say nothing until the end."""
    said = []
    monkeypatch.setattr("scorefield.progress.Bar.__call__", lambda self, fraction: said.append(fraction))
    sf.log_prob(gaussian, gaussian.sample(3, seed=0), seed=0)
    assert said == sorted(said)
    assert said[-1] == 1
    assert sum(0.05 < f < 0.95 for f in said) > 5
