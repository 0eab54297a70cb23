"""The user's door: seeds, batches, chunks, conditions, gradients, devices."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import scorefield as sf
from oracles import gaussian, mixture, name

SOLVERS = [
    sf.EulerMaruyama(),
    sf.ReverseDiffusion(),
    sf.Ancestral(),
    sf.solve.ProbabilityFlow(),
    sf.PC(),
    sf.PC(corrector=sf.solve.AnnealedLangevin(steps=2), correct_first=True),
    sf.Euler(),
    sf.Heun(),
    sf.solve.RK4(),
    sf.solve.Bosh3(1e-3, 1e-3),
    sf.Dopri5(1e-3, 1e-3),
    sf.solve.Tsit5(1e-3, 1e-3),
    sf.DDIM(),
    sf.DDIM(eta=1.0),
    sf.DPMSolver(),
]


def steps(solver: sf.Solver) -> int | None:
    return None if isinstance(solver, sf.solve.Bosh3 | sf.Dopri5 | sf.solve.Tsit5) else 12


def network() -> sf.ScoreModel:
    torch.manual_seed(0)
    net = sf.nn.UNet(1, 16, (1, 2), 1, (1,), dropout=0.0).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return sf.ScoreModel(net, sf.VP(), "noise", shape=(1, 8, 8))


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_sample_depends_on_its_own_seed_alone(solver):
    gm, n = mixture(sf.SubVP()), steps(solver)
    seeds = list(range(8))
    together = sf.sample(gm, 8, solver, steps=n, seed=seeds)
    alone = torch.cat([sf.sample(gm, 1, solver, steps=n, seed=s) for s in seeds])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(together, sf.sample(gm, 8, solver, steps=n, seed=seeds))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("solver", [sf.PC(), sf.Dopri5(), sf.DPMSolver()], ids=name)
def test_network_samples_do_not_depend_on_batch_mates(solver):
    model = network()
    n = None if isinstance(solver, sf.Dopri5) else 4
    together = sf.sample(model, 4, solver, steps=n, seed=[5, 6, 7, 8])
    alone = torch.cat([sf.sample(model, 1, solver, steps=n, seed=s) for s in (5, 6, 7, 8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_chunks_change_nothing(size):
    gm = mixture(sf.VP())
    whole = sf.sample(gm, 7, sf.PC(), steps=10, seed=3)
    torch.testing.assert_close(
        sf.sample(gm, 7, sf.PC(), steps=10, seed=3, batch_size=size), whole, rtol=1e-12, atol=1e-12
    )


def test_one_seed_is_the_first_of_many():
    gm = mixture(sf.VE())
    many = sf.sample(gm, 5, sf.EulerMaruyama(), steps=10, seed=42)
    assert torch.equal(many[:1], sf.sample(gm, 1, sf.EulerMaruyama(), steps=10, seed=42))
    assert torch.equal(many[:1], sf.sample(gm, 1, sf.EulerMaruyama(), steps=10, seed=[42]))
    assert not torch.equal(many, sf.sample(gm, 5, sf.EulerMaruyama(), steps=10, seed=43))


def test_without_a_seed_samples_differ_and_the_global_generator_stays():
    gm = mixture(sf.VP())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b = (sf.sample(gm, 2, sf.EulerMaruyama(), steps=4) for _ in range(2))
    assert not torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wants_shape", [False, True])
def test_recorded_noise_is_asked_for_in_order_the_priors_first(wants_shape):
    gm = gaussian(sf.VP())
    bank = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = iter(bank)
    noise = (lambda shape: next(asked)) if wants_shape else (lambda: next(asked))
    end = sf.sample(gm, 2, sf.EulerMaruyama(), steps=4, noise=noise, denoise=False)
    x, grid = bank[0].clone(), torch.linspace(1, 1e-3, 5, dtype=torch.float64)
    for i in range(4):
        t, h = grid[i], grid[i] - grid[i + 1]
        drift = gm.sde.f(t) * x - gm.sde.g2(t) * gm.score(x, t)
        x = x - h * drift + torch.sqrt(gm.sde.g2(t) * h) * bank[i + 1]
    torch.testing.assert_close(end, x * 1.0, rtol=1e-4, atol=1e-4)  # sigma(1) = 0.99998 scales the prior
    assert next(asked, None) is None


def test_conditions_follow_their_samples_out_of_the_batch():
    """Samples with different conditions finish at different steps; each keeps its own."""
    sde = sf.VP()

    def score(x, t, centre):
        spread = sde.alpha(t.double()) ** 2 * 0.01 + sde.sigma(t.double()) ** 2
        return -(x - sde.alpha(t.double()).reshape(-1, 1) * centre.reshape(-1, 1)) / spread.reshape(-1, 1)

    model = sf.ScoreModel.from_score(score, sde, (2,))
    centre = torch.tensor([-5.0, 0.0, 0.01, 40.0], dtype=torch.float64)
    x_init = sde.prior((4, 2)).sample(seed=0, dtype=torch.float64)
    r = sf.sample(model, 4, sf.Dopri5(1e-6, 1e-6), x_init=x_init, full=True, centre=centre)
    assert len(set(r.nfe.tolist())) > 1
    assert ((r.x.mean(1) - centre).abs() < 0.5).all()


def test_fixed_and_adaptive_count_every_evaluation():
    gm = gaussian(sf.VP())
    counts = []
    watched = sf.ScoreModel.from_score(lambda x, t: (counts.append(len(x)), gm.score(x, t.double()))[1], gm.sde, (3,))
    r = sf.sample(watched, 3, sf.Heun(), steps=5, seed=0, full=True, denoise=True)
    assert r.nfe.tolist() == [11, 11, 11] == [len(counts)] * 3
    counts.clear()
    r = sf.sample(watched, 3, sf.Dopri5(), seed=0, full=True)
    assert int(r.nfe.sum()) == sum(counts)


def test_solution_holds_the_path():
    gm = gaussian(sf.VP())
    r = sf.sample(gm, 2, sf.Heun(), steps=8, seed=0, full=True)
    assert r.path.shape == (9, 2, 3)
    assert torch.equal(r.path[-1], r.x)
    assert r.times[0] == 1.0
    long = sf.sample(gm, 2, sf.EulerMaruyama(), steps=350, seed=0, full=True)
    assert len(long.path) == len(long.times) == 102  # 100 intervals and the denoised sample
    assert long.times[-1] == 0.0
    adaptive = sf.sample(gm, 2, sf.Dopri5(1e-8, 1e-8), seed=0, full=True)
    fine = sf.sample(gm, 2, sf.solve.RK4(), grid=torch.linspace(1.0, float(adaptive.times[20]), 200), seed=0)
    torch.testing.assert_close(adaptive.path[20], fine, rtol=1e-3, atol=1e-3)


def test_exact_prior_removes_the_bias_of_ve():
    mean = torch.full((1, 2), 30.0, dtype=torch.float64)
    gm = sf.GaussianMixture(mean, 1.0, None, sf.VE(sigma_max=50.0))
    keywords = {"seed": torch.Generator().manual_seed(0)}
    x = sf.sample(gm, 4000, sf.Heun(), steps=60, prior="exact", **keywords)
    z = (x.mean(0) - 30.0) / (1 / 4000) ** 0.5
    assert z.abs().max() < 4.5
    biased = sf.sample(gm, 4000, sf.Heun(), steps=60, seed=torch.Generator().manual_seed(0))
    assert (biased.mean(0) - 30.0).abs().min() > 0.3


def test_gradients_flow_through_the_sampler_only_when_asked():
    gm = gaussian(sf.VP())
    x = sf.prior.Prior((2, 3), 1.0).sample(seed=0, dtype=torch.float64).requires_grad_()
    assert not sf.sample(gm, 2, sf.Heun(), steps=5, x_init=x).requires_grad
    out = sf.sample(gm, 2, sf.Heun(), steps=5, x_init=x, grad=True, denoise=False)
    (slope,) = torch.autograd.grad(out.sum(), x)
    h = 1e-6
    moved = sf.sample(gm, 2, sf.Heun(), steps=5, x_init=x.detach() + h, denoise=False)
    torch.testing.assert_close(slope.sum(), (moved.sum() - out.detach().sum()) / h, rtol=1e-5, atol=1e-5)


def test_dtype_and_device_follow_the_start_else_the_model():
    gm = gaussian(sf.VP())
    assert sf.sample(gm, 1, steps=3, seed=0).dtype == torch.float64
    assert sf.sample(gm, 1, steps=3, x_init=torch.zeros(1, 3)).dtype == torch.float32
    assert sf.sample(network(), 1, steps=2, seed=0).dtype == torch.float32


@pytest.mark.parametrize(
    "solver", [sf.EulerMaruyama(), sf.DPMSolver(), sf.PC(corrector=sf.solve.AnnealedLangevin())], ids=name
)
def test_nothing_strays_from_the_device_of_the_model(solver):
    model = network().to("meta")
    x = sf.sample(model, 2, solver, steps=3, seed=0, progress=False)
    assert x.device.type == "meta"
    assert x.shape == (2, 1, 8, 8)


def test_slerp_keeps_the_norm_and_the_ends():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind(0)
    b = b * a.norm() / b.norm()
    path = sf.slerp(a, b, 9)
    assert path.shape == (9, 3, 4)
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], b)
    torch.testing.assert_close(path.flatten(1).norm(dim=1), a.norm().expand(9))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"n": 0}, "n=0: at least one"),
        ({"steps": 0}, "steps=0"),
        ({"steps": -3}, "steps=-3"),
        ({"seed": [1, 2, 3]}, "3 seeds for 2 samples"),
        ({"seed": -1}, "integers from 0"),
        ({"seed": 0, "noise": torch.zeros}, "either seed= or noise="),
        ({"t_start": 0.5}, "give the states there as x_init="),
        ({"x_init": torch.zeros(3, 3)}, "3 rows for n=2"),
        ({"grid": "cosine"}, "grid='cosine' is unknown"),
        ({"grid": torch.tensor([2.0, 0.0])}, "leaves the interval"),
        ({"prior": "best"}, "prior='best' is unknown"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"t_min": 1.5}, "t_min=1.5"),
    ],
)
def test_wrong_arguments_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        sf.sample(gaussian(sf.VP()), **{"n": 2, "solver": sf.Euler(), **keywords})


def test_a_model_without_a_shape_asks_for_it():
    model = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP())
    with pytest.raises(ValueError, match="give shape="):
        sf.sample(model, 2)
    assert sf.sample(model, 2, shape=(5,), steps=2, seed=0).shape == (2, 5)


class Half(torch.nn.Module):
    """The exact noise prediction of N(0.5, 0.1^2) under VE, cast as users cast networks."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, 1))

    def forward(self, x, t):
        a, s = sf.VE().alpha(t)[:, None], sf.VE().sigma(t)[:, None]
        return (s * (x.double() - 0.5 * a) / (0.01 * a**2 + s**2)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", [sf.DDIM(), sf.Ancestral(), sf.EulerMaruyama()], ids=name)
def test_the_state_of_a_half_precision_network_is_single(solver, dtype):
    model = sf.ScoreModel(Half().to(dtype), sf.VE(), "noise", shape=(64,))
    r = sf.sample(model, 16, solver, steps=300, seed=0, full=True)
    assert r.x.dtype == r.path.dtype == dtype
    assert r.x.float().mean() == pytest.approx(0.5, abs=0.03)
    assert r.x.float().std() == pytest.approx(0.1, abs=0.02)  # 0.63 for DDIM where the state was bfloat16
    codes = sf.encode(model, r.x, sf.DDIM(), steps=50)
    assert codes.dtype == dtype


def test_dropout_in_train_mode_is_said():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net

        def forward(self, x, t):
            return self.body(x)

    model = sf.ScoreModel(Net(), sf.VP(), "noise", shape=(2,))
    with pytest.warns(UserWarning, match="in train mode, so dropout"):
        sf.sample(model, 2, sf.DDIM(), steps=2, seed=0)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.sample(model, 2, sf.DDIM(), steps=2, seed=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.sample(nan_weights(), 2, sf.DDIM(), steps=2, seed=0), "the weights net.w are not finite"),
        (lambda: sf.sample(flat(), 2, sf.DDIM(), steps=2, x_init=torch.full((2, 2), math.nan)), "states to start from"),
        (
            lambda: sf.sample(flat(Linear()), 2, sf.Euler(), steps=2, seed=0),
            "alpha is 0 at t=1.0, where noise prediction",
        ),
    ],
)
def test_nan_says_its_cause(make, words):
    with pytest.warns(RuntimeWarning, match=words):
        make()


