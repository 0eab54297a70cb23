"""Results as the page shows them: HTML with the pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch
from PIL import Image
from torch import Tensor

import scorefield as sf
from scorefield.diagnose.samplers import SamplerTable
from scorefield.report import line_plot
from scorefield.studio.compare import Compare
from scorefield.studio.complete import Completed
from scorefield.studio.draw import Drawn
from scorefield.studio.judge import USUAL, Judged
from scorefield.studio.opened import Opened
from scorefield.studio.pictures import heat, image_tag, sheet, strip, tile, tiles, zoom_for
from scorefield.studio.restore import Restored
from scorefield.studio.work import Watch

LOST = 8.0
"""Bits at which the map of losses is brightest: what a pixel of 256 equally likely values costs."""
EMPTY = "<div class='sf-empty'>{}</div>"


def progress(watch: Watch) -> str:
    """How far work is."""
    done = "" if watch.fraction is None else f" value='{watch.fraction:.3f}'"
    of = f" of about {watch.expected}" if watch.expected else ""
    return f"<progress{done}></progress>network call {watch.calls}{of}, {watch.seconds:.0f} s"


def remarks(watch: Watch, text: str) -> str:
    """What came out in a sentence, and what the library remarked."""
    notes = "".join(f"<span class='sf-warn'>{escape(line)}</span>" for line in dict.fromkeys(watch.remarks))
    return f"<span data-begun='{watch.begin}'><b>{escape(text)}</b>, {watch.seconds:.1f} s{notes}</span>"


def grid(opened: Opened, x: Tensor) -> str:
    """Samples (n, C, H, W) in one picture."""
    picture = sheet(x.cpu(), *opened.interval)
    return tiles([(f"{len(x)} samples" if len(x) > 1 else "one sample", picture)], "min(100%, 26rem)")


def frame(opened: Opened, drawn: Drawn, place: int) -> str:
    """All samples at one time of the way."""
    t = float(drawn.times[place])
    picture = sheet(drawn.path[place], *opened.interval)
    word = "the result" if place == len(drawn.path) - 1 else f"time t = {t:.3g}, step {place} of {len(drawn.path) - 1}"
    return tiles([(word, picture)], "min(100%, 26rem)")


def way(opened: Opened, drawn: Drawn) -> str:
    """The first sample on its way, and below it what the model takes it for."""
    low, high = opened.interval
    at = drawn.guessed_at.tolist()
    states = [(f"t = {float(drawn.times[k]):.2g}", tile(drawn.path[k, 0], low, high)) for k in at]
    guesses = [("", tile(guess, low, high)) for guess in drawn.guesses]
    below = "what the model takes it for at that moment: the mean of all pictures that this noise could hide"
    if isinstance(opened.model, sf.FlowMap):
        below = "where the model jumps to from there"
    note = f"<p class='sf-note'>The first sample on its way from noise, and below it {below}.</p>"
    return note + strip([states, guesses])


def several(opened: Opened, before: Sequence[tuple[str, Tensor]], found: Completed | Restored) -> str:
    """What was given, the samples, their mean and deviation."""
    low, high = opened.interval
    shown = [(word, tile(x, low, high)) for word, x in before]
    shown += [(f"sample {k + 1}", tile(x, low, high)) for k, x in enumerate(found.samples)]
    if len(found.samples) > 1:
        top = float(found.deviation.max()) / (high - low)
        deviation = found.deviation.mean(0, keepdim=True)
        most = float(deviation.max().clamp_min(1e-12))
        shown += [
            ("mean of the samples", tile(found.mean, low, high)),
            (f"deviation, at most {top:.2f} of black to white", tile(deviation, 0.0, most)),
        ]
    return tiles([(word, _large(picture)) for word, picture in shown], "8.2rem")


def judged(opened: Opened, image: Tensor, found: Judged) -> str:
    """The figure with its error, and the map."""
    usual = USUAL.get(opened.run)
    beside = ""
    if usual is not None:
        far = (found.bits - usual[0]) / usual[1]
        word = (
            "as likely as most"
            if abs(far) < 2
            else "less likely than nearly all"
            if far > 0
            else "likelier than nearly all"
        )
        beside = f" Held-out digits have {usual[0]} on average, mostly {usual[0] - 2 * usual[1]:.1f} to "
        beside += f"{usual[0] + 2 * usual[1]:.1f}: this one is {word}."
    where = found.where.sum(0) / len(found.where)
    noise = float(found.noise.square().mean().sqrt())
    colours = [heat(torch.tensor([[LOST * i / 7]]), LOST).getpixel((0, 0)) for i in range(8)]
    stops = ", ".join(f"rgb{colour}" for colour in colours)
    scale = (
        f"<div style='max-width:19rem'><div class='sf-scale' style='background:linear-gradient(90deg, {stops})'></div>"
        f"<div class='sf-ends'><span>0 bits</span><span>{LOST:g} bits or more</span></div></div>"
    )
    shown = tiles(
        [
            ("the picture", _large(tile(image, *opened.interval))),
            ("bits that each pixel costs", _large(heat(where, LOST))),
        ],
        "min(46%, 14rem)",
    )
    return (
        f"<div class='sf-figure'>{found.bits:.3f} ± {found.stderr:.3f} bits per dimension</div>"
        f"<p class='sf-note'>log-probability of the whole picture {found.nats:,.0f} nats; plain noise has 8 bits.{beside}</p>"
        f"{shown}{scale}"
        "<p class='sf-note'>The map is an exact decomposition: the mean of its pixels is the figure. A pixel's share is the "
        "density of its entry of the code, and how much the probability flow stretched along it on the way; so it says where "
        "the density is lost on the way to noise, not how well a pixel can be guessed from the others. "
        f"Each pixel is known to ± {noise:.2f} bits.</p>"
    )


def between(opened: Opened, path: Tensor, place: int) -> str:
    """One point of a path, large, and all of it small."""
    low, high = opened.interval
    share = place / (len(path) - 1)
    word = f"{100 * share:.0f} % of the way" if 0 < share < 1 else "the first end" if share == 0 else "the second end"
    one = tiles([(word, _large(tile(path[place], low, high), 2))], "min(100%, 18rem)")
    row = tiles([("the whole path", sheet(path, low, high, len(path)))], "100%")
    return one + row


def compared(chosen: Compare, table: SamplerTable) -> str:
    """Error against calls, as curves and as a table."""
    best = table.best(0.02)
    curves = table.curves()
    plot = line_plot(curves, ("network calls for each sample", "relative error"), log_y=True)
    calls = sorted({run.steps for run in table.runs})
    head = "".join(f"<th>{n} steps</th>" for n in calls)
    rows = ""
    for name in curves:
        own = {run.steps: run for run in table.runs if run.solver == name}
        cells = "".join(f"<td>{own[n].error:.3f} <small>({own[n].nfe})</small></td>" for n in calls)
        rows += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    return (
        f"<div class='sf-plot'><p class='sf-note'><b>{best.solver}</b> comes within {100 * best.error:.2g} % of the spread of "
        f"the samples in {best.nfe} calls. Error: root mean square distance to where the probability flow ends if nothing is "
        f"saved, over {chosen.n} starts and all pixels, divided by the spread of the samples; below 2 % nobody sees it.</p>"
        f"{plot}<table><thead><tr><th>error (calls)</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def about(opened: Opened) -> str:
    """What the model is, in a line."""
    channels, height, width = opened.shape
    weights = sum(p.numel() for p in opened.model.parameters())
    kind = "grey" if channels == 1 else "colour"
    classes = f", {opened.classes} classes" if opened.classes else ", without classes"
    sde = type(opened.model.sde).__name__
    return (
        f"<p class='sf-note'><b>{escape(opened.run)}</b>: {kind} pictures of {width} x {height}, {weights / 1e6:.1f} M "
        f"weights, {sde} process{classes}.</p>"
    )


def _large(picture: Image.Image, times: int = 1) -> Image.Image:
    zoom = zoom_for(picture.height, picture.width) * times
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


__all__ = [
    "about",
    "between",
    "compared",
    "frame",
    "grid",
    "image_tag",
    "judged",
    "progress",
    "remarks",
    "several",
    "way",
]
