"""scorefield infill."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import scorefield as sf
from scorefield.cli.options import Drawing, Number, OfRun, Result, Unset
from scorefield.cli.states import Known, codec_of, draw_states, holds_states
from scorefield.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from scorefield.training import RunInfo


@dataclass(frozen=True, kw_only=True)
class Options(Drawing, OfRun):
    """Fill in the unknown part of a text, a row of a table, or an array of states, under a run of states.

    Example: scorefield infill runs/text --text "the ____ of a function" -n 4
    """

    text: Annotated[str | None, Unset("TEXT")] = None
    """Text with blanks, at most as long as an item of the run, or a row of a table with blanks between commas."""
    array: Annotated[str | None, Unset("FILE")] = None
    """.npy file of states shaped like an item, with -1 where they are unknown."""
    blank: str = "_"
    """The character that stands for what is unknown."""
    sampler: Annotated[str | None, Unset("NAME[:OPTION=VALUE,...]")] = None
    """tweedie, first-hitting, tau-leaping, ...; list shows all that suit the run, whose own is taken unless given."""
    n: Number = 4
    """Number of samples."""
    out: Annotated[str | None, Unset("FILE")] = None
    """.txt, .csv, .npy, .npz, .safetensors or a picture, as the run's data; infill.txt or the like in RUN unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    info = sf.training.read_run(options.run)
    if not holds_states(info):
        vectors = len(info.shape) == 1
        way = "columns of numbers are given in Python (docs/likelihood.md, Rows given some columns)"
        raise InputError(f"{options.run} is not a run of states; {way if vectors else 'for images use inpaint'}")
    hook, known = _known(options, info)
    return draw_states(options, "infill", hook, known=known)


def _known(options: Options, info: RunInfo) -> tuple[Any, Known | None]:
    """The hook that keeps what is known, and the words or characters that were given, None where there is a blank.

    Raises:
        InputError: neither or both of text and array, or one that does not fit the run.
    """
    import torch

    if (options.text is None) == (options.array is None):
        raise InputError("give what is known as either --text or --array")
    if len(options.blank) != 1:
        raise InputError(f"--blank={options.blank!r} is impossible; expected one character")
    given: Known | None = None
    if options.text is None:
        states = _from_array(options, info)
    else:
        states, given = _from_text(options, info, codec_of(info))
    if not bool((states < 0).any()):
        raise InputError("nothing is unknown; leave blanks to fill in")
    return sf.discrete.Infill(states.clamp_min(0), torch.as_tensor(states >= 0)), given


def _from_row(words: str, blank: str, codec: Any) -> tuple[Tensor, Known]:
    """States of a row of a table, -1 where they are blank, and its words."""
    import torch

    parts = [part.strip() for part in next(csv.reader([words], skipinitialspace=True), [""])]
    if len(parts) != len(codec.names):
        raise InputError(f"--text has {len(parts)} entries and the run {len(codec.names)} columns; write them all")
    for name, part in zip(codec.names, parts, strict=True):
        if not part:
            raise InputError(f"--text has nothing in column {name}; write {blank} for what is unknown")
    filled = [values[0] if part == blank else part for values, part in zip(codec.values, parts, strict=True)]
    states: torch.Tensor = codec.read([filled], "--text")[0]
    hidden = torch.tensor([part == blank for part in parts])
    return states.masked_fill(hidden, -1), [None if part == blank else part for part in parts]


def _from_text(options: Options, info: RunInfo, codec: Any) -> tuple[Tensor, Known]:
    """States of a text, -1 where they are blank, and its characters."""
    import torch

    words = options.text or ""
    if hasattr(codec, "names"):
        return _from_row(words, options.blank, codec)
    if not hasattr(codec, "symbols"):
        raise InputError("--text is for runs of characters or tables; give the states of this run as --array")
    length = info.shape[0]
    if len(words) > length:
        raise InputError(f"--text has {len(words)} characters and an item of the run {length}; give a shorter text")
    if options.blank in codec.symbols:
        raise InputError(f"--blank={options.blank!r} is a character of the run; choose another, such as --blank '?'")
    words = words.ljust(length, options.blank)
    known = "".join(codec.symbols[0] if c == options.blank else c for c in words)
    plain = type(codec)(codec.symbols)  # blanks would be folded too
    states = plain.read(known.lower() if codec.fold else known, "--text")
    hidden = torch.tensor([c == options.blank for c in words])
    return states.masked_fill(hidden, -1), [None if c == options.blank else c for c in words]


def _from_array(options: Options, info: RunInfo) -> Tensor:
    """States of an array, -1 where they are unknown."""
    import numpy as np
    import torch

    path = options.array or ""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read --array {path}: {' '.join(str(error).split())}; give a .npy file") from error
    if values.dtype.kind not in "iu" or values.shape != info.shape:
        raise InputError(f"--array {path} has {values.dtype} of shape {values.shape}; expected integers {info.shape}")
    states = torch.from_numpy(values.astype(np.int64))
    if int(states.max()) >= (info.levels or 0):
        raise InputError(
            f"--array {path} has state {int(states.max())}; the run has states from 0 to {(info.levels or 1) - 1}"
        )
    return states
