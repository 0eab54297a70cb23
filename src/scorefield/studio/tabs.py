"""The tabs: what is asked, what is shown, and which computation stands between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from scorefield.cli.names import solvers, usage
from scorefield.diagnose.chapters import COMPARED, COMPARED_STEPS
from scorefield.errors import ScorefieldError
from scorefield.inverse.restore import METHOD_STEPS
from scorefield.studio import compare, restore, show
from scorefield.studio.between import Between
from scorefield.studio.complete import Complete, covered
from scorefield.studio.draw import Draw
from scorefield.studio.judge import Judge
from scorefield.studio.opened import Opened
from scorefield.studio.pictures import for_pad, uploaded
from scorefield.studio.session import Session
from scorefield.studio.words import one_line

DEFAULT, ANY = "default", "any"
LOAD = "(text) => { window.scorefieldPads.write(text); }"


@dataclass
class Common:
    """What all tabs are given: the session, the name of the opened run, and a box that carries pictures to pads."""

    session: Session
    run: gr.State
    carrier: gr.Textbox


@dataclass
class Ends:
    """What stands below the settings of a tab and below its results."""

    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    python: gr.Code
    command: gr.Code


def sampler_words() -> list[str]:
    """What the choice of samplers offers: the default, and all that the classes give."""
    return [DEFAULT, *solvers()]


def word_of(sampler: str, options: str) -> str:
    """A sampler and its options as a word of the command line."""
    name, given = (sampler or "").strip(), (options or "").strip().lstrip(":")
    if name in ("", DEFAULT):
        return ""
    return f"{name}:{given}" if given else name


def number(value: Any) -> int | None:
    """A whole number of a field, None where it is empty or any."""
    return None if value in (None, "", ANY) else int(value)


def _buttons(word: str) -> tuple[gr.Button, gr.Button, gr.HTML]:
    with gr.Row():
        go = gr.Button(word, variant="primary", scale=3, min_width=120)
        stop = gr.Button("Stop", scale=1, min_width=70)
    return go, stop, gr.HTML("", elem_classes="sf-status")


def _lines() -> tuple[gr.Code, gr.Code]:
    with gr.Accordion("The same in Python and on the command line", open=False):
        python = gr.Code("", language="python", label="Python", interactive=False, lines=3, wrap_lines=True)
        command = gr.Code("", language="shell", label="Command", interactive=False, lines=1, wrap_lines=True)
    return python, command


def _samplers(default: str, steps: int) -> tuple[gr.Dropdown, gr.Textbox, gr.Number]:
    with gr.Row():
        sampler = gr.Dropdown(sampler_words(), value=default, label="Sampler", min_width=130, filterable=False)
        count = gr.Number(steps, label="Steps", precision=0, minimum=1, min_width=90)
    options = gr.Textbox("", label="Options of the sampler", placeholder=_hint(default), max_lines=1)
    sampler.input(lambda name: gr.Textbox(value="", placeholder=_hint(name)), sampler, options, show_progress="hidden")
    return sampler, options, count


def _hint(name: str) -> str:
    known = "" if name == DEFAULT else usage(name)
    return f"name=value, of {known}" if known else "it takes none"


def _pad(common: Common, name: str, label: str, masked: bool = False) -> None:
    """A canvas to draw on, with an example and an upload."""
    tools = [("brush", "Draw"), ("eraser", "Erase")]
    acts = [("undo", "Undo"), ("clear", "Clear"), ("invert", "Invert")]
    if masked:
        tools = [("cover", "Cover"), ("uncover", "Uncover"), *tools]
        acts = [("undo", "Undo"), ("half", "Lower half"), ("none", "Nothing"), ("clear", "Clear")]
    buttons = "".join(f"<button type='button' data-tool='{word}'>{text}</button>" for word, text in tools)
    buttons += "".join(f"<button type='button' data-act='{word}'>{text}</button>" for word, text in acts)
    gr.HTML(
        f"<div class='sf-pad' data-pad='{name}' data-masked='{'yes' if masked else 'no'}'><span class='sf-note'>{label}</span>"
        f"<canvas width='28' height='28' aria-label='{label}'></canvas><div class='sf-tools'>{buttons}</div></div>"
    )
    with gr.Row():
        another = gr.Button("Another example", size="sm", min_width=90, elem_id=f"example-{name}")
        upload = gr.UploadButton("Upload a picture", size="sm", min_width=90, elem_id=f"upload-{name}")

    def give(run: str) -> str:
        return for_pad(name, common.session.example(common.session.open(run)))

    def take(run: str, path: str) -> str:
        try:
            pixels, done = uploaded(path, common.session.open(run).shape)
        except ScorefieldError as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        gr.Info(done)
        return for_pad(name, pixels)

    for event, inputs, fn in ((another.click, [common.run], give), (upload.upload, [common.run, upload], take)):
        event(fn, inputs, common.carrier, show_progress="hidden", concurrency_id="work").success(
            None, common.carrier, None, js=LOAD
        )


def _wire(
    common: Common,
    ends: Ends,
    pads: Sequence[str],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    build: Callable[..., Any],
    present: Callable[..., tuple[str, list[Any]]],
    live: Callable[..., Any] | None = None,
) -> Any:
    """Let the button run the computation, with what is on the pads read by the browser at the click."""
    handler = common.session.runner(build, present, len(outputs), live)
    boxes = [gr.Textbox(visible=False) for _ in pads]
    count = len(inputs)
    read = ", ".join(f"window.scorefieldPads.read('{pad}')" for pad in pads)
    js = f"(...v) => [...v.slice(0, {1 + count}), {read}]" if pads else None
    arguments = {
        "fn": handler,
        "inputs": [common.run, *inputs, *boxes],
        "outputs": [ends.status, *outputs, ends.python, ends.command],
        "show_progress": "hidden",
        "concurrency_limit": 1,
        "concurrency_id": "work",
        "trigger_mode": "once",
    }
    ends.go.click(js=js, **arguments)

    def stop(request: gr.Request) -> None:
        common.session.stop(request.session_hash)

    ends.stop.click(stop, None, None, queue=False, show_progress="hidden")
    return arguments


def guided_by(opened: Opened) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the fields of class and guidance, and the word on them, are for a model with classes or without."""
    some = opened.classes > 0
    word = "Guidance sharpens a class; 1 is none." if some else "This model has no classes to be guided to."
    label = {"choices": [ANY, *map(str, range(opened.classes))], "value": ANY, "interactive": some}
    return label, {"value": 1.0, "interactive": some}, {"value": f"<p class='sf-note'>{word}</p>"}


