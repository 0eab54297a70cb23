"""Models from elsewhere: official checkpoints and folders of diffusers with random weights, and weights in float16."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import scorefield as sf
from oracles import rotated
from scorefield.diagnose import report, rounding

SHARED = Path(__file__).parents[3] / "shared" / "parity"
SDE = sf.VP()


def noise_like(model, n=16):
    low, high = model.sde.range
    draws = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand((n, *model.shape), generator=draws)


def assert_said_to_be_untrained(found):
    chapter = found.chapters["calibration"]
    assert chapter.verdict == "act"
    assert "it is untrained" in chapter.found
    assert found.chapters["precision"].verdict == "good"
    assert not found.left_out


@pytest.mark.parametrize("name", ["12_checkpoint_ve_ncsnpp", "12_checkpoint_vp_ddpm"])
def test_an_official_checkpoint_in_miniature_is_said_to_be_untrained(name):
    if not (SHARED / f"{name}.pth").exists():
        pytest.skip(f"the recording {name} is not here")
    config = json.loads((SHARED / f"{name}.json").read_text())["config"]
    model = sf.pretrained.load_checkpoint(SHARED / f"{name}.pth", config)
    assert_said_to_be_untrained(report(model, noise_like(model), only=["start", "calibration", "precision"]))


def test_a_folder_of_diffusers_with_random_weights_is_said_to_be_untrained(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    model = sf.pretrained.from_diffusers(tmp_path)
    found = report(model, noise_like(model), only=["start", "calibration", "precision", "curl"])
    assert_said_to_be_untrained(found)


class Linear(torch.nn.Module):
    """E[x_0 | x_t] of N(mean, cov), exactly, in the dtype of its weights."""

    exact_time = True

    def __init__(self):
        super().__init__()
        mean, cov = rotated(3)
        values, basis = torch.linalg.eigh(cov)
        self.mean, self.values, self.basis = (torch.nn.Parameter(v, False) for v in (mean, values, basis))

    def forward(self, x, t):
        a, s = (f(t.double())[:, None] for f in (SDE.alpha, SDE.sigma))
        gain = (a * self.values / (a**2 * self.values + s**2)).to(x)
        return self.mean + (((x - a.to(x) * self.mean) @ self.basis) * gain) @ self.basis.T


CHAPTERS = ("start", "calibration", "precision", "curl", "memory")


@pytest.mark.parametrize(("dtype", "disease"), [("float16", True), ("float32", False), ("float64", False)])
def test_weights_in_float16_are_named_and_nothing_else_is(dtype, disease):
    mean, cov = rotated(3)
    oracle = sf.GaussianMixture(mean[None], cov[None], None, SDE)
    model = sf.ScoreModel(Linear(), SDE, "data", shape=(3,)).to(getattr(torch, dtype))
    data, train = (oracle.sample(1000, seed=k).float() for k in (1, 2))
    found = report(model, data, train, CHAPTERS)
    assert {name for name, c in found.chapters.items() if c.verdict == "act"} == ({"precision"} if disease else set())
    assert ("float32" in found.chapters["precision"].advice) == disease


def test_what_rounding_costs_is_the_error_of_the_number_that_is_rounded():
    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.tensor([[0.1, 0.7]], dtype=torch.float64))

        def forward(self, x, t):
            return self.value.expand(len(x), 2)

    model = sf.ScoreModel(Constant(), SDE, "data", shape=(2,)).half()
    # `rounding` widens the rounded weights again: what it sees is arithmetic, and a constant has none but that of the state.
    assert max(v.error for v in rounding(model, torch.zeros(20, 2))) < 1e-4
    shifted = sf.ScoreModel(Shifted(), SDE, "data", shape=(2,)).half()
    found = rounding(shifted, torch.zeros(20, 2))
    wrong = float(torch.tensor(0.1).half().double() + 100) - float(torch.tensor(100.1).half())
    for level in found:
        wanted = abs(wrong) * float(SDE.alpha(level.t)) / float(SDE.sigma(level.t))
        assert level.error == pytest.approx(wanted, rel=1e-3)
    assert math.isinf(
        rounding(sf.ScoreModel(Shifted(1e6), SDE, "data", shape=(2,)).half(), torch.zeros(20, 2))[0].error
    )


class Shifted(torch.nn.Module):
    """0.1 and a large number, added in the dtype of the weights."""

    def __init__(self, by=100.0):
        super().__init__()
        self.small = torch.nn.Parameter(torch.full((1, 2), 0.1, dtype=torch.float64))
        self.by = by

    def forward(self, x, t):
        return (self.small + self.by).expand(len(x), 2)
