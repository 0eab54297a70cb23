"""Everything runs on a device without float64, where times and coefficients stay on the CPU (see `accelerator`)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import scorefield as sf
from accelerator import DEVICE, Accelerator, OnDevice
from oracles import PAPER, gaussian, name
from scorefield import discrete, solve
from scorefield.data import array
from scorefield.evaluation.calibration import calibrate
from scorefield.inverse import DDRM, twisted_smc
from scorefield.ladder import DDPMScore, ddpm_loss
from scorefield.likelihood import VariationalDequantizer, dequantize, discrete_log_prob, elbo, moments
from scorefield.model import PREDICTIONS
from scorefield.objective import WEIGHTINGS
from scorefield.times import ImportanceTimes, LogNormalTimes, LogSNRTimes
from scorefield.training import TrainConfig
from scorefield.training.batches import Feed
from scorefield.training.loss import Levels, Objective, held_out_loss
from scorefield.training.progress import Progress, fault

N, D = 4, 3
VIEWS = ("denoise", "noise", "score", "velocity")


class Net(nn.Module):
    """A network that insists on its own dtype and device, and knows labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x, t, label=None):
        assert (t.dtype, t.device, t.shape) == (x.dtype, x.device, x.shape[:1])
        y = self.inner(x) + t[:, None]
        return y if label is None else y + 0.1 * label[:, None]


@pytest.fixture
def device():
    with Accelerator() as accelerator:
        yield accelerator


def network(sde=None, predict="noise"):
    torch.manual_seed(0)
    return sf.ScoreModel(Net().to(DEVICE), sde or sf.VP(), predict, shape=(D,))


