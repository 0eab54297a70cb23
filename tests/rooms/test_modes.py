"""What learns, learns the same under `torch.no_grad()`, in inference mode, and whatever the default device."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield import bridge, bsde, diagnose, discrete, dynamics, phase

torch.set_num_threads(1)
DATA = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
LINE = torch.linspace(0, 1, 40, dtype=torch.float64)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.layer(x)


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def train(net, folder):
    run = sf.train(sf.ScoreModel(net, sf.VP(), shape=(2,)), DATA, out=folder, steps=2, batch_size=4, progress=False)
    return weights(run.model)


def tune(how):
    def act(net, folder):
        options = {"steps": 1, "batch_size": 4, "samples": 4, "chain_steps": 2, "progress": False}
        model = sf.ScoreModel(net, sf.VP(), shape=(2,))
        return weights(sf.reward.finetune(model, lambda x: x.sum(1), how, **options).model)

    return act


def backward(net, folder):
    options = {"steps": 3, "paths": 8, "train_steps": 3, "lr": 0.1, "progress": False}
    return bsde.solve(lambda t, y, z: -y, torch.sin, method="deep", **options).y0


def between(net, folder):
    def ends(n, g):
        return torch.randn(n, 2, generator=g, device=g.device)

    sizes = {"rounds": 1, "train_steps": 2, "pairs": 8, "batch": 4, "steps": 2, "progress": False}
    return bridge.schrodinger_bridge(ends, ends, (net, net), **sizes).pairs[0]


def density(net, folder):
    x = DATA[:12].numpy()
    fitted = sf.ScoreDensity(steps=2, members=2, width=4, depth=1, random_state=0).fit(x)
    return torch.from_numpy(fitted.score_samples(x))


def model(net):
    return sf.ScoreModel(net, sf.VP(), "noise", shape=(2,))


def elsewhere():
    """A default device that holds nothing, so that whatever goes there is noticed."""
    return torch.device("meta")


LEARNERS = {
    "train": train,
    "flow map": lambda net, folder: weights(
        dynamics.learn_flow_map(LINE, LINE.sin(), 0.1, labels=20, steps=3, progress=False)
    ),
    "backward": backward,
    "bridge": between,
    "density": density,
    "sliced": lambda net, folder: sf.ssm_loss(model(net), DATA, trace="sliced", seed=0),
    "implicit": lambda net, folder: sf.ssm_loss(model(net), DATA, trace="exact", seed=0),
    "fokker planck": lambda net, folder: sf.fokker_planck_loss(model(net), DATA, probes=2, seed=0),
    "adjoint": tune(sf.reward.AdjointMatching()),
    "policy": tune(sf.reward.PolicyGradient()),
    "through": tune(sf.reward.DirectBackpropagation()),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, elsewhere])
@pytest.mark.parametrize("learner", LEARNERS)
def test_it_learns_wherever_it_is_called(learner, mode, tmp_path):
    found = []
    for k, around in enumerate((torch.enable_grad, mode)):
        torch.manual_seed(0)
        net = Net()
        with around():
            found.append(LEARNERS[learner](net, tmp_path / str(k)).clone().detach())
    assert torch.equal(*found)


def test_weights_that_cannot_learn_are_refused():
    with torch.inference_mode():
        net = Net()
    with pytest.raises(ValueError, match="network was made under"):
        between(net, None)


JOINT = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
BOX, PAIRS = sf.ReflectedVE(), bridge.Bridge(0.5)
DRAWS = {
    "points": lambda: sf.sample(sf.Empirical(DATA, sf.VP()), 4, seed=0),
    "their likelihood": lambda: sf.log_prob(sf.Empirical(DATA, sf.VP()), DATA[:3], "exact").nats,
    "polynomial": lambda: sf.sample(sf.polynomial_score(DATA, sf.VP()), 4, sf.DDIM(), steps=3, seed=0),
    "walls": lambda: sf.sample(sf.ScoreModel(lambda x, t: -x, BOX, shape=(2,)), 4, sf.EulerMaruyama(), steps=3, seed=0),
    "phase": lambda: sf.sample(
        phase.PhaseModel(lambda x, t: -x, sf.CLD(), shape=(2,)), 4, phase.SSCS(2), steps=3, seed=0
    ),
    "ends": lambda: sf.sample(
        bridge.BridgeModel(lambda x, t, x1: x1, PAIRS),
        4,
        bridge.BridgeAncestral(),
        steps=3,
        x_init=DATA[:4],
        x1=DATA[:4],
        seed=0,
    ),
    "map": lambda: sf.sample(sf.FlowMap(lambda x, t: -x, sf.VP(), shape=(2,)), 4, seed=0),
    "prior": lambda: diagnose.fit_prior(sf.VP(), DATA, 0.5, components=2).sample(3, seed=0),
    **{
        type(p).__name__: lambda p=p: sf.sample(discrete.Table(JOINT, p), 4, steps=3, seed=0)
        for p in (discrete.Uniform(3), discrete.Absorbing(3), discrete.Ordinal(3))
    },
    "bound": lambda: discrete.bound(discrete.Table(JOINT, discrete.Uniform(3)), STATES, 2, seed=0).nats,
    "states' loss": lambda: discrete.continuous_elbo(discrete.Table(JOINT, discrete.Absorbing(3)), STATES, seed=0),
}
STATES = torch.tensor([[0, 1], [2, 2]])


@pytest.mark.parametrize("door", DRAWS)
def test_the_default_device_is_none_of_the_rooms_business(door):
    expected = DRAWS[door]()
    with elsewhere():
        assert torch.equal(DRAWS[door](), expected)


def test_data_of_ones_own_is_learned_whatever_the_default_device(tmp_path):
    def run(name):
        return weights(sf.fit(DATA, out=tmp_path / name, steps=2, judged=False, progress=False, device="cpu").model)

    expected = run("here")
    with elsewhere():
        assert torch.equal(run("there"), expected)