class Linear(sf.GaussianSDE):
    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


def nan_weights() -> sf.ScoreModel:
    net = Half()
    torch.nn.init.constant_(net.w, math.nan)
    return sf.ScoreModel(lambda_net(net), sf.VP(), shape=(2,))


def lambda_net(net: torch.nn.Module) -> torch.nn.Module:
    net.forward = lambda x, t: x * net.w  # type: ignore[method-assign]
    return net


def flat(sde: sf.GaussianSDE | None = None) -> sf.ScoreModel:
    return sf.ScoreModel(lambda x, t: 0.1 * x, sde or sf.VP(), shape=(2,))


def test_a_score_of_zero_sets_no_infinite_step():
    model = sf.ScoreModel.from_score(lambda x, t: torch.zeros_like(x), sf.VE(), shape=(300,))
    x = sf.sample(model, 2, sf.PC(), steps=5, seed=0)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda gm: sf.sample(gm, (4, 3)), "give the number of samples"),
        (lambda gm: sf.sample(gm, 2.5), "give the number of samples"),
        (lambda gm: sf.sample(gm, 2, sf.Heun(), steps=2.5), "steps=2.5: give the number of steps, a whole number"),
        (lambda gm: sf.sample(gm, 2, sf.Heun(), steps="many"), "steps='many'"),
        (lambda gm: sf.sample(gm, 2, batch_size=1.5), "batch_size=1.5"),
        (lambda gm: sf.sample(gm, 2, pilots=0), "pilots=0: at least one"),
        (lambda gm: sf.sample(gm, 2, sf.Heun, steps=2), "is a class: give an object, Heun"),
        (lambda gm: sf.PC(sf.ReverseDiffusion), "predictor=.*give a solver object"),
        (lambda gm: sf.PC(corrector=0.16), "corrector=0.16: give a solver object"),
        (
            lambda gm: torch.func.vmap(lambda x: sf.sample(gm, 2, x_init=x))(torch.zeros(3, 2, 3)),
            "takes batches itself",
        ),
        (lambda gm: torch.func.vmap(lambda x: sf.encode(gm, x))(torch.zeros(3, 2, 3)), "takes batches itself"),
    ],
)
def test_what_is_no_argument_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call(gaussian(sf.VP()))


def test_slerp_of_opposite_vectors_goes_round():
    a = torch.randn(50, generator=torch.Generator().manual_seed(0))
    path = sf.slerp(a, -2 * a, 9)
    torch.testing.assert_close(path.norm(dim=1), torch.linspace(1, 2, 9) * a.norm())
    torch.testing.assert_close(path[0], a)
    torch.testing.assert_close(path[-1], -2 * a)
    assert float((path[4] * a).sum()) == pytest.approx(0.0, abs=1e-4)
    near = sf.slerp(a, -a + 1e-3 * a.roll(1), 9)
    torch.testing.assert_close(near.norm(dim=1), a.norm().expand(9), rtol=2e-3, atol=0.0)
    with pytest.raises(ValueError, match="dtype torch"):
        sf.slerp(torch.tensor([1, 0]), torch.tensor([0, 1]), 3)
