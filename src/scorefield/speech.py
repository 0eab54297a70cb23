"""Recordings of any length made clean, by a run that was trained on pairs of clean and noisy ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.data.pairs import fitted, level
from scorefield.data.spectra import Spectrogram
from scorefield.errors import InputError
from scorefield.model import ScoreModel
from scorefield.progress import Bar
from scorefield.randomness import SeedRows, source
from scorefield.sampling import sample
from scorefield.solve import DPMSolver, Solver
from scorefield.start import near

STEPS = 6
OVERLAP = 0.25
"""Share of a window that overlaps the next one; half of that is faded, and the rest of it left out."""


@dataclass(frozen=True)
class Enhanced:
    """A recording made clean.

    Attributes:
        wave: (samples,), in the units of the recording. nfe: evaluations of the network for each window. windows: their number.
    """

    wave: Tensor
    nfe: int
    windows: int


@dataclass(frozen=True)
class Enhancer:
    """Makes recordings clean, window by window, in memory that does not grow with their length but by the wave itself.

    Windows have the length that the model was trained on and overlap by a quarter; their noise belongs to the frames of the
    recording, not to the windows, so that neighbours are samples of one posterior and are faded into each other.

    Main arguments:
        model: of `VPIDM` or `OUVE` around `nn.Paired`, whose shape is (2, bins, frames).
        spectrogram: the transform that it was trained on.

    Other arguments:
        solver, steps: by default `DPMSolver(order=2)` in 6 steps. restart: start again at the model's first estimate (see
            `near`), for one evaluation. batch_size: windows at a time.

    Raises:
        InputError: a model of another shape.
    """

    model: ScoreModel
    spectrogram: Spectrogram
    solver: Solver | None = None
    steps: int | None = None
    restart: bool = True
    batch_size: int = 16

    def __post_init__(self) -> None:
        shape = self.model.shape
        if shape is None or len(shape) != 3 or shape[:2] != (2, self.spectrogram.bins):
            raise InputError(
                f"the model has shape {shape}; expected (2, {self.spectrogram.bins}, frames), a spectrogram"
            )

    @classmethod
    def of_run(cls, run: str | Path, device: str | None = None) -> Enhancer:
        """That of a run of the preset speech.

        Raises:
            InputError: another run.
        """
        from scorefield.training.describe import from_json
        from scorefield.training.run import load, read_run

        codec = from_json(read_run(run).data.get("codec"))
        if not isinstance(codec, Spectrogram):
            raise InputError(f"{run} was not trained on speech; give the folder that `scorefield train speech` wrote")
        return cls(load(run, device=device or "cpu"), codec)

    @property
    def window(self) -> int:
        """Samples of a window."""
        assert self.model.shape is not None
        return (self.model.shape[2] - 1) * self.spectrogram.hop

    def __call__(self, wave: Tensor, seed: int = 0, progress: bool | None = None) -> Enhanced:
        """A recording, (samples,), made clean.

        Raises:
            InputError: another shape, or silence.
        """
        if wave.ndim != 1 or not wave.is_floating_point() or not len(wave):
            raise InputError(
                f"wave is {wave.dtype} of shape {tuple(wave.shape)}; give one recording of floats, (samples,)"
            )
        loudness = level(wave)
        if not loudness > 0:
            raise InputError("the recording is silent; there is nothing to make clean")
        hop, beyond = self.spectrogram.hop, max(0, len(wave) - self.window)
        noisy = fitted(wave[None], self.window + -(-beyond // hop) * hop)[0]
        total, weight = torch.zeros_like(noisy), torch.zeros_like(noisy)
        starts, nfe = self._starts(len(noisy)), 0
        with Bar("making clean", progress) as bar:
            for k in range(0, len(starts), self.batch_size):
                part = starts[k : k + self.batch_size]
                clean, nfe = self._cleaned(
                    torch.stack([noisy[s : s + self.window] for s in part]) / loudness, part, seed
                )
                for start, one in zip(part, clean.to(wave.device), strict=True):
                    faded = self._fades(start == 0, start + self.window == len(noisy)).to(wave)
                    total[start : start + self.window] += faded * one
                    weight[start : start + self.window] += faded
                bar((k + len(part)) / len(starts))
        return Enhanced(loudness * (total / weight)[: len(wave)], nfe, len(starts))

    def _starts(self, samples: int) -> list[int]:
        """Where windows begin, always on a frame: the last one ends with the recording."""
        hop = self.spectrogram.hop
        step = max(1, round((1 - OVERLAP) * self.window / hop)) * hop
        last = samples - self.window
        return [*range(0, last, step), last] if last % step else list(range(0, last + 1, step))

    def _fades(self, first: bool, last: bool) -> Tensor:
        """Weight of each sample of a window, (samples,): the ends that neighbours cover are faded."""
        reach = round(OVERLAP * self.window)
        place = torch.arange(self.window, dtype=torch.float64) + 0.5
        rise = (2 * place / reach - 0.5).clamp(0, 1)
        ones = torch.ones_like(rise)
        return (ones if first else rise) * (ones if last else rise.flip(0))

    def _cleaned(self, waves: Tensor, starts: list[int], seed: int) -> tuple[Tensor, int]:
        """Windows (B, samples) made clean, and the evaluations of each."""
        model, spec = self.model, self.spectrogram
        y = spec(waves.to(device=model.device, dtype=model.dtype))
        draws = _FrameNoise(seed, [s // spec.hop for s in starts], y)
        begin = near(y, model.sde, noise=draws, model=model if self.restart else None)
        solver = DPMSolver(order=2) if self.solver is None else self.solver
        steps = STEPS if self.solver is None and self.steps is None else self.steps
        done = sample(
            model, len(y), solver, steps=steps, x_init=begin, noise=draws, y=y, denoise=True, full=True, progress=False
        )
        return spec.inverse(done.x, self.window), int(done.nfe.max()) + self.restart


class _FrameNoise:
    """Noise of windows that start at some frames: the k-th draw of a frame is a function of (seed, frame, k) alone."""

    def __init__(self, seed: int, frames: list[int], like: Tensor) -> None:
        self.first, self.frames, self.like = min(frames), frames, like
        count = max(frames) + like.shape[-1] - self.first
        self.draws = source(SeedRows(seed, range(self.first, self.first + count)), count)

    def __call__(self) -> Tensor:
        channels, bins, width = self.like.shape[1:]
        rows = self.draws.normal((self.draws.size, channels, bins), self.like.dtype, torch.device("cpu"))
        return torch.stack([rows[f - self.first : f - self.first + width].permute(1, 2, 0) for f in self.frames])
