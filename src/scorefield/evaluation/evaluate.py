"""One call that judges a model or a run against data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from scorefield import parallel
from scorefield.bundled import results_folder
from scorefield.data.dataset import Dataset
from scorefield.data.open import as_dataset, open_data
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.evaluation.bits import bits_per_dim, mean_loss
from scorefield.evaluation.features import FeatureNetwork, extract, open_features, reference_features
from scorefield.evaluation.metrics import Estimate, frechet, inception_score, kid, precision_recall
from scorefield.evaluation.stored_samples import Drawing, stored_samples
from scorefield.model import ScoreModel
from scorefield.parallel import Processes
from scorefield.solve.exponential import DPMSolver
from scorefield.solve.integrate import Solver
from scorefield.training.run import load, read_run

PAIRED = 10_000
"""Samples and items at most whose pairs are compared, by KID, precision, recall, density and coverage."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model.

    Attributes:
        figures: by name: frechet, kid, precision, recall, density, coverage, inception_score, bits_per_dim, loss; those
            that were asked for and could be computed.
        features: name of the network whose features were compared; "" if none were.
        samples, reference: how many samples of the model and items of the data were compared.
        seconds: how long it took.
    """

    figures: Mapping[str, Estimate]
    features: str
    samples: int
    reference: int
    seconds: float

    def __str__(self) -> str:
        width = max([len(name) for name in self.figures], default=0)
        lines = [
            f"{name:{width}}  {e.value:10.5g} ± {1.96 * e.stderr:<8.2g}  n = {e.n:<6}  95 %, {e.error}"
            for name, e in self.figures.items()
        ]
        if self.features:
            lines.append(f"{self.samples} samples against {self.reference} items, features: {self.features}")
        return "\n".join(lines)

    def values(self) -> dict[str, Any]:
        """The figures as JSON."""
        figures = {
            name: {"value": e.value, "stderr": e.stderr, "interval": list(e.interval), "n": e.n, "error": e.error}
            for name, e in self.figures.items()
        }
        about = {"features": self.features, "samples": self.samples, "reference": self.reference}
        return {"figures": figures, **about, "seconds": self.seconds}


def evaluate(
    source: ScoreModel | str | Path,
    data: Any = "digits",
    n: int = 2000,
    *,
    features: FeatureNetwork | str | None = None,
    reference: int | None = None,
    likelihood: int = 0,
    loss: int = 0,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    neighbours: int = 5,
    samples: str | Path | None = None,
    cache: str | Path | None = None,
    device: str = "cpu",
    progress: bool | None = None,
) -> Evaluation:
    """Judge samples of a model, and data under it; every figure has its standard error.

    The samples are rounded to the levels of the data. Published Frechet distances are of 50,000 samples; figures of
    different n cannot be compared. Under torchrun or `accelerate launch` sampling, likelihood and loss are shared by the
    processes, and the result is that of one.

    Main arguments:
        source: a model, the folder of a run, or the name of a bundled model.
        data: what the samples are compared with: a name as on the command line ("digits" are the held-out ones), a
            Dataset, a tensor, or a dataset of torch or Hugging Face.
        n: number of samples; 0 draws none.
        features: "digits", "inception", "inception:WEIGHTS.pth", "random", "raw", a TorchScript file, or a `FeatureNetwork`.
            By default the digit classifier for items (1, 28, 28), Inception for colour images (random features where
            torch-fidelity is missing), else raw.
        likelihood, loss: items of the data whose bits per dimension and whose loss are averaged; 0 for none.

    Other arguments:
        reference: compare with only the first so many items.
        solver, steps, seed, batch_size: of the samples, as in `sample`.
        neighbours: k of precision, recall, density and coverage.
        samples: folder for the samples, which a later call takes up; RUN/evaluation for a run (./evaluation for a
            bundled model), else none are kept.
        cache: folder for features of reference data; the user's cache folder unless given.
        device: where to compute, for a run; a model stays where it is.

    Raises:
        InputError: data, features or numbers that do not fit the model.
    """
    begin = time.monotonic()
    _check(n, likelihood, loss)
    model, folder, items, drawing = _subject(source, data, samples, device)
    drawing = replace(drawing, solver=solver or drawing.solver, steps=steps, seed=seed)
    processes = parallel.join(model.device.type)
    figures: dict[str, Estimate] = {}
    real, network = items[: reference or items.size], None
    if n:
        named = features or _default(items.shape)
        network = named if isinstance(named, FeatureNetwork) else open_features(named, model.device)
        with _place(folder, processes) as place:
            fake = stored_samples(
                model, n, place, drawing, batch_size=batch_size, processes=processes, progress=progress
            )
            if fake is not None:
                figures = compare(
                    network, fake, real, neighbours, cache=cache, batch_size=batch_size, progress=progress
                )
            figures = processes.broadcast(figures)
    shared: dict[str, Any] = {"seed": seed, "processes": processes, "progress": progress}
    if likelihood:
        figures["bits_per_dim"] = bits_per_dim(model, items[:likelihood], drawing.interval, **shared)
    if loss:
        figures["loss"] = mean_loss(model, items[:loss], drawing.interval, **shared)
    name = "" if network is None else network.name
    return Evaluation(figures, name, n, real.size if n else 0, time.monotonic() - begin)


def _check(n: int, likelihood: int, loss: int) -> None:
    for name, value in (("n", n), ("likelihood", likelihood), ("loss", loss)):
        if value < 0 or (name == "n" and value == 1):
            raise InputError(f"{name}={value} is impossible; expected 0 or {'2' if name == 'n' else '1'} or more")


@contextmanager
def _place(folder: str | Path | None, processes: Processes) -> Iterator[Path]:
    """The folder of the samples, the same for all processes; one for the time being where none is named."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory() as own:
        yield Path(processes.broadcast(own))


