"""Figures as files: samples beside data, and likelihoods; the suffix decides the format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorefield.cli.files import check_suffix, is_image
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.training import RunInfo

FIGURES = (".png", ".svg", ".pdf")
BESIDE = 1000
"""Items of data at most that are drawn beside samples."""


def is_figure(path: str, shape: tuple[int, ...], beside: str | None) -> bool:
    """Whether samples of a shape go into a file as a figure: what is no image, and images beside data.

    Raises:
        InputError: data beside samples in a file of another kind, or no matplotlib.
    """
    wanted = Path(path).suffix.lower() in FIGURES and (beside is not None or not is_image(shape))
    if beside is not None and not wanted:
        raise InputError(f"--data {beside} is drawn beside the samples in a figure; give --out a .png, .svg or .pdf")
    if wanted:
        check_figure(path)
    return wanted


def check_figure(path: str) -> None:
    """Refuse a figure that cannot be written.

    Raises:
        InputError: an unknown suffix, or no matplotlib.
    """
    check_suffix(path, FIGURES)
    try:
        import scorefield.charts  # noqa: F401
    except ImportError as error:
        raise InputError(f"cannot write {path}: {error}") from error


def write_items(path: str, x: Tensor, info: RunInfo, beside: str | None, seed: int) -> None:
    """Draw samples in the units of the data, next to as many items of the data called `beside`.

    Raises:
        InputError: no such data, or of another shape. OutputError: the place is not writable.
    """
    from scorefield.charts import items, save_figure
    from scorefield.cli.data import open_items
    from scorefield.evaluation.bits import model_input

    groups = {"samples": x}
    if beside is not None:
        data = open_items(beside, info)
        count = min(BESIDE, data.size, max(len(x), 9))
        index = [k * data.size // count for k in range(count)]  # evenly, since data is often sorted
        z = model_input(data, index, info.range, seed)
        groups["data"] = info.in_units(z)
    interval = info.range if is_image(info.shape) and info.scale is None else None
    save_figure(items(groups, interval, info.data.get("columns", ())), path)


def write_values(path: str, rows: list[dict[str, Any]], discrete: bool) -> None:
    """Draw the likelihoods of a table of the command likelihood."""
    import torch

    from scorefield.charts import save_figure, values

    key, unit = ("bits_per_dim", "bits/dim") if discrete else ("nats", "nats")
    found = torch.tensor([row[key] for row in rows], dtype=torch.float64)
    errors = torch.tensor([row["nats_stderr"] for row in rows], dtype=torch.float64)
    if discrete:  # the errors are of nats an item
        errors = errors * (found / torch.tensor([row["nats"] for row in rows], dtype=torch.float64)).abs()
    save_figure(values(found, errors, unit), path)
