"""Whatever a function of the core is given, it works, or one line says what would be right."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import Cubic, gaussian, name

VP3 = gaussian(sf.VP())
UNSHAPED = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP())


class Weighted(torch.nn.Module):
    """A network of another form than net(x, t) -> like x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


class Timeless(Weighted):
    def forward(self, x):
        return self.weight * x


class Conditioned(Weighted):
    def forward(self, x, t, text):
        return self.weight * x


class Halved(Weighted):
    def forward(self, x, t):
        return self.weight * x[:, :2]


class Named(Weighted):
    def forward(self, x, t):
        return {"sample": self.weight * x}


class Faulty(Weighted):
    def forward(self, x, t):
        return self.weight + None


def called(kind):
    return sf.ScoreModel(kind(), sf.VP(), "noise").score(torch.zeros(2, 3), 0.5)


def test_an_error_inside_a_network_stays_what_it_is():
    with pytest.raises(TypeError, match="unsupported operand"):
        called(Faulty)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: called(Timeless), r"called as Timeless\(x, t\) and takes \(x\): too many positional .*lambda x, t:"),
        (lambda: called(Conditioned), r"Conditioned\(x, t\) and takes \(x, t, text\): missing .*'text'"),
        (lambda: called(Halved), r"Halved\(x, t\) returned shape \(2, 2\) for x of shape \(2, 3\)"),
        (lambda: called(Named), r"Named\(x, t\) returned dict, not a tensor"),
        (lambda: sf.ScoreModel(Halved(), sf.VP(), "epsilon"), "did you mean 'noise'"),
        (lambda: sf.ScoreModel(Halved(), sf.VP(), "v_prediction"), "from_diffusers"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), probe=1), "did you mean probes"),
        (lambda: sf.sample(VP3, 1, rtol=1e-3), "did you mean solver, such as sf.Dopri5"),
        (lambda: sf.inverse.restore(VP3, sf.Mask(torch.ones(3)), torch.zeros(3), samples=3), "did you mean n"),
        (lambda: sf.evaluate(torch.zeros(9, 3), torch.zeros(9, 3)), "source is a Tensor; .*sf.evaluation.compare"),
        (lambda: sf.train(VP3, torch.zeros(9, 3), out="never", learning_rate=1e-3), "did you mean lr"),
        (lambda: sf.train(VP3, torch.zeros(9, 3), out="never", epochs=3), "did you mean steps .one epoch"),
        (lambda: VP3.score(torch.zeros(2, 3), torch.zeros(3)), "t has shape .3,. but x has batch size 2"),
        (lambda: VP3.denoise(torch.zeros(1, 3), torch.zeros(3)), "batch size 1; give a float or"),
        (lambda: VP3.log_prob(torch.zeros(2, 3), torch.zeros(2, 1)), r"t has shape \(2, 1\)"),
        (lambda: VP3.score(torch.zeros(2, 4), 0.5), "event shape .4,.; this mixture has .3,."),
        (lambda: sf.VP().kernel(torch.zeros(2, 3), torch.zeros(3)), "batch size 2"),
        (lambda: sf.dsm_loss(VP3, torch.zeros(4, 3), t=torch.zeros(3)), "batch size 4"),
        (
            lambda: sf.dsm_loss(VP3, torch.zeros(4, 3), noise=torch.zeros(4, 2)),
            "noise has shape .4, 2.; expected .4, 3.",
        ),
        (lambda: sf.dsm_loss(VP3, torch.zeros(4, 3, dtype=torch.long)), "floating point"),
        (lambda: sf.sample(UNSHAPED, 2, shape=()), "give at least one dimension"),
        (lambda: sf.log_prob(VP3, torch.zeros(3)), "give at least one sample"),
        (lambda: sf.log_prob(VP3, torch.zeros(0, 3)), "give at least one sample"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), solver=sf.EulerMaruyama()), "uses the velocity alone"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), solver=sf.DPMSolver()), "uses the velocity alone"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), probes=0), "probes=0"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), "skilling"), "trace='skilling' is unknown"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), batch_size=0), "batch_size=0"),
        (lambda: sf.log_prob(UNSHAPED, torch.zeros(1, 3), prior="exact"), "knows its own p_T"),
        (lambda: sf.DDIM(eta=2.0), "eta=2.0"),
        (lambda: sf.Langevin(snr=0.0), "snr=0.0"),
        (lambda: sf.solve.AnnealedLangevin(steps=-1), "steps=-1"),
        (lambda: sf.Langevin(norm="mean"), "choose expected, batch or sample"),
        (lambda: sf.Ancestral(variance="fixed"), "choose posterior or transition"),
        (lambda: sf.Mask(torch.tensor([0.5, 1.0])), "values must be 0"),
        (lambda: sf.ScoreModel(UNSHAPED.net, sf.VP(), clock="log"), "clock='log' is unknown"),
    ],
)
def test_the_fault_and_the_remedy_are_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("solver", [sf.PC(), sf.Dopri5(), sf.DPMSolver()], ids=name)
def test_any_event_shape(shape, solver):
    x = sf.sample(UNSHAPED, 2, solver, shape=shape, steps=None if isinstance(solver, sf.Dopri5) else 3, seed=0)
    assert x.shape == (2, *shape)
    assert sf.log_prob(UNSHAPED, x, seed=0, solver=sf.solve.RK4(), steps=2).nats.shape == (2,)


