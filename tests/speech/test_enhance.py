"""Recordings of any length: the windows give what the whole gives, the command tells what it did and refuses in one line."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
import torch

import scorefield as sf
from cli_tools import assert_one_line
from scorefield.cli import main
from scorefield.coefficients import expand
from scorefield.data import read_wave, si_sdr
from scorefield.errors import InputError
from scorefield.speech import Enhancer
from speech_files import folder, noisy, tones, write

SPEC = sf.data.Spectrogram(32, 8, 0.5, 0.45, 8000)
SDE = sf.VPIDM(scale=2**-0.5)


def exact(frames, gain=0.6, spec=SPEC, sde=SDE):
    """The model of x_0 | y ~ N(gain y, 0.05), frame by frame, in float64."""

    def score(u, t, y):
        a, s = expand(sde.alpha(t), u), expand(sde.sigma(t), u)
        return -(u - a * gain * y) / (a**2 * 0.05 + s**2)

    model = sf.ScoreModel.from_score(score, sde, shape=(2, spec.bins, frames))
    model.register_buffer("dtype_of", torch.zeros(1, 1, dtype=torch.float64))
    return model


def recording(samples):
    return torch.randn(samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("solver", [None, sf.EulerMaruyama()], ids=["flow", "sde"])
@pytest.mark.parametrize(("frames", "batch"), [(97, 1), (97, 16), (130, 3)])
def test_windows_give_what_the_whole_gives(solver, frames, batch):
    """A model that sees one frame at a time: no seam, whatever the windows, and with a solver that draws noise."""
    wave, rest = recording(3001), {"solver": solver, "steps": 4}
    whole = Enhancer(exact(377), SPEC, **rest)(wave, seed=3)
    parts = Enhancer(exact(frames), SPEC, batch_size=batch, **rest)(wave, seed=3)
    assert (whole.windows, whole.nfe, parts.nfe) == (1, 6, 6)
    assert parts.windows > 2
    torch.testing.assert_close(parts.wave, whole.wave, rtol=0, atol=1e-12)
    assert not torch.allclose(parts.wave, Enhancer(exact(frames), SPEC, **rest)(wave, seed=4).wave)


@pytest.mark.parametrize("samples", [20, 767, 768, 769, 1500, 2000])
def test_every_length_comes_back(samples):
    """x_0 = y: what is clean already returns, at every length around that of a window, 768."""
    sde = sf.VPIDM(scale=1e-4)
    model = sf.ScoreModel.from_score(
        lambda u, t, y: -(u - expand(sde.alpha(t), u) * y) / expand(sde.sigma(t) ** 2, u), sde
    )
    model.shape = (2, SPEC.bins, 97)
    model.register_buffer("dtype_of", torch.zeros(1, 1, dtype=torch.float64))
    wave = 0.01 * recording(samples)
    found = Enhancer(model, SPEC)(wave).wave
    torch.testing.assert_close(found, wave, rtol=0, atol=1e-10)


def test_the_volume_does_not_matter():
    wave, enhancer = recording(1000), Enhancer(exact(97), SPEC)
    torch.testing.assert_close(enhancer(8 * wave).wave, 8 * enhancer(wave).wave, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Enhancer(exact(97), sf.data.Spectrogram()), r"expected \(2, 256, frames\)"),
        (lambda: Enhancer(exact(97), SPEC)(torch.zeros(1000)), "silent"),
        (lambda: Enhancer(exact(97), SPEC)(torch.zeros(0)), "give one recording"),
        (lambda: Enhancer(exact(97), SPEC)(torch.zeros(2, 500)), "give one recording"),
        (lambda: Enhancer.of_run("digits"), "was not trained on speech"),
    ],
)
def test_what_cannot_be_enhanced_is_told(call, told):
    with pytest.raises(InputError, match=told):
        call()


def test_the_network_of_frames_is_local():
    """A frame depends on two neighbours on either side and on the quiet quantile; the mask multiplies y."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sf.nn.FrameMLP(8)
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    shown = torch.randn(1, 4, 8, 30, generator=torch.Generator().manual_seed(1))
    shown[..., :8] *= 1e-3  # the quiet moments, which stay the same
    moved = shown.clone()
    moved[..., 20] *= 1.5
    t = torch.tensor([0.4])
    changed = (net(moved, t) - net(shown, t)).abs().amax((0, 1, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [18, 19, 20, 21, 22]
    with pytest.raises(ValueError, match=r"expected \(B, 4, 8, frames\)"):
        net(shown[:, :2], t)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on synthetic recordings, of few steps; not to be written into."""
    place = tmp_path_factory.mktemp("speech")
    folder(place / "data", 4, 1.5)
    words = ["train", "speech", "--data", place / "data", "--out", place / "run", "--steps", 10, "--device", "cpu"]
    assert main([str(w) for w in (*words, "--checkpoint-every", 10, "--batch-size", 2)]) == 0
    return place


@pytest.fixture
def cli(capsys):
    def call(*args):
        status = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_command_makes_a_recording_clean(cli, run, tmp_path):
    """Twice the same by the seed, of the length and rate of the input, and SI-SDR as told."""
    clean = tones(2.3, 9)
    write(tmp_path / "in.wav", noisy(clean, 5.0, 9))
    write(tmp_path / "clean.wav", clean)
    words = ["enhance", run / "run", "--audio", tmp_path / "in.wav", "--out", tmp_path / "out.wav", "--device", "cpu"]
    status, out, _ = cli(*words, "--clean", tmp_path / "clean.wav", "--json")
    told = json.loads(out)
    assert status == 0
    assert (told["rate"], told["windows"], told["nfe"]) == (8000, 5, 8)
    found = read_wave(tmp_path / "out.wav", 8000)[0]
    assert len(found) == len(clean)
    after = float(si_sdr(read_wave(tmp_path / "clean.wav")[0], found))
    assert told["si_sdr"]["after"] == pytest.approx(after, abs=0.02)
    assert told["si_sdr"]["before"] == pytest.approx(5.0, abs=0.1)
    first = (tmp_path / "out.wav").read_bytes()
    assert cli(*words)[0] == 0
    assert (tmp_path / "out.wav").read_bytes() == first
    cli(*words, "--seed", 1)
    assert (tmp_path / "out.wav").read_bytes() != first


def test_solver_and_steps_are_those_asked_for(cli, run, tmp_path):
    write(tmp_path / "in.wav", noisy(tones(0.5, 9)))
    words = ["enhance", run / "run", "--audio", tmp_path / "in.wav", "--out", tmp_path / "out.wav", "--device", "cpu"]
    status, out, _ = cli(*words, "--sampler", "euler-maruyama", "--steps", 9, "--json")
    assert (status, json.loads(out)["nfe"], json.loads(out)["windows"]) == (0, 11, 1)
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getsampwidth()) == (4000, 8000, 2)


BAD = {
    "silent": (lambda p: write(p, np.zeros(4000)), "is silent"),
    "clipped": (lambda p: write(p, 3 * np.sin(np.arange(4000) / 9)), "or pass --clipped"),
    "stereo": (lambda p: write(p, np.stack([tones(0.5)] * 2, 1), channels=2), "choose by --channel 1"),
    "rate": (lambda p: write(p, tones(0.5), rate=16_000), "expected 8,000"),
    "empty": (lambda p: write(p, np.zeros(0)), "holds no samples"),
    "not a wave": (lambda p: p.write_bytes(b"\xff\xfb\x90d" * 9), "is not a wave file"),
    "absent": (lambda p: None, "does not exist"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_recording_that_cannot_be_used_is_told_in_one_line(cli, run, tmp_path, fault):
    make, told = BAD[fault]
    make(tmp_path / "in.wav")
    status, _, err = cli("enhance", run / "run", "--audio", tmp_path / "in.wav", "--out", tmp_path / "out.wav")
    assert status == 2
    assert_one_line(err, "in.wav", told)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["enhance", "digits", "--audio", "a.wav"], "digits was not trained on speech"),
        (["enhance", "RUN", "--audio", "a.wav", "--out", "b.mp3"], "use .wav"),
        (["enhance", "RUN", "--audio", "a.wav", "--sampler", "what"], "what"),
        (["train", "speech", "--data", "nowhere"], "nowhere has no folder clean"),
        (["train", "speech", "--data", "nowhere", "--levels", "4"], "--levels means nothing for preset speech"),
        (["train", "speech", "--data", "nowhere", "--length", "4"], "--length, --tokenizer and --fold are for text"),
        (["train", "speech"], "--data is missing"),
        (
            ["sample", "RUN", "-n", "1", "--out", "a.npy"],
            "restores recordings and does nothing else; use scorefield enhance",
        ),
        (["likelihood", "RUN", "--data", "digits"], "use scorefield enhance"),
    ],
)
def test_words_that_do_not_fit_are_told_in_one_line(cli, run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = cli(*[str(run / "run") if w == "RUN" else w for w in words])
    assert status == 2
    assert_one_line(err, told)
