"""`fit`: from data to a judged model, with every choice made and said."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from scorefield.automatic.choose import Choice, choose, with_law
from scorefield.automatic.findings import Findings, Kind, find, into
from scorefield.automatic.judge import Judgement, judge
from scorefield.data.dataset import to_range
from scorefield.data.scale import Scale
from scorefield.differentiate import differentiation
from scorefield.discrete import JumpModel, bound
from scorefield.errors import CheckpointError, InputError
from scorefield.files import atomic_file, check_folder
from scorefield.inputs import check_event, tensor_of
from scorefield.inverse import Restored, restore
from scorefield.inverse.measurement import Measurement
from scorefield.likelihood import LogProb, log_prob
from scorefield.model import ScoreModel
from scorefield.nn.baseline import Beside
from scorefield.randomness import whole_seed
from scorefield.sampling import sample
from scorefield.training.checkpoint import list_checkpoints, read_checkpoint
from scorefield.training.config import TrainConfig
from scorefield.training.describe import build_model, from_json
from scorefield.training.log import read_log
from scorefield.training.monitor import Moment
from scorefield.training.optimizer import make_accelerator
from scorefield.training.run import has_begun, load_weights, read_run
from scorefield.training.trainer import Run, train

if TYPE_CHECKING:
    from scorefield.charts import Chart

FIT_FILE = "fit.json"
TRAINED = 0.85
"""Share of the minutes that is trained; the rest is for looking and judging."""
PATIENCE = 10
"""Measurements of the held-out loss without a new least one, and as many before, after which training ends."""


@dataclass(frozen=True)
class Fitted:
    """A model of one's own data, in the units of the data.

    Attributes:
        run: the outcome of training. found: what the data is. judgement: how good the model is; None if not asked for.
    """

    run: Run
    found: Findings
    judgement: Judgement | None

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return self.run.path

    @property
    def model(self) -> ScoreModel:
        """The model, which works in units of its own (see `Dataset.scale`)."""
        return self.run.model

    @property
    def _scale(self) -> Scale | None:
        return self.found.data.scale

    def sample(self, n: int, *args: Any, **options: Any) -> Tensor:
        """Samples as by `scorefield.sample`, (n, *), in the units of the data; of integer data in the model's range.

        Of a table with words they are states, (n, columns), which `found.data.codec.write` turns into lines.
        """
        return self.to_units(sample(self.model, n, *args, **options))

    def log_prob(self, x: Any, **options: Any) -> LogProb:
        """Log-densities as by `scorefield.log_prob`, of items (B, *) in the units of the data.

        Of states, bounds as by `scorefield.discrete.bound`.
        """
        items = self._formed(x)
        if isinstance(self.model, JumpModel):
            return bound(self.model, items.to(self.model.device), **options)
        lp = log_prob(self.model, self.to_model(items), **options)
        if self._scale is None:
            return lp
        shift = self._scale.log_volume(items).to(lp.nats.device)
        return replace(lp, nats=lp.nats - shift, draws=lp.draws - shift.unsqueeze(1))

    def to_model(self, x: Any) -> Tensor:
        """Items (B, *) of the data in the form and units of the model, on its device, as `sf.encode(done.model, ...)` takes."""
        items = self._formed(x)
        return (items if self._scale is None else self._scale.to_model(items)).to(self.model.device)

    def to_units(self, z: Tensor) -> Tensor:
        """What a function of scorefield makes of the model, (B, *), in the units of the data."""
        return z if self._scale is None else self._scale.to_units(z)

    def restore(self, operator: Measurement, y: Any, noise: float, n: int = 1, **options: Any) -> Restored:
        """n items given each measurement y = A(x) + noise z, all in the units of the data; see `inverse.restore`.

        The operator acts on items in the form of the model (`found.data.shape`). Where the model has units of its own it is
        taken for one that is not linear, as a column that is straightened makes it.
        """
        there = operator if self._scale is None else _InUnits(operator, self._scale)
        found = restore(self.model, there, tensor_of(y, "y"), noise, n, **options)
        return replace(found, samples=self.to_units(found.samples.flatten(0, 1)).reshape(found.samples.shape))

    def _formed(self, x: Any) -> Tensor:
        items, shape = tensor_of(x, "x"), self.found.data.shape
        if items.is_complex():
            raise InputError("x is complex; give real numbers")
        if items.ndim < 2 or items.shape[1:] == shape:
            check_event(items, shape)
            return items
        return into(shape, tuple(items.shape[1:]), "x")(items)

    def plot(self) -> Chart:
        """A figure of samples beside held-out data, in its units (needs matplotlib)."""
        from scorefield.charts import items

        judged = None if self.judgement is None else self.judgement.samples
        x = self.sample(64, progress=False) if judged is None else judged
        if judged is not None and self._scale is not None:
            x = self._scale.to_units(x)
        held = self.found.held_out
        count = min(held.size, len(x))
        y = held.read([k * held.size // count for k in range(count)])  # evenly, since data is often sorted
        if self._scale is None and held.codec is None:
            y = to_range(y, held, self.model.sde.range)
        return items(
            {"samples": x, "held-out data": y},
            None if self._scale is not None or held.codec else self.model.sde.range,
            held.columns,
        )

    def __repr__(self) -> str:
        return f"Fitted({str(self.path)!r}, {self.found.kind}s of {self.found.data.shape}, step {self.run.step:,})"


@dataclass(frozen=True)
class _InUnits:
    """A measurement of items in the units of the data, as one of what the model works with."""

    operator: Measurement
    scale: Scale

    linear: ClassVar[bool] = False

    def __call__(self, z: Tensor) -> Tensor:
        return self.operator(self.scale.to_units(z))


@differentiation()
def fit(
    data: Any,
    *,
    out: str | Path,
    minutes: float | None = None,
    steps: int | None = None,
    kind: Kind | None = None,
    size: int | None = None,
    labels: bool = False,
    skip_broken: bool = False,
    like: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judged: bool = True,
    progress: bool | None = None,
) -> Fitted:
    """Train a model of one's own data; what the data is and what the machine can do decide how, and the result is judged.

    The same call again goes on within the same total, with what was found at the start. Everything chosen is in run.json:
    the call with `like=` that run and `steps=` its number of steps repeats it exactly.

    Main arguments:
        data: a folder of pictures, a file (.npy, .npz, .csv, .tar), an array, a table, or a data set of torch or Hugging
            Face: pictures, vectors, signals, volumes or rows of a table.
        out: folder of the run.
        minutes: time for all of it, 10 unless given. steps: training steps in place of minutes.

    Other arguments:
        kind: "picture", "vector", "signal", "volume", "table" or "states" (a table of categories), where the
            shape tells wrongly.
        size: side of the pictures of a folder. labels: train class-conditionally. skip_broken: leave out broken files.
        like: a run whose choices are taken. judged: whether to judge the result.
        seed, device, progress: as in `train`.

    Raises:
        InputError: data that cannot be used, or an option out of range.
        CheckpointError: the folder holds a run of other data or another seed, or no intact checkpoint.
    """
    if minutes is not None and steps is not None:
        raise InputError("give minutes or steps, not both")
    minutes = 10.0 if minutes is None and steps is None else TrainConfig().updated(minutes=minutes).minutes
    length: dict[str, Any] = {"steps": steps} if minutes is None else {"minutes": TRAINED * minutes, "steps": 10**9}
    check_folder(out)
    seed = whole_seed(seed)
    TrainConfig().updated(**length)  # refuses what is out of range before anything is read
    tell, begin = _teller(progress), time.monotonic()
    found = find(data, kind, size, labels, skip_broken, seed, out)
    tell(str(found))
    if found.known is None and like is None:
        training = None if minutes is None else 60 * TRAINED * minutes
        choice = choose(found, training, steps, make_accelerator(TrainConfig(), device).device, seed)
        model, config = choice.model, choice.config
        tell(_why(choice, minutes))
    else:
        model, config = _taken(found, like, seed)
        tell(f"choices of {like if found.known is None else out}")
    if minutes is not None:
        length["minutes"] = max(TRAINED * minutes - (time.monotonic() - begin) / 60, minutes / 3)
    config = config.updated(**length)
    stop = [_stops_rising(Path(out))] if minutes is not None else []
    run = train(
        model,
        found.data,
        out=out,
        config=config,
        held_out=found.held_out,
        callbacks=stop,
        device=device,
        progress=progress,
    )
    tell(f"{run.step:,} steps made; again exactly: steps={run.step}, like={str(out)!r}")
    if not judged or run.stopped not in (None, "a callback", "the clock"):
        return Fitted(run, found, None)
    seconds = 30.0 if minutes is None else 60 * (1 - TRAINED) * minutes
    done = Fitted(run, found, judge(run.model, found, seconds, seed, progress))
    _keep(done, tell)
    return done


def _keep(done: Fitted, tell: Callable[[str], None]) -> None:
    """Tell the judgement and write it into the run, with figures of samples and losses where matplotlib is installed."""
    assert done.judgement is not None
    tell(str(done.judgement))
    with atomic_file(done.path / FIT_FILE, "w") as file:
        json.dump(done.judgement.values(), file, indent=1)
    try:
        from scorefield.charts import save_figure
    except ImportError:
        return
    save_figure(done.plot(), done.path / "fit.png")
    save_figure(done.run.plot(), done.path / "loss.png")
    tell(f"pictures: {done.path / 'fit.png'} (samples beside held-out data), {done.path / 'loss.png'}")


def _teller(progress: bool | None) -> Callable[[str], None]:
    def tell(text: str) -> None:
        if progress is not False and sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)

    return tell


def _why(choice: Choice, minutes: float | None) -> str:
    length = (
        "" if minutes is None else f", about {60 * TRAINED * minutes / choice.pace:,.0f} steps in {minutes:g} minutes"
    )
    return f"{choice}{length}"


def _taken(found: Findings, like: str | Path | None, seed: int) -> tuple[ScoreModel, TrainConfig]:
    """The model of the run that goes on, or of one like another, with fresh weights, and how it was trained."""
    info = found.known or read_run(str(like))
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        model = build_model(info.model, where=str(info.path))
    config = from_json(info.config)
    if not isinstance(config, TrainConfig):
        raise CheckpointError(f"{info.path} does not say how it was trained; choose another")
    if found.known and not has_begun(info.path):  # what fails before its first step may begin again
        first = read_checkpoint(list_checkpoints(info.path)[0], ("model",))
        load_weights(model, first.tensors["model"], str(first.path))
    elif not found.known and isinstance(model.net, Beside):
        with_law(model, found)
    return model, config.updated(minutes=None, seed=seed)


def _stops_rising(run: Path) -> Callable[[Moment], bool]:
    """A callback that ends training when the held-out loss has long been above its least value."""

    def stop(moment: Moment) -> bool:
        if moment.step % 50:
            return False
        values = [line["held_out_loss"] for line in read_log(run) if isinstance(line.get("held_out_loss"), float)]
        if len(values) < 2 * PATIENCE:
            return False
        least = values.index(min(values))
        return len(values) - 1 - least >= max(PATIENCE, least)

    return stop
