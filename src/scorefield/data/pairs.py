"""Folders of clean and noisy recordings as pairs of spectrograms."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.spectra import Spectrogram
from scorefield.data.waves import CLIPPED, WaveFile, clipped_share, read_wave
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.progress import Bar

FRAMES = 128
LOWEST = -10.0
"""Signal-to-noise ratio, in dB, below which a pair is told: training on it teaches to invent."""
LOUD = 0.999
"""Share of the samples of a recording that are below what counts as its peak: single clicks do not."""


def level(noisy: Tensor) -> float:
    """The magnitude, of samples (N,), by which a pair is divided: it exceeds all but one sample in a thousand."""
    place = max(1, round(LOUD * len(noisy)))
    return float(noisy.abs().kthvalue(place).values) or float(noisy.abs().max())


def fitted(wave: Tensor, samples: int) -> Tensor:
    """Waves (B, N) of at least so many samples: short ones go on backwards and forwards again."""
    if wave.shape[1] < samples <= 2 * wave.shape[1]:
        return torch.cat([wave, wave.flip(1)[:, : samples - wave.shape[1]]], 1)
    swing = torch.cat([wave, wave.flip(1)], 1) if wave.shape[1] < samples else wave
    return swing if wave is swing else swing.repeat(1, -(-samples // swing.shape[1]))[:, :samples]


def spectrogram_of(rate: int) -> Spectrogram:
    """Windows of 16 ms, three to a window, for speech of so many samples a second."""
    half = round(0.008 * rate)
    return Spectrogram(2 * half - 2, (2 * half - 2) // 3, exponent=0.5, factor=0.45, rate=rate)


def pairs(
    folder: str | Path, spectrogram: Spectrogram | None = None, *, frames: int = FRAMES, train: bool = True
) -> Dataset:
    """Pieces of the recordings in FOLDER/clean and FOLDER/noisy, which have the same names: x_0 and, beside it, y.

    Both are divided by the level of the whole noisy recording (see `level`) before a piece is cut out, as an enhancer that
    is given the whole does. Pieces overlap by half; for training each is moved at random by up to as much.

    Main arguments:
        spectrogram: by default one for the rate of the recordings (see `spectrogram_of`).

    Other arguments:
        frames: of a piece. train: move the pieces at random.

    Returns:
        A dataset of shape (2, bins, frames) that is `paired`: items are read as (4, bins, frames), y behind x_0.

    Raises:
        InputError: a folder or a recording that is missing, pairs of different length, several rates, a recording that
            `read_wave` refuses.
    """
    couples = _couples(Path(folder))
    spec = spectrogram or spectrogram_of(couples[0][0].rate)
    samples = (frames - 1) * spec.hop
    levels, pieces, loud = [], [], []
    with Bar(f"reading {folder}") as bar:
        for k, (clean, noisy) in enumerate(couples):
            size, snr = _checked(clean, noisy, spec.rate)
            levels.append(size)
            pieces += [(k, start) for start in range(0, max(1, clean.size - samples // 2), max(1, samples // 2))]
            loud += [] if snr >= LOWEST else [f"{noisy.path.name} ({snr:.0f} dB)"]
            bar((k + 1) / len(couples))
    if loud:
        told = f"{len(loud)} of {len(couples)} pairs have more noise than speech by over {-LOWEST:.0f} dB, the first {loud[0]}"
        warnings.warn(f"{told}: are both of the same volume, and aligned?", ScorefieldWarning, stacklevel=2)
    reader = _Reader(couples, levels, pieces, spec, samples, train)
    shape = (2, spec.bins, frames)
    return Dataset(
        str(folder),
        shape,
        len(pieces),
        reader,
        names=reader.name,
        codec=spec,
        random=train,
        paired=True,
    )


@dataclass(frozen=True)
class _Reader:
    """Reads pieces: indices -> (B, 4, bins, frames)."""

    couples: list[tuple[WaveFile, WaveFile]]
    levels: list[float]
    pieces: list[tuple[int, int]]
    spec: Spectrogram
    samples: int
    train: bool

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.cat([self._piece(*self.pieces[i]) for i in indices])

    def _piece(self, k: int, start: int) -> Tensor:
        size = self.couples[k][0].size
        if self.train:
            start += int(torch.randint(max(1, self.samples // 2), (), device="cpu"))
        start = max(0, min(start, size - self.samples))
        both = [file.read(start, min(self.samples, size - start), 1) for file in self.couples[k]]
        waves = fitted(torch.stack(both) / self.levels[k], self.samples)
        return self.spec(waves).flatten(0, 1).unsqueeze(0)

    def name(self, i: int) -> str:
        return self.couples[self.pieces[i][0]][1].path.name


def _couples(folder: Path) -> list[tuple[WaveFile, WaveFile]]:
    """The clean and the noisy file of each name, sorted."""
    found = []
    for kind in ("clean", "noisy"):
        place = folder / kind
        if not place.is_dir():
            raise InputError(f"{folder} has no folder {kind}; give clean/ and noisy/ with wave files of the same names")
        found.append({path.relative_to(place): path for path in sorted(place.rglob("*.wav"))})
    clean, noisy = found
    for name in sorted(clean.keys() ^ noisy.keys()):
        there, absent = ("clean", "noisy") if name in clean else ("noisy", "clean")
        raise InputError(
            f"{folder}/{there}/{name} has no partner {folder}/{absent}/{name}; add it, or remove the first"
        )
    if not clean:
        raise InputError(f"{folder}/clean holds no .wav files; give recordings in clean/ and noisy/")
    return [(WaveFile.open(path), WaveFile.open(noisy[name])) for name, path in clean.items()]


def _checked(clean: WaveFile, noisy: WaveFile, rate: int) -> tuple[float, float]:
    """The level and the signal-to-noise ratio in dB of a pair, which was found to be one."""
    for file in (clean, noisy):
        if file.channels > 1:
            raise InputError(f"{file.path} has {file.channels} channels; expected one: mix them")
    x, y = (read_wave(file.path, rate, clipped=True)[0] for file in (clean, noisy))
    if (share := clipped_share(x)) > CLIPPED:
        raise InputError(
            f"{clean.path} is clipped: {100 * share:.1f} % of its samples are at full scale; remove the pair"
        )
    if len(x) != len(y):
        raise InputError(
            f"{noisy.path} has {len(y):,} samples and {clean.path} {len(x):,}; give recordings of the same length"
        )
    noise = float(torch.square(y - x).sum())
    return level(y), 10 * math.log10(float(torch.square(x).sum()) / noise) if noise else math.inf