def draw_tab(common: Common, opened: Opened) -> tuple[Any, tuple[Any, ...]]:
    """Samples and their way; returns how it is run, and what depends on the model."""
    ours = guided_by(opened)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.HTML("<p class='sf-note'>New pictures from noise. Watch them come, then go back in time.</p>")
            n = gr.Slider(1, 64, 16, step=1, label="Samples")
            sampler, options, steps = _samplers(DEFAULT, 20)
            seed = gr.Number(common.session.seed, label="Seed", precision=0, minimum=0)
            with gr.Row():
                label = gr.Dropdown(**ours[0], label="Class", min_width=90, filterable=False)
                guidance = gr.Number(**ours[1], label="Guidance", minimum=0, min_width=90)
            none = gr.HTML(**ours[2])
            go, stop, status = _buttons("Draw")
        with gr.Column(scale=3, min_width=280):
            picture = gr.HTML(show.EMPTY.format("samples appear here"), elem_id="samples")
            place = gr.Slider(0, 20, 20, step=1, label="Step, from noise to picture", elem_id="place")
            way = gr.HTML("", elem_id="way")
    kept = gr.State(None)
    ends = Ends(go, stop, status, *_lines())

    def build(
        opened: Opened, n: int, name: str, options: str, steps: Any, seed: Any, label: Any, guidance: Any
    ) -> Draw:
        return Draw(
            int(n),
            word_of(name, options),
            number(steps),
            int(seed or 0),
            number(label),
            1.0 if guidance is None else float(guidance),
        )

    def present(opened: Opened, options: Draw, drawn: Any, watch: Any) -> tuple[str, list[Any]]:
        last = len(drawn.path) - 1
        slider = gr.Slider(maximum=last, value=last)
        words = f"{options.n} sample{'s' * (options.n > 1)}, {drawn.nfe:.0f} network calls each"
        return words, [show.frame(opened, drawn, last), slider, show.way(opened, drawn), (opened, drawn)]

    def live(opened: Opened, watch: Any) -> str:
        return show.grid(opened, watch.picture)

    def look(kept: Any, place: float) -> Any:
        if kept is None:
            return gr.skip()
        opened, drawn = kept
        return show.frame(opened, drawn, min(int(place), len(drawn.path) - 1))

    inputs = [n, sampler, options, steps, seed, label, guidance]
    run = _wire(common, ends, [], inputs, [picture, place, way, kept], build, present, live)
    place.input(look, [kept, place], picture, show_progress="hidden", queue=False, trigger_mode="always_last")
    return run, (label, guidance, none)


