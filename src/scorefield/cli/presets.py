"""scorefield presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from scorefield.cli.options import Common, Result, Unset
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """List the configurations of the paper, or show one.

    Example: scorefield presets ve/cifar10_ncsnpp_continuous
    """

    name: Annotated[str | None, tyro.conf.Positional, Unset("NAME")] = None
    """Official name of a configuration, or adm/NAME of one of guided diffusion; the official ones are listed unless given."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.presets import get, names
    from scorefield.presets.guided import GUIDED
    from scorefield.training.recipes import OWN

    if options.name is None:
        return Result("\n".join(names()), {"presets": names()})
    if options.name in GUIDED:
        flags = asdict(GUIDED[options.name])
        return Result("\n".join(_lines(flags)), flags)
    if options.name in OWN:
        raise InputError(
            f"{options.name!r} is a recipe of scorefield, none of the paper's; "
            f"`scorefield train {options.name} --help` shows its settings"
        )
    config = get(options.name).official()
    return Result("\n".join(_lines(config)), config)


def _lines(config: dict[str, Any]) -> list[str]:
    lines = []
    for section, values in config.items():
        if isinstance(values, dict):
            lines += [section, *(f"  {key:28}{value}" for key, value in values.items())]
        else:
            lines.append(f"{section:30}{values}")
    return lines
