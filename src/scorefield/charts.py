"""Figures by matplotlib, for results that are looked at: items of every shape, curves, ranks, values with error bars."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("figures need matplotlib: pip install 'scorefield[plot]'") from error

from scorefield.files import atomic_file
from scorefield.plot import image_grid

MOST = {"picture": 36, "signal": 6, "volume": 4, "vector": 1000}
"""Items of a group that are drawn at most."""
PAIRED = 5
"""Entries of vectors that are drawn against each other at most."""
Groups = Mapping[str, Tensor]
"""Items (N, *) of one shape under the names that the figure gives them."""


class Chart(Figure):
    """A figure that notebooks show by themselves."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


def kind_of(shape: Sequence[int]) -> str:
    """What items of a shape are drawn as: "vector", "signal" (C, L), "picture" (C, H, W) or "volume" (C, D, H, W)."""
    return {2: "signal", 3: "picture", 4: "volume"}.get(len(shape), "vector")


def items(groups: Groups, interval: tuple[float, float] | None = None, names: Sequence[str] = ()) -> Chart:
    """Items side by side: pairs of entries of vectors, traces of signals, grids of pictures, middle slices of volumes.

    Main arguments:
        interval: values shown as black and white; those of all the groups unless given. names: of the entries of vectors.
    """
    groups = {name: x.detach().float().cpu() for name, x in groups.items()}
    kind = kind_of(next(iter(groups.values())).shape[1:])
    groups = {name: x[: MOST[kind]] for name, x in groups.items()}
    if kind == "vector":
        return _pairs({name: x.flatten(1) for name, x in groups.items()}, names)
    if kind == "signal":
        return _traces(groups)
    low, high = interval or (min(float(x.min()) for x in groups.values()), max(float(x.max()) for x in groups.values()))
    if kind == "volume":
        groups = {name: _slices(x) for name, x in groups.items()}
    return _grids(groups, low, max(high, low + 1e-12), 3 if kind == "volume" else None)


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str) -> Chart:
    """Lines (x, y) under their names, on a logarithmic axis where all values are positive."""
    figure, axes = _empty(1, 1, (6.0, 3.6))
    for name, (x, y) in lines.items():
        axes[0].plot(x, y, label=name)
    if all(v > 0 for _, y in lines.values() for v in y):
        axes[0].set_yscale("log")
    axes[0].set(xlabel=across, ylabel=up)
    axes[0].legend(frameon=False)
    return figure


def bands(groups: Groups, across: str, middle: str) -> Chart:
    """Mean and two standard deviations of samples (n, L) over their entries, a panel for each group, with three of them."""
    figure, axes = _empty(len(groups), 1, (7.0, 2.2 * len(groups)))
    for ax, (name, x) in zip(axes, groups.items(), strict=True):
        x, at = x.detach().float().cpu(), range(x.shape[1])
        mean, std = x.mean(0), x.std(0, correction=0)
        ax.fill_between(at, (mean - 2 * std).tolist(), (mean + 2 * std).tolist(), alpha=0.25, label="2 deviations")
        for row in x[:3]:
            ax.plot(at, row.tolist(), lw=0.6, color="grey")
        ax.plot(at, mean.tolist(), label=middle)
        ax.set(title=name, xlabel=across)
    axes[0].legend(frameon=False)
    return figure


def ranks(found: Tensor, samples: int) -> Chart:
    """Histograms of ranks (M, Q) of up to nine quantities, with the band in which 99 % of bars of even ranks lie."""
    shown = min(found.shape[1], 9)
    columns = math.ceil(math.sqrt(shown))
    figure, axes = _empty(math.ceil(shown / columns), columns, (3.0 * columns, 2.2 * math.ceil(shown / columns)))
    bins = min(samples + 1, 20)
    edges = [k * (samples + 1) / bins - 0.5 for k in range(bins + 1)]
    share = 1 / bins
    mean, reach = len(found) * share, 2.576 * math.sqrt(len(found) * share * (1 - share))
    for q, ax in enumerate(axes[:shown]):
        ax.axhspan(max(mean - reach, 0), mean + reach, alpha=0.2, color="grey")
        ax.axhline(mean, color="grey", lw=0.8)
        ax.hist(found[:, q].double().numpy(), bins=edges)
        ax.set(title=f"quantity {q}" if found.shape[1] > 1 else "", xlabel=f"rank among {samples}")
    for ax in axes[shown:]:
        ax.set_axis_off()
    return figure


