"""Samples of a model on disk, in chunks that many processes share and that survive a kill."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scorefield.data.arrays import array
from scorefield.data.dataset import Dataset, Range
from scorefield.errors import InputError
from scorefield.files import atomic_file, remove_leftovers
from scorefield.model import ScoreModel, model_hash
from scorefield.parallel import Processes
from scorefield.progress import Bar
from scorefield.randomness import SeedRows
from scorefield.sampling import sample
from scorefield.solve.integrate import Solver

CHUNK = 64
"""Samples in a file."""


def quantised(x: Tensor, levels: int, interval: Range, dequantised: bool = False) -> Tensor:
    """Samples in the model's range as the integers 0 .. levels - 1, uint8 where they fit.

    Main arguments:
        dequantised: the model was trained on dequantised data, whose level k fills the cell [k, k + 1) / levels of the
            range; otherwise level k sits at k / (levels - 1).
    """
    unit = (x.float() - interval[0]) / (interval[1] - interval[0])
    level = (unit * levels).floor() if dequantised else (unit * (levels - 1)).round()
    return level.nan_to_num(0).clamp(0, levels - 1).to(torch.uint8 if levels <= 256 else torch.int32)


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn, and the kind of data that they become.

    Attributes:
        solver, steps, seed: as in `sample`.
        interval: where the data lies in the model's space; None for data used as it is.
        levels: number of integer values of the data; samples are rounded to these (see `quantised`).
        dequantised: as in `quantised`.
    """

    solver: Solver
    steps: int | None = None
    seed: int = 0
    interval: Range | None = None
    levels: int | None = None
    dequantised: bool = False

    def rows(self, model: ScoreModel, rows: range, batch_size: int) -> Tensor:
        """The samples of these numbers, as data.

        Raises:
            InputError: a sample that is not finite.
        """
        n, seeds = len(rows), SeedRows(self.seed, [*rows])
        x = sample(model, n, self.solver, steps=self.steps, seed=seeds, batch_size=min(batch_size, n), progress=False)
        bad = (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten()
        if len(bad):
            raise InputError(f"sample {rows[int(bad[0])]} is not finite; take more steps, or another sampler")
        if self.levels is None or self.interval is None:
            return x.float()
        return quantised(x, self.levels, self.interval, self.dequantised)

    def folder(self, model: ScoreModel) -> str:
        """A name that is another for each setting and model."""
        settings = f"{_weights(model)} {self.solver!r} {self.steps} {self.seed} {self.levels} {self.interval}"
        settings = f"{settings} {self.dequantised} {model.shape}"
        return f"samples-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"


def stored_samples(
    model: ScoreModel,
    n: int,
    folder: Path,
    drawing: Drawing,
    *,
    batch_size: int = 64,
    processes: Processes | None = None,
    progress: bool | None = None,
) -> Dataset | None:
    """n samples as a dataset like the data, on the main process; None on the others.

    Sample i depends on the weights, the sampler, the seed and i alone. Chunks of 64 lie in a sub-folder of `folder` that
    is named by a hash of these, so that what an earlier call made, or was making when it was killed, is not made again.
    Processes on several machines need a folder that they share.

    Raises:
        OutputError: the folder cannot be written to.
        InputError: a sample that is not finite.
    """
    shared = processes or Processes()
    place = folder / drawing.folder(model)
    if shared.main and place.is_dir():
        remove_leftovers(place)
    starts = [*range(0, n, CHUNK)]
    own = starts[shared.rank :: shared.count]
    with Bar("sampling", progress if shared.main else False) as bar:
        for done, start in enumerate(own):
            wanted = min(CHUNK, n - start)
            path = place / _name(start)
            if not _holds(path, wanted):
                values = drawing.rows(model, range(start, start + wanted), batch_size)
                with atomic_file(path) as file:
                    file.write(safetensors.torch.save({"samples": values.cpu().contiguous()}))
            bar((done + 1) / len(own))
    shared.gather([None])  # all chunks are there when this returns
    if not shared.main:
        return None
    parts = [_read(place / _name(start))[: n - start] for start in starts]
    bounds = drawing.interval if drawing.levels is None else None
    return array(torch.cat(parts), levels=drawing.levels, range=bounds, name="samples")


def _holds(path: Path, wanted: int) -> bool:
    try:
        return len(_read(path)) >= wanted
    except (OSError, SafetensorError, KeyError):
        return False


def _read(path: Path) -> Tensor:
    samples: Tensor = safetensors.torch.load(path.read_bytes())["samples"]
    return samples


def _name(start: int) -> str:
    return f"{start:08d}.safetensors"


def _weights(model: ScoreModel) -> str:
    about = repr((model.predict, model.sigma_data, model.sde))
    return hashlib.sha256(f"{about} {model_hash(model)}".encode()).hexdigest()
