"""What the page keeps: opened models, the folder of its files, and the work of each visitor."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from scorefield.data import digits
from scorefield.errors import ScorefieldError
from scorefield.studio import show
from scorefield.studio.draw import Draw
from scorefield.studio.opened import Opened, open_images
from scorefield.studio.pictures import from_data_url, kept
from scorefield.studio.words import one_line
from scorefield.studio.work import Stopped, Task, Watch

STOPPED = "<b>Stopped</b>"


@dataclass
class Session:
    """What handlers share.

    Attributes:
        folder: where pictures are kept that the shown lines name. device: of models. models: opened ones, by run.
        seed: where the page begins. work: what each visitor's page is at.
    """

    folder: Path
    device: str | None = None
    seed: int = 0
    models: dict[str, Opened] = field(default_factory=dict)
    work: dict[str, Watch] = field(default_factory=dict)

    def open(self, run: str, again: bool = False) -> Opened:
        """The model of a run, read anew where asked."""
        if again or run not in self.models:
            opened = open_images(run, self.device)
            if len(self.models) >= 3:
                self.models.pop(next(iter(self.models)))
            self.models[run] = opened
        return self.models[run]

    def stop(self, visitor: str | None) -> None:
        """Let a visitor's work end."""
        if (watch := self.work.get(visitor or "")) is not None:
            watch.stop()

    def picture(self, opened: Opened, text: str, what: str = "picture") -> str:
        """The file of what is on a pad, or of what is known of it.

        Raises:
            InputError: there is nothing on it.
        """
        found = json.loads(text) if text else {}
        known = what == "known"
        pixels = from_data_url(found.get(what, ""), 1 if known else opened.shape[0])
        if tuple(pixels.shape[1:]) != opened.shape[1:]:
            pixels = from_data_url("", 1)  # of another model, from before it was changed
        return kept(self.folder, pixels, "mask" if known else "image")

    def pair(self, opened: Opened, first: str, last: str) -> str:
        """The folder of the pictures on two pads.

        Raises:
            InputError: there is nothing on one of them.
        """
        ends = [Path(self.picture(opened, text)) for text in (first, last)]
        folder = self.folder / "-".join(["ends", *(path.stem.removeprefix("image-") for path in ends)])
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in zip(("0.png", "1.png"), ends, strict=True):
            shutil.copyfile(path, folder / name)
        return str(folder)

    def example(self, opened: Opened, number: int | None = None) -> Any:
        """Pixels (C, H, W) of something that the model knows: a held-out digit, or a sample of it."""
        number = random.randrange(1000) if number is None else number
        if opened.has_digits:
            return digits(train=False)[number]
        drawn = Draw(n=1, seed=number).run(opened, Watch())
        low, high = opened.interval
        return ((drawn.x[0] - low) / (high - low) * 255).round().clamp(0, 255).byte()

    def runner(
        self,
        build: Callable[..., Any],
        present: Callable[[Opened, Any, Any, Watch], tuple[str, list[Any]]],
        outputs: int,
        live: Callable[[Opened, Watch], Any] | None = None,
    ) -> Callable[..., Iterator[list[Any]]]:
        """A handler of a Run button: status, `outputs` results, Python, command; results while it works only by `live`.

        Main arguments:
            build: options of the computation from (opened, values of the page).
            present: a sentence and the outputs from (opened, options, result, watch).
        """

        def handler(request: gr.Request, run: str, *values: Any) -> Iterator[list[Any]]:
            visitor, watch = request.session_hash or "", Watch()
            self.work[visitor] = watch
            idle = [gr.skip()] * outputs
            try:
                opened = self.open(run)
                options = build(opened, *values)
                task = Task(lambda: options.run(opened, watch), opened.net, watch)
                for seen in task:
                    shown = [live(opened, seen), *idle[1:]] if live is not None and seen.picture is not None else idle
                    yield [show.progress(seen), *shown, gr.skip(), gr.skip()]
                sentence, results = present(opened, options, task.result(), watch)
                command = options.command(opened) or "# no command has this choice; the lines of Python do it"
                yield [show.remarks(watch, sentence), *results, options.python(opened), command]
            except Stopped:
                yield [STOPPED + f" after {watch.calls} network calls", *idle, gr.skip(), gr.skip()]
            except (ScorefieldError, ValueError) as error:
                yield ["", *idle, gr.skip(), gr.skip()]
                raise gr.Error(one_line(error), print_exception=False) from None
            finally:
                watch.stop()

        return handler
