"""Clean and noisy recordings as training data: both of one place, one scale, and refused in one line where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.data import Spectrogram, pairs, read_wave
from scorefield.data.pairs import fitted, level, spectrogram_of
from scorefield.errors import InputError, ScorefieldWarning
from speech_files import folder, noisy, tones, write


def test_items_are_both_spectrograms_of_one_piece(tmp_path):
    data = pairs(folder(tmp_path), frames=32, train=False)
    spec, samples = data.codec, 31 * data.codec.hop
    assert (data.shape, data.paired, data.random) == ((2, 64, 32), True, False)
    x, y = (read_wave(tmp_path / kind / "1.wav")[0] for kind in ("clean", "noisy"))
    first = next(i for i in range(data.size) if data.item_name(i) == "1.wav")
    piece = data.read([first + 2])[0]
    start = 2 * (samples // 2)
    for channels, wave in ((piece[:2], x), (piece[2:], y)):
        torch.testing.assert_close(channels, spec(wave[None, start : start + samples] / level(y))[0])


def test_pieces_cover_every_sample(tmp_path):
    write(tmp_path / "clean" / "a.wav", tones(1.0))
    write(tmp_path / "noisy" / "a.wav", noisy(tones(1.0)))
    data = pairs(tmp_path, frames=32, train=False)
    samples = 31 * data.codec.hop
    seen = torch.zeros(8000)
    for _, start in data.read.pieces:
        start = max(0, min(start, 8000 - samples))
        seen[start : start + samples] += 1
    assert int(seen.min()) >= 1


def test_pieces_move_in_training_alone(tmp_path):
    place = folder(tmp_path)
    train, held = pairs(place, frames=32), pairs(place, frames=32, train=False)
    torch.manual_seed(0)
    assert not torch.equal(train.read([0]), train.read([0]))
    assert torch.equal(held.read([0]), held.read([0]))


def test_one_click_does_not_set_the_level():
    wave = torch.full((8000,), 0.1)
    wave[500] = 1.0
    assert level(wave) == pytest.approx(0.1)
    assert level(torch.tensor([0.0] * 1999 + [0.5])) == 0.5  # where all else is silence


@pytest.mark.parametrize("samples", [3, 9, 20])
def test_short_waves_go_back_and_forth(samples):
    wave = torch.arange(5.0)[None]
    expected = torch.tensor([0, 1, 2, 3, 4, 4, 3, 2, 1, 0] * 2).float()[: max(5, samples)]
    assert torch.equal(fitted(wave, samples)[0], expected)


def test_windows_follow_the_rate():
    assert spectrogram_of(8000) == Spectrogram(126, 42, 0.5, 0.45, 8000)
    assert (spectrogram_of(16_000).n_fft, spectrogram_of(16_000).hop) == (254, 84)


def test_training_gives_the_network_y(tmp_path):
    """The loss of a batch is that of dsm_loss with the same x_0, y, times and noise."""
    from scorefield.training.batches import Feed, batch_indices
    from scorefield.training.config import TrainConfig
    from scorefield.training.loss import Objective
    from scorefield.training.recipes import recipe

    data = pairs(folder(tmp_path), frames=32, train=False)
    model = recipe("speech").build(data, 0)
    torch.nn.init.normal_(model.net.net.exit.weight, std=0.1)
    config = TrainConfig(batch_size=4)
    feed = Feed(data, config, model.sde)
    batch = feed.batch(0, next(feed.raw(0, 1)), torch.device("cpu"))
    items = data.read(batch_indices(config.seed, 0, 4, data.size))
    assert torch.equal(batch.x0, items[:, :2])
    assert torch.equal(batch.y, items[:, 2:])
    found = Objective(model, config, None)(batch)
    expected = sf.dsm_loss(model, batch.x0, t=batch.t, noise=batch.noise, y=batch.y) / (2 * 64 * 32)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, Objective(model, config, None)(batch.__class__(**{**vars(batch), "y": batch.x0})))
    halves = torch.cat([Objective(model, config, None)(part) for part in batch.parts(2)])
    torch.testing.assert_close(halves, found)


def test_a_run_is_continued_and_loaded(tmp_path):
    data = pairs(folder(tmp_path / "data"), frames=32)
    from scorefield.training.recipes import recipe

    chosen = recipe("speech")
    config = chosen.config.updated(steps=2, batch_size=2, checkpoint_every=1, sample_every=2, sample_count=2)
    for steps in (1, 2):
        torch.manual_seed(steps)  # of no consequence
        model = chosen.build(data, 0)
        end = config.updated(steps=steps, optim=config.optim.__class__(lr=1e-3, warmup=0))
        sf.train(model, data, out=tmp_path / "run", config=end, device="cpu", progress=False)
    again, spec = sf.load(tmp_path / "run"), sf.training.read_run(tmp_path / "run").data["codec"]
    assert spec["arguments"]["n_fft"] == 126
    assert (tmp_path / "run" / "samples" / "step-000002.npy").exists()
    u, y = torch.randn(2, 1, 2, 64, 40, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert again.denoise(u, 0.5, y=y).shape == u.shape


def wrong(change):
    def make(place):
        folder(place, 2)
        change(place)

    return make


LOUD = 3 * np.sin(np.arange(9600) / 9)
BAD = {
    "no folder": (lambda p: p.mkdir(), "has no folder clean; give clean/ and noisy/"),
    "no files": (lambda p: [(p / k).mkdir(parents=True) for k in ("clean", "noisy")], "clean holds no .wav files"),
    "no partner": (wrong(lambda p: (p / "noisy" / "1.wav").unlink()), "clean/1.wav has no partner"),
    "length": (wrong(lambda p: write(p / "noisy" / "1.wav", tones(1.0))), "has 8,000 samples and"),
    "rate": (wrong(lambda p: write(p / "noisy" / "1.wav", tones(1.2), rate=11_025)), "expected 8,000"),
    "silent": (wrong(lambda p: write(p / "clean" / "1.wav", np.zeros(9600))), "clean/1.wav is silent"),
    "clipped": (wrong(lambda p: write(p / "clean" / "1.wav", LOUD)), "clean/1.wav is clipped"),
    "stereo": (wrong(lambda p: write(p / "noisy" / "1.wav", np.ones((9600, 2)), channels=2)), "has 2 channels"),
    "not a wave": (wrong(lambda p: (p / "noisy" / "1.wav").write_text("hello")), "is not a wave file"),
}


@pytest.mark.parametrize("fault", BAD)
def test_folders_that_do_not_fit_are_told_in_one_line(tmp_path, fault):
    make, told = BAD[fault]
    make(tmp_path / "data")
    with pytest.raises(InputError) as error:
        pairs(tmp_path / "data")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_pairs_of_noise_alone_are_told(tmp_path):
    write(tmp_path / "clean" / "a.wav", 0.05 * tones(1.0))
    write(tmp_path / "noisy" / "a.wav", noisy(0.05 * tones(1.0), -15))
    with pytest.warns(ScorefieldWarning, match=r"1 of 1 pairs .* the first a.wav \(-15 dB\)"):
        pairs(tmp_path)
