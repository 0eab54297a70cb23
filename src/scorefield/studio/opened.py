"""The model that the page works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

import scorefield as sf
from scorefield.bundled import BUNDLED
from scorefield.cli.options import open_run
from scorefield.errors import InputError
from scorefield.model import ScoreModel
from scorefield.training import RunInfo

SIZE = 28


@dataclass(frozen=True, eq=False)
class Opened:
    """A run of images, and its model.

    Attributes:
        run: folder, or name of a bundled model. info, model: see `training.read_run` and `load`.
    """

    run: str
    info: RunInfo
    model: ScoreModel

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.info.shape
        return channels, height, width

    @property
    def interval(self) -> tuple[float, float]:
        """Black and white in the model's range."""
        return self.info.range or self.model.sde.range

    @property
    def net(self) -> nn.Module:
        """The network, at whose calls work can be stopped."""
        return self.model.net if isinstance(self.model.net, nn.Module) else self.model

    @property
    def classes(self) -> int:
        """Number of classes; 0 where the run has none."""
        return int(getattr(self.model.net, "num_classes", 0) or 0)

    @property
    def has_digits(self) -> bool:
        """Whether the embedded digits are of its kind."""
        return self.shape == (1, SIZE, SIZE)

    def load_line(self) -> str:
        """The line of Python that loads it."""
        device = self.model.device.type
        return f"model = sf.load({self.run!r}{'' if device == 'cpu' else f', device={device!r}'})"


def open_images(run: str, device: str | None = None) -> Opened:
    """The run in a folder, or a bundled model.

    Raises:
        InputError: no such run, or one of something else than grey or colour images.
    """
    word = run.strip()
    if not word:
        raise InputError("no model is named; give digits or the folder of a run")
    info = sf.training.read_run(word)
    if len(info.shape) != 3 or info.shape[0] not in (1, 3) or info.levels is None or info.range is None:
        raise InputError(f"{word} holds items of shape {info.shape}; the studio shows grey and colour images")
    _, model = open_run(word, device)
    return Opened(word, info, model)


def runs_here() -> list[str]:
    """Bundled models, and the runs in this folder and in runs/."""
    found = sorted({str(path.parent) for pattern in ("*/run.json", "runs/*/run.json") for path in Path().glob(pattern)})
    return [*BUNDLED, *found]