def states(*shape):
    return torch.randn(*(shape or (N, D)), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def each_time():
    return torch.linspace(0.1, 0.9, N)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("predict", PREDICTIONS)
@pytest.mark.parametrize(
    "clock", ["t", "sigma", "log_sigma", 999.0, lambda t: t**2], ids=["t", "sigma", "log_sigma", "999", "function"]
)
def test_every_view_of_every_prediction(device, sde, predict, clock):
    if clock != "t" and predict != "noise":
        return
    model = network(sde, predict)
    model.clock = clock
    for t in (0.5, each_time(), each_time().double()):
        for view in VIEWS:
            assert isinstance(getattr(model, view)(states(), t), OnDevice)
    assert device.read == 0


def test_a_time_that_lies_on_the_device_is_read_back_once(device):
    network().denoise(states(), each_time().to(DEVICE))
    assert device.read == 1


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("weighting", [*WEIGHTINGS, lambda t: t])
@pytest.mark.parametrize("times", [None, LogSNRTimes(), ImportanceTimes(), LogNormalTimes()], ids=name)
def test_the_loss_and_its_gradient(device, sde, weighting, times):
    model = network(sde)
    for stratify in (True, False):
        loss = sf.dsm_loss(model, states(), weighting, seed=0, times=times, stratify=stratify)
        assert loss.dtype == torch.float32
        loss.mean().backward()
    sf.dsm_loss(model, states(), weighting, t=0.3, noise=states())
    assert device.read == 0


def test_the_loss_on_the_ladder(device):
    net = DDPMScore(Net()).to(DEVICE)
    ddpm_loss(sf.ScoreModel(net, sf.VP(), "score", shape=(D,)), states(), seed=0).mean().backward()
    assert device.read == 0


def test_the_loss_of_a_classifier(device):
    clf = sf.guide.Classifier(Net().to(DEVICE), sf.VP())
    label = torch.tensor([0, 1, 2, 0]).to(DEVICE)
    sf.guide.classifier_loss(
        lambda x, t: Net.forward(clf.net, x, t), sf.VP(), states(), label, seed=0
    ).mean().backward()
    with pytest.raises(AssertionError):  # the classifier hands its network what that network expects: sigma / alpha
        clf.net(states(), each_time().double())
    sf.guide.classifier_loss(clf, sf.VP(), states(), label, seed=0).mean().backward()
    assert device.read == 0


APART = (solve.Solver, solve.Tuned)
SOLVERS = [
    value
    for key in sorted(vars(solve))
    if isinstance(value := getattr(solve, key), type) and issubclass(value, solve.Solver) and value not in APART
]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_every_solver_on_a_grid(device, solver, sde):
    made = solver() if solver is not solve.PC else solve.PC(solve.ReverseDiffusion(), solve.Langevin(norm="sample"))
    x = sf.sample(network(sde), N, made, steps=3, seed=0)
    assert isinstance(x, OnDevice)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("solver", [solve.PC(), solve.PC(corrector=solve.Langevin(norm="batch")), None], ids=str)
def test_solvers_that_measure_first(device, solver):
    sf.sample(network(), N, solver, steps=3, seed=0)
    sf.sample(network(), N, solver, steps=3, seed=0, denoise=True, full=True)


LOOSE = solve.Dopri5(0.3, 0.3)


@pytest.mark.parametrize("solver", [LOOSE, solve.Tsit5(0.3, 0.3, norm="max"), solve.AdaptiveSDE(3.0, 3.0)], ids=name)
@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_adaptive_solvers(device, solver, sde):
    r = sf.sample(network(sde, "data"), N, solver, seed=0, t_min=0.4, full=True)
    assert isinstance(r.x, OnDevice)
    assert "nfe=" in repr(r)


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_codes(device, sde):
    model = network(sde, "data")
    assert isinstance(sf.decode(model, sf.encode(model, states(), LOOSE, t_min=0.2), LOOSE, t_min=0.2), OnDevice)
    sf.encode(model, states(), solve.DDIM(), steps=3)


@pytest.mark.parametrize("sde", PAPER, ids=name)
@pytest.mark.parametrize("trace", ["exact", "hutchinson", "hutch++"])
def test_likelihoods(device, sde, trace):
    model = network(sde)
    for mode in ("forward", "reverse", "lean"):
        lp = sf.log_prob(model, states(), trace, 2, seed=0, mode=mode, solver=solve.Euler(), steps=1)
        assert isinstance(lp.nats, OnDevice)
    lp = sf.log_prob(network(sde, "data"), states(), trace, seed=0, t_min=0.4, solver=LOOSE)
    assert isinstance(lp.bits_per_dim(levels=256, low=-1.0, high=1.0), OnDevice)


def test_priors_of_likelihoods(device):
    data = torch.randn(50, D)
    for end in ("moments", moments(sf.VP(), mean=data.mean(0), cov=0.5)):
        given = data if end == "moments" else None
        sf.log_prob(network(), states(), "exact", solver=solve.Heun(), steps=2, prior=end, data=given)
    moments(sf.VP(), data.to(DEVICE)).sample(2, seed=0)


def test_bounds_and_integers(device):
    elbo(network(), states(), 3, seed=0)
    levels = torch.randint(256, (N, D)).to(DEVICE)
    assert dequantize(levels, seed=0).dtype == torch.float32
    own = VariationalDequantizer((D,)).to(DEVICE)
    discrete_log_prob(network(), levels, own, samples=2, solver=solve.Heun(), steps=2)
    discrete_log_prob(network(), levels, samples=1, solver=solve.Heun(), steps=2)


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_guidance(device, sde):
    model, clf = network(sde), sf.guide.Classifier(Net().to(DEVICE), sde)
    label = torch.tensor([0, 1, 2, 0])
    sf.sample(model | sf.ClassifierGuidance(clf, label), N, solve.DDIM(), steps=2, seed=0)
    sf.sample(model | sf.ClassifierGuidance(lambda x, t: x + t[:, None], 1), N, solve.DDIM(), steps=2, seed=0)
    free = model | sf.ClassifierFree(2.0, interval=(0.2, 0.8))
    sf.sample(free, N, solve.DDIM(), steps=3, seed=0, label=label.to(DEVICE))
    sf.sample(model | sf.guide.Autoguidance(network(sde)), N, solve.DDIM(), steps=3, seed=0)


MASK = sf.Mask(torch.tensor([True, False, True]))


@pytest.mark.parametrize("method", ["dps", "pigdm", "tmpd", "mmps", "diffpir"])
def test_posteriors(device, method):
    y = MASK(states(1, D)).cpu()
    for t in (0.5, each_time()):
        (network() | sf.Posterior(MASK, y, 0.1, method)).score(states(), t)
    sf.sample(network() | sf.Posterior(MASK, y, 0.1, method), N, solve.DDIM(), steps=2, seed=0)


@pytest.mark.parametrize("operator", [MASK, sf.Grayscale((0.2, 0.5, 0.3))], ids=name)
def test_replacement_and_ddrm(device, operator):
    y = operator(states(1, D)).cpu()
    sf.sample(network(), N, solve.DDIM(1.0), steps=3, seed=0, hooks=[sf.Replace(operator, y)])
    sf.sample(network(), N, DDRM(operator, y, 0.1), steps=3, seed=0)


class Process:
    """What training asks of accelerate, for one process on the device."""

    num_processes, process_index, device = 1, 0, torch.device(DEVICE)
    autocast = nullcontext


@pytest.mark.parametrize("weighting", ["noise", "likelihood"])
def test_a_step_of_training_with_its_figures(device, weighting):
    values = torch.randint(0, 256, (12, D), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data, config = (
        array(values, labels=torch.arange(12) % 3),
        TrainConfig(batch_size=N, weighting=weighting, flip=False),
    )
    model, feed = network(), Feed(data, config, sf.VP(), labels=True)
    levels, at = Levels(model.sde), Progress()
    batch = feed.batch(0, next(iter(feed.raw(0, 1))), Process.device)
    each = Objective(model, config, None)(batch)
    each.mean().backward()
    levels.add(batch, each)
    assert device.read == 0
    assert levels.report(Process)
    assert "noise level" in fault(at, config, each, batch.t, float("nan"), 1.0, model.sde, Process)
    assert held_out_loss(model, data, config, None, True, Process) > 0


def test_networks_of_the_library(device):
    x, image = states(), states(2, 1, 8, 8)
    scales = sf.nn.NoiseScales(num_scales=10)
    small = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": ()}
    nets = [
        (sf.ScoreModel(sf.nn.MLP(D, width=16).to(DEVICE), sf.VP(), "noise"), x),
        (sf.ScoreModel(sf.nn.MLP(D, width=16, embedding="fourier").to(DEVICE), sf.VE(), "score", clock="sigma"), x),
        (sf.ScoreModel(sf.nn.UNet(1, embedding="fourier", **small).to(DEVICE), sf.VE(), "edm"), image),
        (sf.ScoreModel(DDPMScore(sf.nn.UNet(1, **small)).to(DEVICE), sf.VP(), "score"), image),
    ]
    for model, state in nets:
        model.score(state, 0.5), model.score(state, torch.linspace(0.2, 0.4, len(state)))
    assert scales(torch.arange(3).to(DEVICE)).dtype == torch.float32


@pytest.mark.parametrize("covariance", ["full", "isotropic"])
def test_particles(device, covariance):
    y = MASK(states(1, D)).cpu()
    found = twisted_smc(network(), MASK, y, 0.3, particles=8, steps=3, covariance=covariance, seed=0)
    assert isinstance(found.x, OnDevice)
    found.mean(), found.std(), found.draw(2)


@pytest.mark.parametrize("sde", PAPER, ids=name)
def test_exact_models(device, sde):
    model = gaussian(sde)
    x = model.sample(N, seed=0).float().to(DEVICE)
    for view in VIEWS:
        getattr(model, view)(x, each_time())
    model.log_prob(x, 0.3), model.posterior(x, 0.3)
    sf.sample(model, N, solve.DDIM(), steps=3, x_init=x, prior="exact")


def test_what_is_made_of_samples(device):
    model = network(None, "data")
    solver = solve.tune(model, 3, pilots=16)
    x = sf.sample(model, N, solver, seed=0)
    assert isinstance(sf.slerp(x[0], x[1], 3), OnDevice)
    samples = torch.stack([x, x + 1]).transpose(0, 1)
    calibrate(samples, x)


def test_a_table_is_scaled_in_float64_before_it_moves(device):
    rows = array(2000 + torch.randn(12, D, generator=torch.Generator().manual_seed(0)))
    feed = Feed(rows, TrainConfig(batch_size=N), sf.VP())
    batch = feed.batch(0, next(iter(feed.raw(0, 1))), Process.device)
    assert isinstance(batch.x0, OnDevice)


class DoubleWell(sf.SDE):
    """A process without a kernel."""

    def drift(self, x, t):
        return x - x**3

    def diffusion(self, x, t):
        return 0.5


@pytest.mark.parametrize("trace", ["exact", "sliced", "finite"])
def test_processes_without_a_kernel(device, trace):
    model = sf.ScoreModel(Net().to(DEVICE), DoubleWell(), "score", shape=(D,))
    sf.ssm_loss(model, states(), trace=trace, seed=0).mean().backward()
    sf.sample(model, N, sf.EulerMaruyama(), steps=3, seed=0, prior=torch.randn(50, D))


def test_a_model_under_another_sde(device):
    sf.sample(network(sf.VE(exact=True)).under(sf.VP()), N, solve.DDIM(), steps=3, seed=0, t_start=0.5, x_init=states())


class Rates(nn.Module):
    """Logits (B, L, S) of a sequence."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(states, 8), nn.Linear(8, states)

    def forward(self, x, t):
        return self.out(self.table(x) + t[:, None, None])


@pytest.mark.parametrize("process", [discrete.Uniform(5), discrete.Absorbing(5)], ids=name)
def test_jump_processes(device, process):
    model = discrete.JumpModel(Rates(process.S).to(DEVICE), process, shape=(6,))
    x = torch.randint(0, 5, (N, 6)).to(DEVICE)
    model.ratio(x, 0.5), model.posterior(x, 0.5), model.marginal(x, 0.5)
    assert isinstance(sf.sample(model, N, discrete.Tweedie(), steps=3, seed=0), OnDevice)


def test_what_the_device_makes_of_float64_is_an_error(device):
    with pytest.raises(AssertionError, match="on a device that has none"):
        states().double()
    with pytest.raises(AssertionError, match="mixes the device with a CPU tensor"):
        states() + torch.ones(N, D)


@pytest.mark.parametrize(
    "process", [sf.discrete.Absorbing(4), sf.discrete.Uniform(4), sf.discrete.Ordinal(4)], ids=name
)
def test_states(device, process):
    masked = process.mask is not None
    net = sf.nn.StateMLP(process.S, D, 4, width=8, depth=1, time=not masked).to(DEVICE)
    model = sf.discrete.JumpModel(net, process, (D,), clock=None if masked else "t")
    x = torch.randint(4, (N, D), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for view in ("ratio", "posterior", "marginal"):
        assert isinstance(getattr(model, view)(x, each_time()), OnDevice)
    losses = [sf.discrete.score_entropy, sf.discrete.masked_loss if masked else sf.discrete.continuous_elbo]
    for loss in losses:
        each = loss(model, x, seed=0)
        assert isinstance(each, OnDevice)
        each.mean().backward()
    solvers = [sf.discrete.Euler(), sf.discrete.Tweedie(), sf.discrete.TauLeaping()]
    solvers += [
        sf.PC(sf.discrete.Tweedie(), corrector) for corrector in (sf.discrete.Gibbs(), sf.discrete.RateCorrector())
    ]
    solvers += [sf.discrete.Ancestral(), sf.discrete.FirstHitting()] if masked else []
    hook = sf.discrete.Infill(torch.zeros(D, dtype=torch.int64), torch.arange(D) == 0)
    for solver in solvers:
        assert isinstance(sf.sample(model, N, solver, steps=3, seed=0, hooks=[hook]), OnDevice)
    sf.discrete.bound(model, x, samples=2, seed=0)
