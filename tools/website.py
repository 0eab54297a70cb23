"""What `make docs` adds to docs/: an API page for each room, the pages that lie elsewhere, and a check of the result.

mkdocs calls the functions on_* (see `hooks` in mkdocs.yml). `python tools/website.py build/site` names what a built site
would fetch from elsewhere: it must work without a network.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

ELSEWHERE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are kept at the top of the repository."""


def rooms() -> list[str]:
    """The modules whose names are public, one API page each."""
    import scorefield

    return sorted(set(scorefield._ROOMS) | set(scorefield._PLACES.values()))


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module: its __all__, else the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    own = {name: v for name, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    return {name: v for name, v in own.items() if not name.startswith("_") and (inspect.isclass(v) or callable(v))}


def api_pages() -> dict[str, str]:
    """Markdown by path: a page for each room, and one that lists what stands in `sf` itself."""
    import scorefield

    found, home = {}, {}
    for room in rooms():
        module = importlib.import_module(f"scorefield.{room}")
        lines = [f"# sf.{room}", "", inspect.cleandoc(module.__doc__ or ""), ""]
        for name, value in sorted(public(module).items(), key=lambda item: item[0].lower()):
            short = f"sf.{name}" if scorefield._PLACES.get(name) == room else f"sf.{room}.{name}"
            home[short] = f"{room}.md#{_path(value, room, name)}"
            lines += _entry(short, value, room, name)
        found[f"api/{room}.md"] = "\n".join(lines)
    top = [
        f"| [`sf.{name}`]({home[f'sf.{name}']}) | {_first_line(getattr(scorefield, name))} |"
        for name in scorefield.__all__
    ]
    rest = [
        f"| [`sf.{room}`]({room}.md) | {_first_line(importlib.import_module(f'scorefield.{room}'))} |"
        for room in rooms()
    ]
    head = [
        "# API",
        "",
        "Every public name. `import scorefield as sf` loads nothing; a name is loaded when it is first used.",
        "",
    ]
    table = ["| | |", "|-|-|"]
    text = [*head, "## In sf itself", "", *table, *top, "", "## By place", "", *table, *rest, ""]
    return {"api/index.md": "\n".join(text), **found}


def _path(value: Any, room: str, name: str) -> str:
    """Where a name is defined, as mkdocstrings finds it."""
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return f"scorefield.{room}.{name}"


def _entry(short: str, value: Any, room: str, name: str) -> list[str]:
    if inspect.ismodule(value):
        return [f"## `{short}` {{ #{_path(value, room, name)} }}", "", inspect.cleandoc(value.__doc__ or ""), ""]
    return [
        f"::: {_path(value, room, name)}",
        "    options:",
        f'      heading: "{short}"',
        f'      toc_label: "{short}"',
        "",
    ]


def _first_line(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "").partition("\n")[0].replace("|", "\\|")


def api_nav() -> list[Any]:
    """The API pages as a part of the navigation."""
    return [{"All names": "api/index.md"}, *({f"sf.{room}": f"api/{room}.md"} for room in rooms())]


def on_config(config: Any) -> Any:
    """Fill the empty part "API" of the navigation."""
    for part in config.nav:
        if "API" in part:
            part["API"] = api_nav()
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    for path, text in api_pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in ELSEWHERE.items():
        files.append(File.generated(config, path, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links for the site, and without the comments that are for the tests."""
    if page.file.src_uri in ELSEWHERE:
        markdown = markdown.replace("](docs/", "](")
    for path, source in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{source}", f"]({path}")
    markdown = re.sub(
        r"\[([^\]]*)\]\((?:\.\./|src/)[^)]*\)", r"\1", markdown
    )  # files of the repository are not on the site
    return re.sub(r"^<!-- (?:given|smaller|not run): .*-->\n", "", markdown, flags=re.M)


def outside(html: str) -> list[str]:
    """What a page loads from another host: scripts, style sheets, pictures, fonts, frames."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*>", html)
    loaded = [re.search(r"\b(?:src|href|srcset)=[\"']?((?:https?:)?//[^\"'\s>]+)", tag) for tag in tags]
    return [
        m[1] for m, tag in zip(loaded, tags, strict=True) if m and "rel=canonical" not in tag.replace('"', "")
    ] + re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", html)


def check(site: Path) -> list[str]:
    """All of that in a built site, one line each."""
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    return [f"{file.relative_to(site)}: {url}" for file in files for url in outside(file.read_text("utf-8"))]


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or "the site loads nothing from elsewhere")
    sys.exit(1 if found else 0)