def compare(
    network: FeatureNetwork,
    fake: Any,
    real: Any,
    neighbours: int = 5,
    *,
    cache: str | Path | None = None,
    batch_size: int = 100,
    progress: bool | None = None,
) -> dict[str, Estimate]:
    """Figures of one set of items against another, by their features.

    Main arguments:
        fake: samples, a Dataset or what `train` takes for one. real: data; its features are cached.

    Raises:
        InputError: items that the network does not take, or too few of them.
    """
    made, wanted = as_dataset(fake), as_dataset(real)
    if made.shape != wanted.shape:
        raise InputError(f"samples have shape {made.shape} and data {wanted.shape}; they must be equal")
    theirs = reference_features(network, wanted, cache=cache, batch_size=batch_size, progress=progress)
    own = extract(network, made, batch_size, progress)
    a, b = _thinned(own.values), _thinned(theirs.values)
    figures = {"frechet": frechet(own.values, theirs.values), "kid": kid(a, b)}
    figures |= precision_recall(b, a, min(neighbours, len(a) - 1, len(b) - 1))
    if own.logits is not None:
        figures["inception_score"] = inception_score(own.logits, min(10, len(own.logits) // 2))
    return figures


def _thinned(features: Tensor) -> Tensor:
    """Rows for figures over pairs, evenly spaced since data often lies sorted by class."""
    if len(features) <= PAIRED:
        return features
    return features[torch.linspace(0, len(features) - 1, PAIRED, device="cpu").round().long()]


def _subject(
    source: ScoreModel | str | Path, data: Any, samples: str | Path | None, device: str
) -> tuple[ScoreModel, str | Path | None, Dataset, Drawing]:
    """What is judged: the model, the folder of its samples, the data, and how samples become data like it."""
    if isinstance(source, ScoreModel):
        items = _items(data, source.shape, None)
        interval = source.sde.range if items.scaled else None
        return source, samples, items, Drawing(DPMSolver(), interval=interval, levels=items.levels)
    if not isinstance(source, str | Path):
        raise InputError(
            f"source is a {type(source).__name__}; give a model, the folder of a run or the name of a bundled model "
            "(sf.evaluation.compare compares samples that you have)"
        )
    info = read_run(source)
    folder = results_folder(source) / "evaluation" if samples is None else samples
    items = _items(data, info.shape, info.levels, info.data.get("range"))
    if items.levels != info.levels:
        raise InputError(
            f"{items.name} has {items.levels or 'no'} levels and the run was trained with {info.levels or 'none'}; "
            "convert it to the same kind"
        )
    dequantised = bool(info.config.get("arguments", {}).get("dequantize"))
    drawing = Drawing(DPMSolver(), interval=info.range, levels=items.levels, dequantised=dequantised)
    return load(source, device=device), folder, items, drawing


def _items(data: Any, shape: tuple[int, ...] | None, levels: int | None, range: Any = None) -> Dataset:
    if not isinstance(data, str | Path):
        items = as_dataset(data)
    else:
        known = None if not range else (float(range[0]), float(range[1]))
        items = open_data(
            str(data), shape, train=False, levels=levels if levels != 256 else None, range=known, convert=True
        )
    if shape is not None and items.shape != tuple(shape):
        raise InputError(f"{items.name} has items of shape {items.shape} and the model makes {tuple(shape)}")
    return items


def _default(shape: tuple[int, ...]) -> str:
    if shape == (1, 28, 28):
        return "digits"
    if len(shape) != 3 or shape[0] != 3:
        return "raw"
    if find_spec("torch_fidelity") is not None:
        return "inception"
    told = "torch-fidelity is not installed (scorefield[metrics]); comparing random features"
    warnings.warn(f"{told}, which published distances do not use", ScorefieldWarning, stacklevel=3)
    return "random"
