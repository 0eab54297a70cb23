"""A small run of the digits' shape, and what the page would be given."""

import pytest
import torch

import scorefield as sf
from scorefield import nn


def small_run(out, classes=0):
    """A run on 28 x 28 digits, of two steps of a network that takes milliseconds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.UNet(1, 8, (1, 1), 1, (), num_classes=classes)
    model = sf.ScoreModel(net, sf.VP(), "edm", shape=(1, 28, 28))
    data = sf.digits()[:16]
    sf.train(model, data, out=out, steps=2, batch_size=4, warmup=1, device="cpu", progress=False)
    return str(out)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="session")
def classes(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "classes", 10)
