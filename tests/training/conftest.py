import pytest
import torch

import scorefield as sf
from scorefield import nn


def vector_model(seed=0, **options):
    """A small network for points of the plane."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sf.ScoreModel(nn.MLP(2, width=16, depth=1, **options), sf.VP(), "noise", shape=(2,))


def points(n=100):
    return 0.3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(5)) + 0.5


@pytest.fixture
def make_model():
    return vector_model


@pytest.fixture
def cloud():
    return points()


@pytest.fixture
def run_training(tmp_path, cloud):
    """sf.train with settings that suit a test: tiny, on the CPU, checkpoints every 10 steps."""

    def go(name="run", *, model=None, data=None, **options):
        settings = {
            "steps": 30,
            "batch_size": 16,
            "checkpoint_every": 10,
            "log_every": 10,
            "warmup": 5,
            "device": "cpu",
        }
        return sf.train(
            vector_model() if model is None else model,
            cloud if data is None else data,
            out=tmp_path / name,
            **(settings | options),
        )

    return go
