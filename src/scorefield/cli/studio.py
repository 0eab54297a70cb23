"""scorefield studio."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated

import tyro

import scorefield as sf
from scorefield.cli.options import Common, Flag, Name, Result, Unset
from scorefield.errors import InputError

EXTRA = 'the studio needs gradio; install it with pip install "scorefield[studio]"'


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """A page to play with a model of images, in the browser and on this machine alone.

    Example: scorefield studio runs/digits --port 8000
    """

    run: Annotated[str, tyro.conf.Positional, Name("RUN")] = "digits"
    """Folder that train wrote; the bundled model of digits unless given."""
    port: Annotated[int | None, Unset("INT")] = None
    """Port of the page; a free one from 7860 on unless given."""
    no_browser: Flag = False
    """Do not open the browser; the address is printed."""
    folder: Annotated[str | None, Unset("FOLDER")] = None
    """Where drawn and uploaded pictures are kept, which the shown lines name; a temporary one unless given."""


def run(options: Options) -> Result:
    """Serve the page until Ctrl-C."""
    if options.port is not None and not 1 <= options.port <= 65535:
        raise InputError(f"--port={options.port} is impossible; expected 1 to 65535, such as 8000")
    sf.training.read_run(options.run)
    if importlib.util.find_spec("gradio") is None:
        raise InputError(EXTRA)
    from scorefield.studio.page import serve

    _, address = serve(
        options.run,
        port=options.port,
        browser=not options.no_browser,
        device=options.device,
        seed=options.seed,
        folder=options.folder,
    )
    return Result("", {"address": address})
