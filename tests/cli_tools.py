"""What the tests of the command line share."""

import functools
import inspect

import torch

import scorefield as sf
from scorefield import nn
from scorefield.data import array


def assert_one_line(err, *words):
    """One line on standard error, with all of the words."""
    assert err.startswith("scorefield: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


def narrow(monkeypatch, network, **sizes):
    """Networks of a class get these sizes, whatever a recipe asks for."""
    make = network.__init__

    @functools.wraps(make)
    def smaller(*args, **options):
        given = inspect.signature(make).bind(*args, **options)
        given.arguments |= sizes
        return make(*given.args, **given.kwargs)

    monkeypatch.setattr(network, "__init__", smaller)


def tiny_run(out, channels=1, labels=False):
    """A run on images of 8 x 8, of two steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.UNet(channels, 8, (1, 2), 1, (), num_classes=3 if labels else 0)
    model = sf.ScoreModel(net, sf.VP(), "noise", shape=(channels, 8, 8))
    pixels = torch.randint(0, 256, (16, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = array(pixels, labels=torch.arange(16) % 3 if labels else None)
    sf.train(model, data, out=out, steps=2, batch_size=4, warmup=1, checkpoint_every=1, device="cpu")
    return out