def complete_tab(common: Common) -> None:
    """A part of a picture is covered, and filled in several times."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            _pad(common, "complete", "Cover what is to be filled in", masked=True)
            n = gr.Slider(1, 16, 4, step=1, label="Completions")
            sampler, options, steps = _samplers("pc", 50)
            seed = gr.Number(common.session.seed, label="Seed", precision=0, minimum=0)
            go, stop, status = _buttons("Complete")
        with gr.Column(scale=3, min_width=280):
            found = gr.HTML(
                show.EMPTY.format("completions, their mean and deviation appear here"), elem_id="completions"
            )
    ends = Ends(go, stop, status, *_lines())

    def build(opened: Opened, n: int, name: str, options: str, steps: Any, seed: Any, pad: str) -> Complete:
        image, mask = (common.session.picture(opened, pad, what) for what in ("picture", "known"))
        return Complete(image, mask, int(n), word_of(name, options), number(steps), int(seed or 0))

    def present(opened: Opened, options: Complete, done: Any, watch: Any) -> tuple[str, list[Any]]:
        image = _image(opened, options.image)
        before = [("the picture", image), ("what is known", covered(done.known, image, opened.interval[0]))]
        words = f"{options.n} completion{'s' * (options.n > 1)}, {done.nfe:.0f} network calls each"
        return words, [show.several(opened, before, done)]

    _wire(common, ends, ["complete"], [n, sampler, options, steps, seed], [found], build, present)


def judge_tab(common: Common) -> None:
    """The likelihood of a picture, and where it is lost."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            _pad(common, "judge", "Draw or upload a picture")
            probes = gr.Slider(2, 32, 8, step=1, label="Probes, whose spread is the error bar")
            tolerance = gr.Dropdown(["1e-2", "1e-3", "1e-4", "1e-5"], value="1e-3", label="Tolerance of the solver")
            seed = gr.Number(common.session.seed, label="Seed", precision=0, minimum=0)
            go, stop, status = _buttons("How likely?")
        with gr.Column(scale=3, min_width=280):
            found = gr.HTML(
                show.EMPTY.format("bits per dimension, and where they are lost, appear here"), elem_id="judged"
            )
    ends = Ends(go, stop, status, *_lines())

    def build(opened: Opened, probes: int, tolerance: str, seed: Any, pad: str) -> Judge:
        return Judge(common.session.picture(opened, pad), int(probes), float(tolerance), int(seed or 0))

    def present(opened: Opened, options: Judge, done: Any, watch: Any) -> tuple[str, list[Any]]:
        words = f"{done.nfe} network calls with {options.probes} derivatives each"
        return words, [show.judged(opened, _image(opened, options.image), done)]

    _wire(common, ends, ["judge"], [probes, tolerance, seed], [found], build, present)


def between_tab(common: Common) -> None:
    """A path between two pictures."""
    with gr.Row():
        with gr.Column(min_width=250):
            _pad(common, "first", "From this")
        with gr.Column(min_width=250):
            _pad(common, "last", "To this")
        with gr.Column(min_width=280):
            n = gr.Slider(3, 33, 9, step=1, label="Points on the path")
            tolerance = gr.Dropdown(["1e-2", "1e-3", "1e-4"], value="1e-3", label="Tolerance of the solver")
            temperature = gr.Slider(0.5, 1.2, 1.0, step=0.05, label="Temperature, a factor on the codes")
            go, stop, status = _buttons("Go between")
    place = gr.Slider(0, 8, 4, step=1, label="Along the path", elem_id="along")
    found = gr.HTML(show.EMPTY.format("the path appears here; the slider walks along it"), elem_id="path")
    kept = gr.State(None)
    ends = Ends(go, stop, status, *_lines())

    def build(opened: Opened, n: int, tolerance: str, temperature: float, first: str, last: str) -> Between:
        folder = common.session.pair(opened, first, last)
        return Between(folder, int(n), float(tolerance), float(temperature))

    def present(opened: Opened, options: Between, path: Any, watch: Any) -> tuple[str, list[Any]]:
        middle = len(path) // 2
        slider = gr.Slider(maximum=len(path) - 1, value=middle)
        return f"{len(path)} points, {watch.calls} network calls", [
            show.between(opened, path, middle),
            slider,
            (opened, path),
        ]

    def look(kept: Any, place: float) -> Any:
        if kept is None:
            return gr.skip()
        opened, path = kept
        return show.between(opened, path, min(int(place), len(path) - 1))

    _wire(common, ends, ["first", "last"], [n, tolerance, temperature], [found, place, kept], build, present)
    place.input(look, [kept, place], found, show_progress="hidden", queue=False, trigger_mode="always_last")