def values(found: Tensor, errors: Tensor, unit: str) -> Chart:
    """Values (N,) as a histogram, and in order with their standard errors where these are known."""
    known = torch.isfinite(found)
    x, e = found[known].detach().double().cpu(), errors[known].detach().double().cpu()
    order = x.argsort()
    figure, axes = _empty(1, 2, (8.0, 3.0))
    axes[0].hist(x.numpy(), bins=min(40, max(5, len(x) // 5)))
    if len(x):
        axes[0].axvline(float(x.mean()), color="black", lw=0.8, label=f"mean {float(x.mean()):.4g}")
        axes[0].legend(frameon=False)
    axes[0].set(xlabel=unit, ylabel="items")
    bars = e[order].nan_to_num(0.0).numpy()
    axes[1].errorbar(range(len(x)), x[order].numpy(), yerr=bars, fmt=".", ms=3, elinewidth=0.8)
    axes[1].set(xlabel="items in order", ylabel=unit)
    return figure


def paths(path: Tensor, times: Tensor) -> Chart:
    """Trajectories (K, N, *) over time: strips of pictures and volumes, else the first entries of up to 100 samples."""
    path, times = path.detach().float().cpu(), times.detach().double().cpu()
    if kind_of(path.shape[2:]) in ("picture", "volume"):
        at = torch.linspace(0, len(path) - 1, min(len(path), 8)).round().long()
        few = path[at, :4].transpose(0, 1)
        flat = few.flatten(0, 1)
        flat = _slices(flat)[1::3] if flat.ndim == 5 else flat
        each = flat.flatten(1)
        low, high = each.amin(1), each.amax(1)
        scaled = (flat - low.reshape(-1, 1, 1, 1)) / (high - low).clamp(min=1e-12).reshape(-1, 1, 1, 1)
        head = f"t = {', '.join(f'{t:.2g}' for t in times[at].tolist())}"
        return _grids({head: scaled}, 0.0, 1.0, len(at))
    figure, axes = _empty(1, 1, (6.0, 3.6))
    axes[0].plot(times.numpy(), path.flatten(2)[:, :100, 0].numpy(), lw=0.6, alpha=0.6)
    axes[0].invert_xaxis()
    axes[0].set(xlabel="t", ylabel="first entry")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure so that a half-written file is never seen; the format follows the suffix.

    Raises:
        ValueError: a suffix that matplotlib does not know.
    """
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix.lower().lstrip(".") or "png", dpi=120)
    with atomic_file(path) as file:
        file.write(content.getvalue())


def _empty(rows: int, columns: int, size: tuple[float, float]) -> tuple[Chart, list[Any]]:
    figure = Chart(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _pairs(groups: Groups, names: Sequence[str]) -> Chart:
    d = min(next(iter(groups.values())).shape[1], PAIRED)
    figure, axes = _empty(d, d, (2.0 * d + 1, 1.9 * d + 0.6))
    for i in range(d):
        for j in range(d):
            ax = axes[i * d + j]
            if j > i:
                ax.set_axis_off()
                continue
            spread = torch.cat([x[:, i] for x in groups.values()])
            bins = torch.linspace(float(spread.min()), float(spread.max()) + 1e-9, 31).tolist()
            for name, x in groups.items():
                if i == j:
                    ax.hist(x[:, i].numpy(), bins=bins, density=True, histtype="step", label=name)
                else:
                    ax.scatter(x[:, j].numpy(), x[:, i].numpy(), s=2, alpha=0.5, lw=0)
            if i == d - 1:
                ax.set_xlabel(names[j] if names else f"entry {j}")
            if j == 0 and i > 0:
                ax.set_ylabel(names[i] if names else f"entry {i}")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def _traces(groups: Groups) -> Chart:
    channels = min(next(iter(groups.values())).shape[1], 4)
    figure, axes = _empty(channels, len(groups), (5.0 * len(groups), 2.4 * channels))
    for k, (name, x) in enumerate(groups.items()):
        for c in range(channels):
            ax = axes[c * len(groups) + k]
            ax.plot(x[:, c].T.numpy(), lw=0.8)
            ax.set(title=name if c == 0 else "", ylabel=f"channel {c}" if channels > 1 else "")
            ax.sharey(axes[c * len(groups)])
    return figure


def _grids(groups: Groups, low: float, high: float, columns: int | None) -> Chart:
    figure, axes = _empty(1, len(groups), (4.0 * len(groups), 4.2))
    for ax, (name, x) in zip(axes, groups.items(), strict=True):
        shown = x if x.shape[1] in (1, 3) else x[:, :1]
        ax.imshow(image_grid(shown, columns, low, high), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        ax.set(title=name)
        ax.set_axis_off()
    return figure


def _slices(x: Tensor) -> Tensor:
    """The three middle slices of the first channel of volumes (N, C, D, H, W), (3 N, 1, S, S), padded to a square."""
    side = max(x.shape[2:])
    middle = [n // 2 for n in x.shape[2:]]
    cuts = [x[:, 0, middle[0]], x[:, 0, :, middle[1]], x[:, 0, :, :, middle[2]]]
    low = float(x.min())
    square = [
        torch.nn.functional.pad(c, (0, side - c.shape[2], 0, side - c.shape[1]), value=low).unsqueeze(1) for c in cuts
    ]
    return torch.stack(square, 1).flatten(0, 1)
