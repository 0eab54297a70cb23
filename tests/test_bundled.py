"""The model inside the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scorefield as sf
from scorefield.bundled import run_folder
from scorefield.data import digits
from scorefield.errors import ScorefieldError
from scorefield.evaluation import digit_classifier


@pytest.fixture(scope="module")
def model() -> sf.ScoreModel:
    return sf.load("digits")


def test_it_is_small_and_comes_with_a_card() -> None:
    folder = run_folder("digits")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 3e6
    assert "scorefield train density" in (folder / "README.md").read_text("utf-8")


def test_a_folder_of_the_same_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScorefieldError, match="not a run"):
        sf.load("digits")


def test_its_density_of_held_out_digits_is_far_above_independent_pixels(model: sf.ScoreModel) -> None:
    x = sf.likelihood.dequantize(digits(train=False)[:8].read(range(8)), seed=0)
    bits = sf.log_prob(model, x, seed=0, solver=sf.Dopri5(1e-2, 1e-2)).bits_per_dim()
    # eight digits scatter by 0.25, so that their mean has a standard error of 0.09
    assert float(bits.mean()) < 1.2 + 4 * 0.09
    assert float(bits.min()) > 0.4


def test_its_samples_are_digits(model: sf.ScoreModel) -> None:
    x = sf.sample(model, 24, sf.DDIM(eta=1.0), steps=30, seed=0)
    sure = torch.softmax(digit_classifier()(x), 1).amax(1)
    # of real digits 97 % are read with this certainty, of these samples 54 %, of smoothed noise next to none
    assert float((sure > 0.9).double().mean()) >= 0.4


def test_codes_decode_to_the_images(model: sf.ScoreModel) -> None:
    x = sf.likelihood.dequantize(digits(train=False)[:1].read(range(1)), seed=0)
    back = sf.decode(model, sf.encode(model, x))
    # of an image with a pixel that the model holds to be all but impossible, that pixel comes back less exactly
    assert float((back - x).square().mean().sqrt()) < 1e-3


def test_the_distilled_one_draws_digits_in_two_jumps() -> None:
    folder = run_folder("digits-fast")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 3e6
    assert "benchmarks/distill.py" in (folder / "README.md").read_text("utf-8")
    model = sf.load("digits-fast")
    assert isinstance(model, sf.FlowMap)
    solution = sf.sample(model, 48, steps=2, seed=0, full=True)
    assert solution.nfe.tolist() == [2] * 48
    read = torch.softmax(digit_classifier()(solution.x), 1)
    # the teacher's denoised noise, where distillation began, is one blurred digit
    assert len(read.argmax(1).unique()) >= 8
    assert float((read.amax(1) > 0.9).double().mean()) >= 0.1
