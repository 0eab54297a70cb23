"""The time-dependent classifier: its network, its loss, and its accuracy beside the exact one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.guide import Classifier, accuracy, classifier_loss
from scorefield.nn import VectorClassifier, WideResNet

torch.set_num_threads(1)
MEANS = torch.tensor([[0.9, -0.4], [-0.7, 0.6], [0.1, 1.2]])


def labelled(sde: sf.GaussianSDE, n: int, seed: int) -> tuple[sf.GaussianMixture, Tensor, Tensor]:
    """Equal parts of three overlapping classes."""
    label = torch.arange(n) % 3
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return sf.GaussianMixture(MEANS, 0.16, None, sde), MEANS[label] + 0.4 * z, label


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_wide_residual_network(dims):
    net = WideResNet(2, 5, depth=10, width=1, dims=dims)
    x, level = torch.randn(3, 2, *[8] * dims), torch.tensor([0.01, 1.0, 50.0])
    assert net(x, level).shape == (3, 5)
    assert net(x, level).abs().max() < 1e-3  # the last layer starts at zero
    for p in net.parameters():  # every branch starts at zero as well
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    net.eval()
    assert torch.allclose(net(x, level)[1:2], net(x[1:2], level[1:2]), atol=1e-5)
    assert not torch.allclose(net(x, level)[0], net(x, torch.full((3,), 5.0))[0], atol=1e-3)
    assert type(net)(**net.config).config == net.config


def test_the_papers_network_is_wide_resnet_28_10():
    with torch.device("meta"):
        net = WideResNet(3, 10, depth=28, width=10)
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 25  # of 28 layers, three are shortcuts or dense
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(36.5e6, rel=0.05)


@pytest.mark.parametrize("sde", [sf.VP(), sf.SubVP(), sf.VE()], ids=lambda s: type(s).__name__)
def test_the_classifiers_input_is_of_unit_size_at_all_times(sde):
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            seen.append((x.std(), level))
            return x

    clf = Classifier(Net(), sde)
    x0 = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    for t in (1e-4, 0.3, 1.0):
        mean, std = sde.kernel(x0, t)
        clf(mean + std * torch.randn(4000, 1, generator=torch.Generator().manual_seed(1)), t)
        size, level = seen[-1]
        assert float(size) == pytest.approx(1, abs=0.05)
        assert torch.allclose(level.double(), torch.exp(-0.5 * sde.log_snr(t)).expand(4000), rtol=1e-5)


def test_loss_of_the_exact_classifier_is_the_conditional_entropy():
    """And no other classifier's is below it: Gibbs' inequality, at a fixed time on the same noise."""
    mixture, x0, label = labelled(sf.VP(), 6000, 0)

    def exact(x, t):
        return mixture.posterior(x, t).log()

    def loss(clf) -> float:
        return float(classifier_loss(clf, sf.VP(), x0, label, seed=1, t=0.2).mean())

    x = mixture.sample(6000, 0.2, seed=torch.Generator().manual_seed(2))
    p = mixture.posterior(x, 0.2)
    entropy = float(-(p * p.log()).sum(1).mean())
    assert loss(exact) == pytest.approx(entropy, abs=0.03)
    assert loss(lambda x, t: 1.2 * exact(x, t)) > loss(exact)
    assert loss(lambda x, t: 0.8 * exact(x, t)) > loss(exact)
    assert loss(lambda x, t: torch.zeros(len(x), 3)) == pytest.approx(math.log(3))


def test_loss_is_mixed_over_times_and_repeats_with_its_seed():
    _, x0, label = labelled(sf.VP(), 30, 0)
    seen = []

    def clf(x, t):
        seen.append(t)
        return torch.zeros(len(x), 3)

    first, second = (classifier_loss(clf, sf.VP(), x0, label, seed=4) for _ in range(2))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(first, second)
    cells = (seen[0] * 30).floor().long().sort().values
    assert len(cells.unique()) >= 28  # one in each thirtieth of the time axis, which starts at 1e-5


def test_accuracy_of_a_trained_classifier_is_that_of_bayes_at_every_time():
    """Song et al. 2021, App. I.1, against Bayes' rule: within 2 points, after a training of seconds."""
    sde = sf.VP()
    torch.manual_seed(0)
    clf = Classifier(VectorClassifier(2, 3, width=48, depth=2), sde)
    optimiser = torch.optim.Adam(clf.parameters(), 4e-3)
    draws = torch.Generator().manual_seed(0)
    for step in range(400):
        _, x0, label = labelled(sde, 384, 1000 + step)
        loss = classifier_loss(clf, sde, x0, label, seed=draws).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    mixture, x0, label = labelled(sde, 6000, 1)
    times = (0.01, 0.1, 0.3, 0.6, 1.0)
    found = accuracy(clf, sde, x0, label, times)
    bayes = accuracy(lambda x, t: mixture.posterior(x, t), sde, x0, label, times)
    assert (found - bayes).abs().max() < 0.02
    x = sf.sample(mixture | sf.ClassifierGuidance(clf, 1), 4000, steps=30, seed=torch.Generator().manual_seed(0))
    assert (x.mean(0) - MEANS[1]).norm() < 0.2 * MEANS[1].norm()


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="depth=12"):
        WideResNet(depth=12)