@pytest.mark.parametrize("sde", [sf.VP(), Cubic()], ids=name)
def test_inference_mode_changes_nothing(sde):
    gm = gaussian(sde)
    x = gm.sample(2, 0.1, seed=0)
    usual = sf.log_prob(gm, x, "exact", t_min=0.1).nats
    path = sf.sample(gm, 2, sf.Dopri5(), seed=0)
    with torch.inference_mode():
        assert torch.equal(sf.log_prob(gm, gm.sample(2, 0.1, seed=0), "exact", t_min=0.1).nats, usual)
        assert sf.log_prob(gm, gm.sample(2, 0.1, seed=0), seed=0).nats.isfinite().all()
        assert torch.equal(sf.sample(gm, 2, sf.Dopri5(), seed=0), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("solver", [sf.PC(), sf.DPMSolver(), sf.Dopri5(1e-2, 1e-2)], ids=name)
def test_half_precision_states_stay_what_they_are_and_land_near(solver, dtype):
    gm = gaussian(sf.VP())
    x = sf.VP().prior((300, 3)).sample(seed=0)
    steps = None if isinstance(solver, sf.Dopri5) else 30
    low, full = (sf.sample(gm, 300, solver, steps=steps, x_init=x.to(kind), seed=0) for kind in (dtype, torch.float32))
    assert low.dtype == dtype
    # 2^-8 is the rounding of bfloat16; it accumulates over some tens of steps
    assert (low.float() - full).abs().mean() < 0.05


@pytest.mark.parametrize(
    "draw",
    [
        lambda a, y: sf.sample(VP3, 2, sf.PC(), steps=2, hooks=[sf.Replace(a, y)], seed=0),
        lambda a, y: sf.sample(VP3, 2, sf.inverse.DDRM(a, y, 0.1), steps=2, seed=0),
        lambda a, y: sf.sample(VP3 | sf.Posterior(a, y, 0.1), 2, steps=2, seed=0),
        lambda a, y: sf.inverse.twisted_smc(VP3, a, y, 0.1, particles=2, steps=2),
    ],
)
def test_every_door_for_a_measurement_warns_of_levels_of_8_bits(draw):
    mask = sf.Mask(torch.tensor([True, True, False]))
    with pytest.warns(RuntimeWarning, match=r"y runs from 0 to 255, where measurements .* lie in \[-1, 1\]"):
        draw(mask, torch.tensor([255, 12, 0], dtype=torch.uint8))


@pytest.mark.parametrize(
    "value",
    [
        sf.inverse.Particles(torch.zeros(500, 3), torch.ones(500), torch.ones(9), torch.zeros(())),
        sf.digits(train=False),
        sf.Posterior(sf.Mask(torch.ones(1, 28, 28)), torch.zeros(1, 28, 28), noise=0.1),
        sf.Replace(sf.Mask(torch.ones(1, 28, 28)), torch.zeros(1, 28, 28)),
        sf.inverse.DDRM(sf.Mask(torch.ones(1, 28, 28)), torch.zeros(1, 28, 28)),
        sf.Blur(torch.ones(5, 5)),
        sf.inverse.Fourier(torch.ones(28, 28)),
        sf.inverse.Dense(torch.ones(5, 6), (6,)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_result_says_itself_in_one_short_line(value):
    assert "\n" not in repr(value)
    assert len(repr(value)) < 200
    assert type(value).__name__ in repr(value)


class Cosine(sf.GaussianSDE):
    """alpha is zero at the end, where 1/4 log(sigma / alpha) is infinite."""

    def alpha(self, t):
        return torch.cos(0.5 * torch.pi * t)

    def sigma(self, t):
        return torch.sin(0.5 * torch.pi * t)


def test_a_network_is_never_told_an_infinite_noise_level():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = sf.ScoreModel(sf.nn.MLP(2, width=8), Cosine(), shape=(2,))
    x = torch.ones(1, 2)
    torch.testing.assert_close(model.noise(x, 1.0).detach(), x, atol=1e-3, rtol=0)  # all of x is noise there
    assert sf.sample(model, 2, sf.Heun(), steps=3, seed=0).isfinite().all()
