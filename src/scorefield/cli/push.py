"""scorefield push."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from scorefield.cli.options import Common, Flag, Name, Result, Unset
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """Publish a run on the Hugging Face hub, or write what would be published to a folder.

    Weights are the averaged ones; the card states SDE, network, data, preset, licence, and the figures of the last
    evaluate. The token is that of `hf auth login` or of HF_TOKEN.

    Example: scorefield push runs/digits somebody/digits --licence apache-2.0
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")]
    """Folder that train wrote, or digits for the bundled model."""
    repo: Annotated[str | None, tyro.conf.Positional, Unset("OWNER/NAME")] = None
    """Where to publish; made if it does not exist."""
    folder: Annotated[str | None, Unset("FOLDER")] = None
    """Write there in place of publishing."""
    licence: Annotated[str | None, Unset("NAME")] = None
    """As the hub spells it: apache-2.0, mit, cc-by-4.0."""
    preset: Annotated[str | None, Unset("NAME")] = None
    """The configuration it was trained with, for the card."""
    private: Flag = False
    """Make a new repository private."""


def run(options: Options) -> Result:
    """Do what the options ask."""
    from scorefield.publish import push_to_hub, save_pretrained

    if (options.repo is None) == (options.folder is None):
        raise InputError("give either OWNER/NAME to publish, or --folder to write to a folder")
    card: dict[str, Any] = {"licence": options.licence, "preset": options.preset}
    if options.folder is not None:
        path = save_pretrained(options.run, options.folder, **card)
        return Result(f"{path}: weights, description and card", {"folder": str(path)})
    address = push_to_hub(options.run, str(options.repo), private=options.private or None, **card)
    return Result(address, {"address": address})