def restore_tab(common: Common, opened: Opened) -> gr.Dropdown:
    """A picture is measured, and samples explain the measurement; returns the choice of operators."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            _pad(common, "restore", "The picture that is measured")
            operator = gr.Dropdown(
                restore.choices(opened.shape[0]), value="downsample:4", label="Operator:number", allow_custom_value=True
            )
            with gr.Row():
                noise = gr.Number(0.05, label="Noise", minimum=0, step=0.01, min_width=90)
                method = gr.Dropdown(list(METHOD_STEPS), value="mmps", label="Method", min_width=110, filterable=False)
            with gr.Row():
                n = gr.Number(4, label="Samples", precision=0, minimum=1, maximum=16, min_width=70)
                steps = gr.Number(20, label="Steps", precision=0, minimum=1, min_width=70)
                seed = gr.Number(common.session.seed, label="Seed", precision=0, minimum=0, min_width=70)
            go, stop, status = _buttons("Restore")
        with gr.Column(scale=3, min_width=280):
            found = gr.HTML(
                show.EMPTY.format("what was seen, and what could have made it, appear here"), elem_id="restored"
            )
    ends = Ends(go, stop, status, *_lines())

    def build(opened: Opened, operator: str, noise: float, method: str, n: Any, steps: Any, seed: Any, pad: str) -> Any:
        image = common.session.picture(opened, pad)
        return restore.Restore(image, operator, float(noise), method, int(n or 1), number(steps), int(seed or 0))

    def present(opened: Opened, options: Any, done: Any, watch: Any) -> tuple[str, list[Any]]:
        low, high = opened.interval
        seen = low + (high - low) * done.seen
        before = [("the picture", _image(opened, options.image)), (f"what was seen: {options.operator}", seen)]
        words = f"mean {done.psnr:.1f} dB, {done.nfe:.0f} evaluations each"
        return words, [show.several(opened, before, done)]

    _wire(common, ends, ["restore"], [operator, noise, method, n, steps, seed], [found], build, present)
    return operator


def compare_tab(common: Common, opened: Opened) -> gr.Dropdown:
    """Samplers by error against calls; returns the choice of them."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            gr.HTML("<p class='sf-note'>How many network calls does this model need, and by which sampler?</p>")
            names = gr.Dropdown(
                compare.choices(opened),
                value=list(COMPARED),
                multiselect=True,
                max_choices=compare.LINES,
                label="Samplers of the flow, up to four",
            )
            steps = gr.Textbox(", ".join(map(str, COMPARED_STEPS)), label="Numbers of steps")
            with gr.Row():
                n = gr.Number(4, label="Starts", precision=0, minimum=2, maximum=16, min_width=90)
                seed = gr.Number(common.session.seed, label="Seed", precision=0, minimum=0, min_width=90)
            go, stop, status = _buttons("Compare")
        with gr.Column(scale=3, min_width=280):
            found = gr.HTML(show.EMPTY.format("error against network calls appears here"), elem_id="compared")
    ends = Ends(go, stop, status, *_lines())

    def build(opened: Opened, names: Sequence[str], steps: str, n: Any, seed: Any) -> compare.Compare:
        return compare.Compare(tuple(names or ()), int(n or 0), int(seed or 0), compare.read_steps(steps))

    def present(opened: Opened, options: compare.Compare, table: Any, watch: Any) -> tuple[str, list[Any]]:
        return f"{len(table.runs)} runs, {watch.calls} network calls", [show.compared(options, table)]

    _wire(common, ends, [], [names, steps, n, seed], [found], build, present)
    return names


def _image(opened: Opened, path: str) -> Any:
    from scorefield.data import open_data

    return open_data(path, opened.shape).tensor(opened.interval)[0]
