"""Wave files of one voice: read as numbers in [-1, 1], checked, and written as 16-bit PCM."""

from __future__ import annotations

import warnings
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scorefield.errors import InputError, ScorefieldWarning, cannot_read
from scorefield.files import atomic_file

CLIPPED = 1e-3
"""Share of samples in runs at full scale from which on a recording is refused."""
RUN = 3
"""Neighbouring samples at full scale that are no chance."""


@dataclass(frozen=True)
class WaveFile:
    """What the header of a wave file says, by which parts of it are read.

    Attributes:
        path: the file. rate: samples a second. size: samples of a channel. channels, width: channels, and bytes of a sample.
    """

    path: Path
    rate: int
    size: int
    channels: int
    width: int

    @classmethod
    def open(cls, path: str | Path) -> WaveFile:
        """The header.

        Raises:
            InputError: no such file, not a wave file of PCM samples, or one without samples.
        """
        with _opened(path) as file:
            found = cls(Path(path), file.getframerate(), file.getnframes(), file.getnchannels(), file.getsampwidth())
        if not found.size:
            raise InputError(f"{path} holds no samples; record it again")
        return found

    def read(self, start: int = 0, count: int | None = None, channel: int | None = None) -> Tensor:
        """Samples start .. start + count - 1 of a channel, 1 being the first, float32 in [-1, 1].

        Raises:
            InputError: the file is shorter than its header says, or has several channels and none is chosen.
        """
        if self.channels > 1 and channel is None:
            raise InputError(
                f"{self.path} has {self.channels} channels; expected one: mix them, or choose by channel=1"
            )
        if channel is not None and not 1 <= channel <= self.channels:
            raise InputError(f"{self.path} has no channel {channel}; it has {self.channels}, the first being 1")
        count = self.size - start if count is None else count
        with _opened(self.path) as file:
            file.setpos(start)
            raw = file.readframes(count)
        if len(raw) != count * self.channels * self.width:
            raise InputError(f"{self.path} is cut short: its header promises {self.size:,} samples; copy it again")
        return _numbers(raw, self.width).reshape(count, self.channels)[:, (channel or 1) - 1].contiguous()


def read_wave(
    path: str | Path, rate: int | None = None, *, channel: int | None = None, clipped: bool = False
) -> tuple[Tensor, int]:
    """A recording of one voice, (samples,) float32 in [-1, 1], and its samples a second.

    Main arguments:
        rate: what the rate must be; None takes any.

    Other arguments:
        channel: which one of several, from 1. clipped: take recordings whose peaks were cut off.

    Raises:
        InputError: no wave file of PCM samples, an empty or truncated one, several channels, another rate, silence, or
            more than one sample in a thousand at full scale.
    """
    file = WaveFile.open(path)
    if rate is not None and file.rate != rate:
        raise InputError(
            f"{path} has {file.rate:,} samples a second; expected {rate:,}: resample it, as by "
            f"sox {Path(path).name} -r {rate} out.wav"
        )
    x = file.read(channel=channel)
    if bool((x == x[0]).all()):
        raise InputError(f"{path} is silent: all of its samples are {float(x[0]):.3g}; record it again")
    share = clipped_share(x)
    if share > CLIPPED and not clipped:
        raise InputError(
            f"{path} is clipped: {100 * share:.1f} % of its samples are at full scale; record it more quietly, or pass "
            "clipped=True to take it as it is"
        )
    return x, file.rate


def clipped_share(x: Tensor) -> float:
    """Share of the samples, (N,) in [-1, 1], that stand at full scale beside others, as where peaks were cut off."""
    loud = x.abs() >= 1 - 2.0 ** (-7 if _coarse(x) else -14)
    if len(x) < RUN:
        return 0.0
    runs = loud.unfold(0, RUN, 1).all(1)
    inside = torch.zeros_like(loud)
    for k in range(RUN):
        inside[k : len(x) - RUN + 1 + k] |= runs
    return float(inside.float().mean())


def write_wave(path: str | Path, x: Tensor, rate: int) -> None:
    """Write (samples,) as 16-bit PCM; what exceeds [-1, 1] is turned down as a whole, with a warning.

    Raises:
        OutputError: the place is not writable, or the disk is full.
    """
    values = x.detach().cpu().double()
    peak = float(values.abs().max()) if values.numel() else 0.0
    if peak > 1:
        told = f"{path}: the loudest sample would be {peak:.2f} of full scale; the whole is turned down by that"
        warnings.warn(told, ScorefieldWarning, stacklevel=2)
        values = values / peak
    whole = (values * 32768).round().clamp(-32768, 32767).numpy().astype("<i2")
    with atomic_file(path) as target, wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.tobytes())


def _opened(path: str | Path) -> wave.Wave_read:
    try:
        return wave.open(str(path), "rb")
    except OSError as error:
        raise cannot_read(path, error) from error
    except (wave.Error, EOFError) as error:
        start = Path(path).read_bytes()[:8]
        reason = f"starts with {start!r}" if start[:4] != b"RIFF" else " ".join(str(error).split()) or "cut short"
        raise InputError(
            f"{path} is not a wave file of PCM samples ({reason}); convert it, as by sox IN -b 16 -e signed OUT.wav"
        ) from error


def _numbers(raw: bytes, width: int) -> Tensor:
    """PCM samples of so many bytes as float32 in [-1, 1]; those of one byte are unsigned."""
    if width == 1:
        return (torch.frombuffer(bytearray(raw), dtype=torch.uint8).float() - 128) / 128
    if width == 3:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        raw, width = wide.tobytes(), 4
    values = np.frombuffer(raw, f"<i{width}")
    return torch.from_numpy((values / 2.0 ** (8 * width - 1)).astype(np.float32))


def _coarse(x: Tensor) -> bool:
    """Whether samples are multiples of 1 / 128, as those of one byte are."""
    return bool((128 * x == (128 * x).round()).all())
