"""Spectrograms and SI-SDR, against the recording of the authors' code and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scorefield.data import Spectrogram, si_sdr

SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"


def test_the_transform_is_that_of_the_authors():
    path = SHARED / "31_spec.safetensors"
    if not path.exists():
        pytest.skip(f"the recording {path.name} is not in ../shared/parity")
    saved, spec = load_file(path), Spectrogram()
    x = spec(saved["wave"])
    torch.testing.assert_close(spec.window(saved["wave"]), saved["window"], rtol=0, atol=1e-12)
    torch.testing.assert_close(x.permute(0, 2, 3, 1), saved["forward"], rtol=0, atol=1e-12)
    plain = Spectrogram(exponent=1.0, factor=1.0)(saved["wave"])
    torch.testing.assert_close(plain.permute(0, 2, 3, 1), saved["stft"], rtol=0, atol=1e-12)
    back = Spectrogram(exponent=1.0, factor=1.0)(spec.inverse(x, 3000))
    torch.testing.assert_close(back.permute(0, 2, 3, 1), saved["back"], rtol=0, atol=1e-11)
    torch.testing.assert_close(spec.inverse(x, 3000), saved["wave_back"], rtol=0, atol=1e-12)
    assert spec.pad(x).permute(0, 2, 3, 1).shape[:3] == (*tuple(saved["padded_shape"])[:1], 256, 64)
    found = si_sdr(saved["wave"][0], saved["estimate"])
    assert float(found) == pytest.approx(float(saved["si_sdr"]), abs=1e-11)


@pytest.mark.parametrize(("n_fft", "hop"), [(126, 42), (510, 128), (254, 127)])
@pytest.mark.parametrize("samples", [400, 1001])
def test_waves_come_back(n_fft, hop, samples):
    spec = Spectrogram(n_fft, hop, exponent=0.4, factor=0.3)
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = spec(wave)
    assert x.shape == (2, 2, spec.bins, spec.frames(samples))
    torch.testing.assert_close(spec.inverse(x, samples), wave, rtol=0, atol=1e-13)


def test_silence_is_silence():
    spec = Spectrogram(126, 42)
    assert not spec(torch.zeros(1, 300)).any()
    assert not spec.inverse(torch.zeros(1, 2, 64, 5)).any()


def test_a_multiple_is_not_padded():
    spec, x = Spectrogram(126, 42), torch.ones(1, 2, 64, 64)
    assert spec.pad(x) is x or spec.pad(x).shape == x.shape
    padded = spec.pad(torch.ones(1, 2, 64, 65))
    assert padded.shape[-1] == 128
    assert not padded[..., 65:].any()


def test_si_sdr_by_hand():
    """An error of 1/10 of the amplitude at a right angle is 20 dB, whatever the volume of the estimate."""
    reference, aside = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 0.0, 0.5])
    assert float(si_sdr(reference, 7 * (reference + aside))) == pytest.approx(20.0, abs=1e-5)
    assert float(si_sdr(reference, reference)) == math.inf
    assert float(si_sdr(reference, 0 * reference)) == -math.inf


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Spectrogram(126, 80), "hop from 1 to n_fft / 2"),
        (lambda: Spectrogram()(torch.zeros(500)), "give floats .B, samples."),
        (lambda: Spectrogram()(torch.zeros(1, 200)), "more than 255 samples"),
        (lambda: Spectrogram().inverse(torch.zeros(1, 2, 64, 9)), "expected .B, 2, 256, frames."),
        (lambda: si_sdr(torch.zeros(9), torch.ones(9)), "reference is silent"),
        (lambda: si_sdr(torch.ones(8), torch.ones(9)), "that of the reference"),
    ],
)
def test_what_cannot_be_transformed_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()
