"""Waves as compressed spectrograms of two real channels and back, and how near one wave is to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scorefield.errors import InputError
from scorefield.inputs import as_tensor


@dataclass(frozen=True)
class Spectrogram:
    """Short-time Fourier transform with compressed magnitudes, as Richter et al. 2023 show speech to a network.

    X = factor |S|^exponent e^{i arg S}, S the transform with a periodic Hann window and frames centred on multiples of `hop`.
    Real and imaginary part are the two channels. Circular complex noise of unit variance has variance 1/2 in each of them,
    which is what `scale=2**-0.5` of `VPIDM` and `OUVE` says; the score of the channels is then twice the complex one.

    Main arguments:
        n_fft: samples of a window, which give n_fft // 2 + 1 bins. hop: samples from frame to frame.
        exponent: of the magnitudes, above 0; below 1 it lifts the quiet ones. factor: on the result, to be of order 1.
        rate: samples a second of the waves that are meant; nothing here depends on it.

    Raises:
        ValueError: a number out of its range.
    """

    n_fft: int = 510
    hop: int = 128
    exponent: float = 0.5
    factor: float = 0.15
    rate: int = 16_000

    def __post_init__(self) -> None:
        if not (self.n_fft >= 4 and 1 <= self.hop <= self.n_fft // 2 and self.exponent > 0 and self.factor > 0):
            raise ValueError(
                f"Spectrogram needs n_fft of 4 or more, hop from 1 to n_fft / 2, exponent > 0 and factor > 0, not {self}"
            )

    @property
    def bins(self) -> int:
        """Frequencies from 0 to rate / 2."""
        return self.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """Frames of a wave of so many samples."""
        return 1 + samples // self.hop

    def window(self, like: Tensor) -> Tensor:
        """The periodic Hann window, (n_fft,), in the dtype and on the device of a wave."""
        return torch.hann_window(self.n_fft, dtype=like.dtype, device=like.device)

    def __call__(self, wave: Tensor) -> Tensor:
        """Waves (B, samples) -> (B, 2, bins, frames), real.

        Raises:
            ValueError: another shape, or waves shorter than half a window.
        """
        wave = as_tensor(wave, "wave")
        if wave.ndim != 2 or not wave.is_floating_point() or wave.shape[1] <= self.n_fft // 2:
            raise ValueError(
                f"wave is {wave.dtype} of shape {tuple(wave.shape)}; give floats (B, samples), more than {self.n_fft // 2} "
                "samples each"
            )
        s = torch.stft(wave, self.n_fft, self.hop, window=self.window(wave), center=True, return_complex=True)
        return torch.view_as_real(_bent(s, self.exponent) * self.factor).permute(0, 3, 1, 2).contiguous()

    def inverse(self, x: Tensor, length: int | None = None) -> Tensor:
        """Spectrograms (B, 2, bins, frames) -> waves (B, length), (frames - 1) hop samples unless given.

        Raises:
            ValueError: another shape.
        """
        if x.ndim != 4 or x.shape[1:3] != (2, self.bins):
            raise ValueError(f"spectrogram of shape {tuple(x.shape)}; expected (B, 2, {self.bins}, frames)")
        s = _bent(torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous()) / self.factor, 1 / self.exponent)
        wave: Tensor = torch.istft(s, self.n_fft, self.hop, window=self.window(x), center=True, length=length)
        return wave

    def pad(self, x: Tensor, multiple: int = 64) -> Tensor:
        """Spectrograms with zero frames behind, up to a multiple of frames; as they are where they have one."""
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % multiple))


def _bent(s: Tensor, exponent: float) -> Tensor:
    """|s|^exponent e^{i arg s} of complex s."""
    size = s.abs()
    return s * torch.where(size > 0, size, 1).pow(exponent - 1)


def si_sdr(reference: Any, estimate: Any) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB over the last axis (Le Roux et al. 2019), (*).

    10 log10(|a s|^2 / |a s - e|^2),   a = <e, s> / |s|^2,   of waves s and e (*, samples), which are not centred
    before; inf where exact, -inf for a silent estimate.

    Raises:
        InputError: shapes that differ, or a reference that is silent.
    """
    s, e = as_tensor(reference, "reference"), as_tensor(estimate, "estimate")
    if s.shape != e.shape:
        raise InputError(f"estimate has shape {tuple(e.shape)}; expected {tuple(s.shape)}, that of the reference")
    energy = torch.square(s).sum(-1, keepdim=True)
    if bool((energy == 0).any()):
        raise InputError("the reference is silent, so that nothing can be compared with it; leave it out")
    target = (e * s).sum(-1, keepdim=True) / energy * s
    kept, lost = torch.square(target).sum(-1), torch.square(target - e).sum(-1)
    return torch.where(kept > 0, 10 * torch.log10(kept / lost), -torch.inf)
