"""Synthetic recordings: tones that come and go, and noise."""

from __future__ import annotations

import wave

import numpy as np

RATE = 8000


def tones(seconds, seed=0, rate=RATE):
    """A voice-like wave in [-1, 1]: harmonics of a wandering pitch, in syllables."""
    draws = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 40 * draws.random() + 15 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(np.sin(k * phase) / k for k in range(1, 8))
    gate = np.clip(3 * np.sin(2 * np.pi * 2.1 * t + draws.random()), 0, 1)
    return 0.2 * voice * gate


def noisy(clean, snr=5.0, seed=0):
    """The same in white noise of so many dB."""
    noise = np.random.default_rng(1000 + seed).standard_normal(len(clean))
    return clean + noise * np.linalg.norm(clean) / np.linalg.norm(noise) * 10 ** (-snr / 20)


def write(path, x, rate=RATE, channels=1, width=2):
    """A PCM file of numbers in [-1, 1], (N,) or (N, channels)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.clip(np.asarray(x), -1, 1)
    if width == 1:
        raw = np.clip(np.round(x * 128 + 128), 0, 255).astype(np.uint8).tobytes()
    else:
        whole = np.clip(np.round(x * 2.0 ** (8 * width - 1)), -(2.0 ** (8 * width - 1)), 2.0 ** (8 * width - 1) - 1)
        raw = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(raw)
    return path


def folder(place, count=3, seconds=1.2, rate=RATE):
    """clean/ and noisy/ with so many pairs."""
    for i in range(count):
        x = tones(seconds, i, rate)
        write(place / "clean" / f"{i}.wav", x, rate)
        write(place / "noisy" / f"{i}.wav", noisy(x, 5.0, i), rate)
    return place
