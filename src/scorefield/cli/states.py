"""Runs of states, text or tables or discrete images: their samplers, their data, and how samples are written."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import scorefield as sf
from scorefield.bundled import results_folder
from scorefield.cli.files import PICTURES, check_suffix, is_image, write_samples
from scorefield.cli.options import Result, check_writable, drawn, label_condition, open_run, plural
from scorefield.data.states import lines_of
from scorefield.errors import InputError
from scorefield.files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.data import Dataset
    from scorefield.training import RunInfo

ARRAYS = (".npy", ".npz", ".safetensors")
"""Files that hold states as integers."""
LINES = 8
"""Samples of text that are shown."""
LISTED = 2**16
"""States of all samples up to which --json holds them."""
Known: TypeAlias = "Sequence[str | None]"


def holds_states(info: RunInfo) -> bool:
    """Whether the model of a run is one of a jump process."""
    kind = getattr(sf.discrete, str((info.model.get("sde") or {}).get("class")), None)
    return isinstance(kind, type) and issubclass(kind, sf.discrete.JumpProcess)


def codec_of(info: RunInfo) -> Any:
    """What the states of a run stand for; None where they are numbers."""
    from scorefield.training.describe import from_json

    return from_json(info.data["codec"]) if "codec" in info.data else None


def ranged(codec: Any) -> list[str]:
    """Columns of numbers that a run takes by ranges."""
    return [name for name, edges in zip(getattr(codec, "names", ()), getattr(codec, "edges", ()), strict=True) if edges]


def open_run_states(source: str, info: RunInfo) -> Dataset:
    """Data for a run of states, read as that of the run was.

    Raises:
        InputError: no such data, or other states or another shape than the run has.
    """
    from scorefield.data.states import open_states

    codec = codec_of(info)
    data = open_states(source, codec=codec, length=info.shape[0], levels=info.levels, train=False)
    if data.shape != info.shape:
        raise InputError(
            f"{source} has items of shape {data.shape} and the run {info.shape}; give data of the same shape"
        )
    if data.levels != info.levels:
        raise InputError(
            f"{source} has {data.levels} states and the run {info.levels}; give data of the same vocabulary"
        )
    return data


def suffixes(info: RunInfo) -> tuple[str, ...]:
    """Kinds of files that samples of a run can be written to, the best one first."""
    codec = codec_of(info)
    if codec is not None:
        return (".csv" if hasattr(codec, "names") else ".txt", *ARRAYS)
    return (".png", *PICTURES, *ARRAYS) if is_image(info.shape) else ARRAYS


def write_states(out: str, x: Tensor, info: RunInfo, columns: int | None, written: list[list[str]] | None) -> str:
    """Write samples (N, *) of states in the form that the suffix names; what is shown of them, empty for arrays.

    Main arguments:
        written: what `in_words` makes of them.

    Raises:
        OutputError: the disk is full or the place not writable.
    """
    codec, suffix = codec_of(info), check_suffix(out, suffixes(info))
    if suffix in PICTURES:
        write_samples(out, x.float(), 0.0, float((info.levels or 2) - 1), columns)
        return ""
    if suffix in ARRAYS:
        import numpy as np

        if suffix == ".safetensors":
            import safetensors.torch

            content = safetensors.torch.save({"samples": x.contiguous()})
        else:
            buffer = io.BytesIO()
            np.save(buffer, x.numpy()) if suffix == ".npy" else np.savez(buffer, samples=x.numpy())
            content = buffer.getvalue()
        with atomic_file(out) as file:
            file.write(content)
        return ""
    rows = written or []
    lines = lines_of(rows) if hasattr(codec, "names") else ["".join(row) for row in rows]
    shown = "".join(f"\n  {line}" for line in lines[:LINES])
    if suffix == ".csv":
        lines = [*lines_of([codec.names]), *lines]
    with atomic_file(out, "w") as file:
        file.write("\n".join(lines) + "\n")
    return shown


def in_words(x: Tensor, codec: Any, known: Known | None = None) -> list[list[str]]:
    """Samples (N, *) of text or rows of a table: words or characters, those that were known as they were given."""
    if hasattr(codec, "names"):
        rows = codec.rows(x)
    else:
        rows = [list(text) if known else [text] for text in codec.write(x)]
    if known is None:
        return list(rows)
    return [[new if old is None else old for new, old in zip(row, known, strict=True)] for row in rows]


def _values(x: Tensor, codec: Any, written: list[list[str]] | None) -> list[Any]:
    """Samples as JSON: texts, rows of a table by the names of their columns, or lists of states."""
    if written is None:
        listed: list[Any] = x.tolist()
        return listed
    if not hasattr(codec, "names"):
        return ["".join(row) for row in written]
    numbers = [bool(edges) for edges in codec.edges]
    return [
        {name: float(v) if number else v for name, v, number in zip(codec.names, row, numbers, strict=True)}
        for row in written
    ]


def draw_states(options: Any, stem: str, *hooks: Any, known: Known | None = None) -> Result:
    """Draw samples from a run of states and write them, into RUN under the stem unless a file is named.

    Main arguments:
        known: for each position of text or of a row what it was given as, None where it is drawn.

    Raises:
        InputError: a file that cannot hold them, or a class that there is not. OutputError: it cannot be written.
    """
    begin, info = time.monotonic(), sf.training.read_run(options.run)
    out = options.out or str(results_folder(options.run) / f"{stem}{suffixes(info)[0]}")
    check_suffix(out, suffixes(info))
    check_writable(out)
    info, model = open_run(options.run, options.device)
    cond = label_condition(model, getattr(options, "label", None), options.n)
    done = drawn(options, model, options.n, info.shape, hooks=hooks, **cond)
    x, codec = done.x.cpu(), codec_of(info)
    written = None if codec is None else in_words(x, codec, known)
    shown = write_states(out, x, info, getattr(options, "columns", None), written)
    calls, seconds = float(done.nfe.double().mean()), time.monotonic() - begin
    text = f"{plural(options.n, 'sample')}, {calls:.0f} network calls at most, {seconds:.1f} s: {out}{shown}"
    values = {"out": out, "n": options.n, "nfe": calls, "seconds": seconds, "seed": options.seed}
    if x.numel() <= LISTED:
        values["samples"] = _values(x, codec, written)
    return Result(text, values)
