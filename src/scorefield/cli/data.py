"""Data for a run: opened with the run's shape, levels and range, and turned into what its model takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from scorefield.errors import InputError

if TYPE_CHECKING:
    from scorefield.data.dataset import Dataset
    from scorefield.solve.ode import Dopri5
    from scorefield.training import RunInfo


def open_items(source: str, info: RunInfo, *, grey: bool = False, skip_broken: bool = False) -> Dataset:
    """The data called `source`, of the kind that the run was trained on; "digits" are the held-out ones.

    Raises:
        InputError: no such data, or of another shape or number of levels; or a run of states or of speech.
    """
    from scorefield.automatic.findings import in_form
    from scorefield.cli.options import refuse_speech
    from scorefield.cli.states import holds_states
    from scorefield.data import open_data

    refuse_speech(info)
    if holds_states(info):
        raise InputError(
            f"{info.path} is a run of states, which has no score; judge it by scorefield likelihood {info.path} --data DATA "
            "on held-out data, and by what sample and infill write (docs/discrete.md, How good is it?)"
        )
    own = info.scale is not None  # by `fit`, whose networks take a form of the data (a channel more, a rim less)
    data = open_data(
        source,
        None if own else info.shape,
        train=False,
        levels=info.levels if info.levels != 256 else None,
        range=_range(info),
        convert=grey,
        skip_broken=skip_broken,
        span=info.data.get("span"),
    )
    if own:
        data = replace(in_form(data, info.shape), scale=info.scale)
        if data.columns and list(data.columns) != info.data.get("columns", list(data.columns)):
            raise InputError(
                f"{source} has the columns {', '.join(data.columns)}; give those of the run, in their order"
            )
    if data.levels != info.levels:
        raise InputError(
            f"{source} has {data.levels or 'no'} levels and the run was trained with {info.levels or 'none'}; "
            "convert it to the same kind"
        )
    return data


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that no solver can use.

    Raises:
        InputError: it is out of range.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"--tolerance={tolerance} is impossible; expected a number between 0 and 1, such as 1e-5")


def code_solver(tolerance: float) -> Dopri5:
    """The solver of codes, which holds every entry to the tolerance.

    Raises:
        InputError: the tolerance is out of range.
    """
    from scorefield.solve.ode import Dopri5

    check_tolerance(tolerance)
    return Dopri5(tolerance, tolerance, norm="max")


def _range(info: RunInfo) -> tuple[float, float] | None:
    given = info.data.get("range")
    return None if not given else (float(given[0]), float(given[1]))
