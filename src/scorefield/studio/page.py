"""The page: which model, the tabs, and the server of this machine alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from scorefield.diagnose.chapters import COMPARED
from scorefield.errors import InputError, ScorefieldError
from scorefield.studio import compare, restore, show
from scorefield.studio.opened import Opened, runs_here
from scorefield.studio.pictures import for_pad
from scorefield.studio.session import Session
from scorefield.studio.tabs import (
    LOAD,
    Common,
    between_tab,
    compare_tab,
    complete_tab,
    draw_tab,
    guided_by,
    judge_tab,
    restore_tab,
)
from scorefield.studio.words import one_line

HOST = "127.0.0.1"
PADS = {"complete": 3, "judge": 8, "first": 1, "last": 18, "restore": 11}
"""Pads, and the held-out digit that each begins with."""
FONT = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
MONO = [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]


def build(session: Session, run: str) -> gr.Blocks:
    """The page, with a run opened."""
    opened = session.open(run)
    with gr.Blocks(title="scorefield studio", analytics_enabled=False) as page:
        current, carrier = gr.State(run), gr.Textbox(visible=False)
        common = Common(session, current, carrier)
        gr.HTML(
            "<div class='sf-head'><h1>scorefield studio</h1><p>A score model to play with: everything is computed on this "
            "machine, and nothing leaves it.</p></div>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                choice = gr.Dropdown(
                    sorted({*runs_here(), run}, key=lambda name: (name != "digits", name)),
                    value=run,
                    label="Model: digits is bundled; or a run of yours, or its folder",
                    allow_custom_value=True,
                    elem_id="model",
                )
            with gr.Column(scale=1, min_width=280):
                about = gr.HTML(show.about(opened), elem_id="about")
        with gr.Tab("Draw"):
            first, guided = draw_tab(common, opened)
        with gr.Tab("Complete"):
            complete_tab(common)
        with gr.Tab("How likely"):
            judge_tab(common)
        with gr.Tab("Between"):
            between_tab(common)
        with gr.Tab("Restore"):
            operator = restore_tab(common, opened)
        with gr.Tab("Samplers"):
            names = compare_tab(common, opened)

        def fill(run: str) -> str:
            return _examples(session, session.open(run))

        def change(run: str) -> list[Any]:
            try:
                fresh = session.open(run, again=True)
            except (ScorefieldError, ValueError) as error:
                raise gr.Error(one_line(error), print_exception=False) from None
            known = compare.choices(fresh)
            chosen = [name for name in COMPARED if name in known]
            return [
                fresh.run,
                show.about(fresh),
                *(gr.update(**given) for given in guided_by(fresh)),
                gr.Dropdown(choices=restore.choices(fresh.shape[0])),
                gr.Dropdown(choices=known, value=chosen),
                _examples(session, fresh),
            ]

        page.load(**first)
        page.load(fill, current, carrier, show_progress="hidden").success(None, carrier, None, js=LOAD)
        outputs = [current, about, *guided, operator, names, carrier]
        opening = choice.input(change, choice, outputs, show_progress="hidden", concurrency_id="work")
        opening.success(None, carrier, None, js=LOAD).success(**first)
    return page


def serve(
    run: str = "digits",
    *,
    port: int | None = None,
    browser: bool = True,
    device: str | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    wait: bool = True,
) -> tuple[gr.Blocks, str]:
    """Open the page on this machine; returns it and its address, at once where `wait` is False.

    Main arguments:
        run: folder of a run, or digits. port: a free one from 7860 on unless given. browser: open it there.
        seed: the one that the page begins with. folder: where pictures are kept that the shown lines name; a temporary one
            unless given.

    Raises:
        InputError: no such run, or a port that is taken.
    """
    place = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="scorefield-studio-"))
    page = build(Session(place, device, seed), run)
    here = Path(__file__).parent
    try:
        _, address, _ = page.queue(api_open=False).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=browser,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            footer_links=[],
            max_file_size="64mb",
            theme=_theme(),
            css=(here / "style.css").read_text("utf-8"),
            head=f"<script>{(here / 'pad.js').read_text('utf-8')}</script>",
        )
    except OSError as error:
        taken = f"--port={port} is taken or not allowed" if port else "no port from 7860 to 7959 is free"
        raise InputError(f"{taken}; give another, such as --port 8000") from error
    if wait:
        print(f"scorefield studio: {address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return page, address


def _theme() -> gr.themes.Soft:
    """Quiet labels, and fonts that every system has: others would be fetched from elsewhere."""
    plain = {"block_title_background_fill": "transparent", "block_title_text_color": "*body_text_color_subdued"}
    dim = {"body_text_color_subdued": "*neutral_500", "body_text_color_subdued_dark": "*neutral_300"}
    dark = {f"{name}_dark": value for name, value in plain.items()}
    theme = gr.themes.Soft(primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=MONO)
    return theme.set(block_title_padding="0", block_title_text_weight="500", **plain, **dark, **dim)


def _examples(session: Session, opened: Opened) -> str:
    """What all pads begin with."""
    found: dict[str, Any] = {}
    one = None if opened.has_digits else session.example(opened, 0)
    for pad, number in PADS.items():
        found |= json.loads(for_pad(pad, session.example(opened, number) if one is None else one))
    return json.dumps(found)
