"""A page about a run: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from scorefield.files import atomic_file

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #5d6675; --paper: #fbfbfc; --line: #d9dde4; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --dim: #9aa3b2; --paper: #14161a; --line: #2e333c; --card: #1b1e24; }
}
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0 0 .35rem; }
p { margin: .3rem 0 .8rem; }
pre { margin: 0 0 .8rem; padding: .5rem .7rem; overflow-x: auto; border: 1px solid var(--line); border-radius: .3rem; }
.lead, figcaption, small { color: var(--dim); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td:not(:first-child), th:not(:first-child) { text-align: right; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
         gap: 1.25rem; margin-top: 1.25rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.2rem; }
section.wide { grid-column: 1 / -1; } figure { margin: 0; } img { max-width: 100%; height: auto; border-radius: .25rem; }
img.pixels { image-rendering: pixelated; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; } svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg circle { stroke: none; }
b.good, b.watch, b.act { padding: .1rem .55rem; border-radius: 1rem; color: #fff; font-size: .8rem; font-weight: 600; }
b.good { background: #2c7d53; } b.watch { background: #a8620f; } b.act { background: #b3362f; }
@media (max-width: 32rem) { svg text { font-size: 16px; } }
h2 b { margin-left: .4rem; vertical-align: .1rem; } td a { color: inherit; }
"""

Points = Sequence[tuple[float, float] | tuple[float, float, float]]
"""(x, y), or (x, y, standard error of y), which is drawn as a bar of two of them to each side."""
_COLOURS = ("#3b76d6", "#d9822b", "#3a9d6b", "#b0509c")
_WIDTH, _HEIGHT, _LEFT, _BELOW, _ABOVE = 460, 250, 68, 44, 24
_MOST_POINTS = 800


@dataclass
class Report:
    """Collects sections and writes them as one self-contained page.

    Main arguments:
        title, lead: heading and the sentence below it.
    """

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], text: str = "") -> None:
        """Add a table, with a paragraph above it; the first column is text, the others are figures."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        above = f"<p class='lead'>{escape(text)}</p>" if text else ""
        self._section(title, f"{above}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", wide=True)

    def commands(self, title: str, lines: Sequence[tuple[str, str]]) -> None:
        """Add what to type next, each line with a word on it."""
        parts = [f"<p class='lead'>{escape(why)}</p><pre>{escape(what)}</pre>" for why, what in lines]
        self._section(title, "".join(parts), wide=True)

    def picture(self, title: str, text: str, path: Path, *, wide: bool = False) -> None:
        """Add a picture file, embedded, with a sentence above it."""
        code = base64.b64encode(path.read_bytes()).decode()
        image = f'<img class="pixels" alt="{escape(title)}" src="data:image/png;base64,{code}">'
        self._section(title, f"<p class='lead'>{escape(text)}</p><figure>{image}</figure>", wide=wide)

    def curves(
        self,
        title: str,
        text: str,
        lines: Mapping[str, Points],
        labels: tuple[str, str],
        *,
        log_y: bool = False,
    ) -> None:
        """Add a plot of named series of (x, y), drawn into the page itself; points that are not finite are left out."""
        plot = line_plot(lines, labels, log_y)
        self._section(title, f"<p class='lead'>{escape(text)}</p><figure>{plot}</figure>", wide=False)

    def verdicts(self, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
        """Add a table of questions, verdicts and what was found; a question leads to the `finding` of the same title."""
        cells = "".join(
            f"<tr><td><a href='#{_anchor(question)}'>{escape(question)}</a><br><small>{escape(found)}</small></td>"
            f"<td>{_badge(verdict)}</td></tr>"
            for question, verdict, found in rows
        )
        self._section(title, f"<table><tbody>{cells}</tbody></table>", wide=True)

    def finding(self, title: str, verdict: str, texts: tuple[str, str, str], figure: str = "") -> None:
        """Add a question with its verdict, "good", "watch" or "act".

        Main arguments:
            texts: what was found, what to do ("" where nothing is), and when the verdict changes.
            figure: HTML, such as a `line_plot`.
        """
        found, advice, rule = (escape(text) for text in texts)
        advised = f"<p><strong>{advice}</strong></p>" if advice else ""
        inner = f"<p>{found}</p>{advised}<figure>{figure}</figure><small>{rule}</small>"
        self.parts.append(f"<section id='{_anchor(title)}'><h2>{escape(title)} {_badge(verdict)}</h2>{inner}</section>")

    def write(self, path: Path) -> None:
        """Write the page."""
        page = (
            f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(self.title)}</title>"
            f"<meta name='viewport' content='width=device-width, initial-scale=1'><style>{_STYLE}</style></head>"
            f"<body><h1>{escape(self.title)}</h1><p class='lead'>{escape(self.lead)}</p>"
            f"<div class='cards'>{''.join(self.parts)}</div></body></html>\n"
        )
        with atomic_file(path, "w") as file:
            file.write(page)

    def _section(self, title: str, inner: str, wide: bool) -> None:
        mark = " class='wide'" if wide else ""
        self.parts.append(f"<section{mark}><h2>{escape(title)}</h2>{inner}</section>")


def line_plot(lines: Mapping[str, Points], labels: tuple[str, str], log_y: bool = False) -> str:
    """An SVG line plot; one of no points is a sentence."""
    kept = {name: _drawn(points, log_y) for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return "<p>No figures yet.</p>"
    xs = [point[0] for points in kept.values() for point in points]
    ys = [y for points in kept.values() for point in points for y in (point[1], *_ends(point, log_y))]
    across = _Axis(xs, _LEFT, _WIDTH - 12, False)
    up = _Axis(ys, _HEIGHT - _BELOW, _ABOVE, log_y)
    parts, words = _frame(across, up, labels), []
    for i, (name, points) in enumerate(kept.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(_curve([(across(point[0]), up(point[1])) for point in points], colour))
        for point in points:
            parts += _bar(across(point[0]), [up(y) for y in _ends(point, log_y)], colour)
        words.append(f"<span style='color:{colour};margin-right:1rem'>&#9679; {escape(name)}</span>")
    legend = f"<div style='font-size:.85rem'>{''.join(words)}</div>" if len(kept) > 1 else ""
    return f"{legend}<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img'>{''.join(parts)}</svg>"


def _badge(verdict: str) -> str:
    return f"<b class='{escape(verdict)}'>{escape(verdict)}</b>"


def _anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")


def _ends(point: Sequence[float], log_y: bool) -> list[float]:
    """The ends of a point's bar, if it has one that can be drawn."""
    if len(point) < 3 or not math.isfinite(point[2]):
        return []
    ends = [point[1] - 2 * point[2], point[1] + 2 * point[2]]
    return ends if ends[0] > 0 or not log_y else []


