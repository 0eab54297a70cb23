"""Wave files: read to their last bit, written whole, and refused in one line that says why."""

from __future__ import annotations

import struct
import wave

import numpy as np
import pytest
import torch

from scorefield.data import read_wave, write_wave
from scorefield.data.waves import WaveFile, clipped_share
from scorefield.errors import InputError, ScorefieldWarning
from speech_files import tones, write


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_is_read(tmp_path, width):
    x = 0.9 * np.sin(np.arange(1000) / 7)
    found, rate = read_wave(write(tmp_path / "a.wav", x, width=width))
    assert (found.dtype, rate) == (torch.float32, 8000)
    np.testing.assert_allclose(found.numpy(), x, rtol=0, atol=0.51 * 2.0 ** (1 - 8 * width) + 1e-7)


def test_sixteen_bits_come_back_bit_for_bit(tmp_path):
    whole = np.array([-32768, -1, 0, 1, 1234, 32767], dtype="<i2")
    x = torch.from_numpy(whole.astype(np.float32) / 32768)
    write_wave(tmp_path / "a.wav", x, 16_000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert file.readframes(9) == whole.tobytes()
    assert torch.equal(read_wave(tmp_path / "a.wav", 16_000)[0], x)


def test_a_part_is_that_part(tmp_path):
    x = tones(0.3)
    file = WaveFile.open(write(tmp_path / "a.wav", x))
    assert torch.equal(file.read(100, 50), file.read()[100:150])


def test_a_channel_is_chosen(tmp_path):
    left, right = tones(0.2, 0), tones(0.2, 1)
    path = write(tmp_path / "a.wav", np.stack([left, right], 1), channels=2)
    np.testing.assert_allclose(read_wave(path, channel=2)[0].numpy(), right, rtol=0, atol=2e-5)
    with pytest.raises(InputError, match="has no channel 3"):
        read_wave(path, channel=3)


def test_too_loud_is_turned_down_as_a_whole(tmp_path):
    with pytest.warns(ScorefieldWarning, match=r"2\.00 of full scale"):
        write_wave(tmp_path / "a.wav", torch.tensor([2.0, -1.0, 0.5]), 8000)
    found = read_wave(tmp_path / "a.wav")[0]
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5, 0.25]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [1, 2])
def test_cut_peaks_are_counted(tmp_path, width):
    """Samples at full scale count where three or more stand together, whatever the number of bits."""
    x = 0.5 * np.sin(np.arange(2000) / 7)
    x[100], x[200:202], x[300:304], x[400:410] = 1, 1, 1, -1
    path = write(tmp_path / "a.wav", x, width=width)
    assert clipped_share(read_wave(path, clipped=True)[0]) == pytest.approx(14 / 2000)


def cut_short(path):
    write(path, tones(0.1))
    path.write_bytes(path.read_bytes()[:-100])


def of_floats(path):
    body = np.zeros(8, "<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, 8000, 32_000, 4, 32)
    chunks = b"fmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(body)) + body
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


BAD = {
    "silent": (lambda p: write(p, np.zeros(800)), "a.wav is silent: all of its samples are 0; record it again"),
    "clipped": (
        lambda p: write(p, 3 * np.sin(np.arange(800) / 9)),
        "% of its samples are at full scale; record it more",
    ),
    "stereo": (lambda p: write(p, np.stack([tones(0.1)] * 2, 1), channels=2), "has 2 channels; expected one"),
    "rate": (lambda p: write(p, tones(0.1), rate=44_100), "has 44,100 samples a second; expected 8,000"),
    "empty": (lambda p: write(p, np.zeros(0)), "a.wav holds no samples"),
    "no bytes": (lambda p: p.write_bytes(b""), "is not a wave file of PCM samples"),
    "text": (lambda p: p.write_text("From: somebody"), r"is not a wave file of PCM samples (starts with b'From: so'"),
    "floats": (of_floats, "unknown format: 3"),
    "short": (cut_short, "is cut short: its header promises 800 samples"),
    "absent": (lambda p: None, "does not exist"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path, fault):
    make, told = BAD[fault]
    make(tmp_path / "a.wav")
    with pytest.raises(InputError) as error:
        read_wave(tmp_path / "a.wav", 8000)
    assert told in str(error.value)
    assert "a.wav" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_clipped_recording_is_taken_on_request(tmp_path):
    path = write(tmp_path / "a.wav", 3 * np.sin(np.arange(800) / 9))
    assert len(read_wave(path, clipped=True)[0]) == 800
