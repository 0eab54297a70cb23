"""The demo: what it says is what it did, however it ended; it needs neither a terminal nor matplotlib."""

import signal
import sys

import pytest
import torch

import scorefield as sf
from scorefield import demo
from scorefield.cli import main
from scorefield.training import loss as objective
from scorefield.training import recipes


def tiny_model(data):
    net = sf.nn.UNet(1, 8, (1, 1, 1), 1, ())
    return sf.ScoreModel(net, sf.VP(), "edm", shape=(1, 28, 28), sigma_data=0.6)


@pytest.fixture
def small(monkeypatch):
    """The demo of a narrow network, with loose tolerances and few digits."""
    whole = recipes.recipe("digits")
    config = whole.config.updated(batch_size=4, warmup=1, dequantize=False)
    tiny = recipes.Recipe("digits", tiny_model, config, whole.shape, "digits")
    monkeypatch.setattr(demo, "recipe", lambda name: tiny)
    for name, value in {"SCORED": 2, "SCORED_AT_A_TIME": 2, "TOLERANCE": 0.5, "COLUMNS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def stop_at(step, monkeypatch):
    real, steps = objective.dsm_loss, []

    def loss(*args, **options):
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **options)

    monkeypatch.setattr(objective, "dsm_loss", loss)


def test_a_demo_that_is_ended_claims_nothing_and_goes_on(small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        figures = demo.main(out, steps=6, pc_steps=2, progress=False)
    assert figures == {"finished": False, "step": 3, "stopped": "SIGTERM"}
    assert "stopped by SIGTERM at training step 3; the same command goes on" in capsys.readouterr().out
    assert not list(out.glob("*.html")) + list(out.glob("*.png"))
    figures = demo.main(out, steps=6, pc_steps=2, progress=False)
    assert (figures["finished"], figures["steps"], figures["scored"]) == (True, 6, 2)
    page = (out / "report.html").read_text()
    for words in (
        "6 steps",
        "bits/dim",
        "Real digits",
        "What to do next",
        "scorefield diagnose",
        "<svg",
        f"{figures['bits_per_dim']:.3f}",
    ):
        assert words in page
    # Training is that of both attempts, as the log has it, not of the second alone.
    assert f"<td>{sf.training.log.read_log(out)[-1]['seconds']:.0f} s</td>" in page


def test_the_clock_decides_the_steps_and_the_page_says_how_many(small, tmp_path):
    figures = demo.main(tmp_path / "demo", minutes=0.015, pc_steps=2, progress=False)
    assert figures["finished"]
    assert figures["steps"] > 1
    assert f"{figures['steps']:,} steps" in (tmp_path / "demo" / "report.html").read_text()
    assert sf.load(tmp_path / "demo").shape == (1, 28, 28)


def test_minutes_are_positive(capsys):
    assert main(["demo", "--minutes", "-1"]) == 2
    assert "--minutes=-1.0 is impossible" in capsys.readouterr().err


def test_real_digits_are_plain():
    held_out = sf.digits(train=False)
    found = [held_out.subset((held_out.labels == k).nonzero().flatten()[:8].tolist()) for k in range(10)]
    assert demo.plain_share(torch.cat([part.tensor() for part in found])) > 0.9