def _bar(x: float, ends: Sequence[float], colour: str) -> list[str]:
    if not ends:
        return []
    return [f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{ends[0]:.1f}' y2='{ends[1]:.1f}' stroke='{colour}'/>"]


def _drawn(points: Points, log_y: bool) -> Points:
    """The points that can be drawn, thinned where they are more than a page shows."""
    kept = [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1]) and (p[1] > 0 or not log_y)]
    return kept[:: 1 + len(kept) // _MOST_POINTS]


def _frame(across: _Axis, up: _Axis, labels: tuple[str, str]) -> list[str]:
    """Grid lines, ticks and labels of both axes."""
    parts = [
        f"<line class='grid' x1='{_LEFT}' x2='{_WIDTH - 12}' y1='{up(y):.1f}' y2='{up(y):.1f}'/>"
        f"<text x='{_LEFT - 8}' y='{up(y) + 4:.1f}' text-anchor='end'>{y:.4g}</text>"
        for y in up.ticks
    ]
    parts += [
        f"<text x='{across(x):.1f}' y='{_HEIGHT - _BELOW + 18}' text-anchor='middle'>{x:.6g}</text>"
        for x in across.ticks
    ]
    middle = (_LEFT + _WIDTH) / 2
    parts.append(f"<text x='{middle}' y='{_HEIGHT - 6}' text-anchor='middle'>{escape(labels[0])}</text>")
    parts.append(f"<text x='4' y='14'>{escape(labels[1])}</text>")
    return parts


def _curve(places: Sequence[tuple[float, float]], colour: str) -> str:
    """A line through places on the page, with a dot on each where they are few."""
    parts = []
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f"<polyline points='{path}' stroke='{colour}'/>")
    if len(places) < 40:
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.6' fill='{colour}'/>" for x, y in places]
    return "".join(parts)


class _Axis:
    """Maps values to positions between two ends, and knows the round values in between."""

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool) -> None:
        low, high = (math.log10(v) if log else v for v in (min(values), max(values)))
        if high - low < 1e-9 * max(1.0, abs(high)):
            low, high = low - 0.5, high + 0.5
        self._low, self._scale, self._start, self._log = low, (stop - start) / (high - low), start, log
        self.ticks = _decades(low, high) if log and high - low > 0.7 else self._even(low, high)

    def __call__(self, value: float) -> float:
        return self._start + ((math.log10(value) if self._log else value) - self._low) * self._scale

    def _even(self, low: float, high: float) -> list[float]:
        if self._log:
            low, high = 10**low, 10**high
        rough = (high - low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = unit * min((1, 2, 5, 10), key=lambda m: abs(m * unit - rough))
        return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high, fewer a decade the more decades there are."""
    step = math.ceil((high - low) / 6)
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    values = [d * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1, step) for d in digits]
    return [v for v in values if 10**low <= v <= 10**high]
