"""A page about a run: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from scorefield.data.files import atomic_file

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --dim: #5d6675; --paper: #fbfbfc; --line: #d9dde4; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaee; --dim: #9aa3b2; --paper: #14161a; --line: #2e333c; --card: #1b1e24; }
}
body { margin: 0 auto; max-width: 64rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0 0 .35rem; }
p { margin: .3rem 0 .8rem; } .lead, figcaption, small { color: var(--dim); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td:not(:first-child), th:not(:first-child) { text-align: right; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
         gap: 1.25rem; margin-top: 1.25rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1.1rem 1.2rem; }
section.wide { grid-column: 1 / -1; } figure { margin: 0; } img { max-width: 100%; height: auto; border-radius: .25rem; }
img.pixels { image-rendering: pixelated; } img.plot { background: #fff; }
"""


@dataclass
class Report:
    """Collects sections and writes them as one self-contained page.

    Main arguments:
        title, lead: heading and the sentence below it.
    """

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others are figures."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._section(title, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", wide=True)

    def picture(self, title: str, text: str, path: Path, *, wide: bool = False, pixels: bool = True) -> None:
        """Add a picture file, embedded, with a sentence above it."""
        code = base64.b64encode(path.read_bytes()).decode()
        kind = "pixels" if pixels else "plot"
        image = f'<img class="{kind}" alt="{escape(title)}" src="data:image/png;base64,{code}">'
        self._section(title, f"<p class='lead'>{escape(text)}</p><figure>{image}</figure>", wide=wide)

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
