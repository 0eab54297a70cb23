"""The site: a line of navigation for every page, a place for every public name, nothing from elsewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

import scorefield

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def website():
    spec = importlib.util.spec_from_file_location("website", ROOT / "tools" / "website.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_has_a_line_in_the_navigation(website):
    lines = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    listed = re.findall(r"- (?:[^:\n]*: )?([\w-]+\.md)$", lines, re.M)
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name in listed, f"add a line `- {page.name}` under nav: in mkdocs.yml"
    assert len(set(listed)) == len(listed)
    assert {name for name in listed if not (ROOT / "docs" / name).exists()} == set(website.ELSEWHERE)


def test_every_public_name_has_its_place_in_the_api(website):
    pages = website.api_pages()
    top = pages["api/index.md"]
    for name in scorefield.__all__:
        assert f"`sf.{name}`" in top
    for room in {*scorefield._ROOMS, *scorefield._PLACES.values()}:
        module = importlib.import_module(f"scorefield.{room}")
        headings = re.findall(
            r'heading: "sf\.(?:\w+\.)*(\w+)"|^## `sf\.(?:\w+\.)*(\w+)`', pages[f"api/{room}.md"], re.M
        )
        assert set(getattr(module, "__all__", ())) <= {a or b for a, b in headings}, room
        assert headings, f"api/{room}.md is empty: give scorefield.{room} an __all__"
    targets = {
        line.removeprefix("::: ") for text in pages.values() for line in text.splitlines() if line.startswith("::: ")
    }
    for anchor in re.findall(r"\.md#([\w.]+)\)", top):
        assert anchor in targets


def test_what_is_named_is_documented(website):
    """A first line for each name in sf itself: the table of the API shows it."""
    for line in website.api_pages()["api/index.md"].splitlines():
        assert not re.fullmatch(r"\| \[`sf.*\| +\|", line), line


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ("<link rel=stylesheet href=//fonts.example/a.css>", ["//fonts.example/a.css"]),
        ('<img src="http://example/a.png">', ["http://example/a.png"]),
        ("<style>@font-face{src:url(https://f.example/a.woff)}</style>", ["https://f.example/a.woff"]),
        ('<a href="https://arxiv.org/abs/2011.13456">paper</a><img src="pictures/a.png">', []),
        ('<link rel="canonical" href="https://example/">', []),
    ],
)
def test_what_comes_from_elsewhere_is_found(website, html, found):
    assert website.outside(html) == found


def test_links_of_the_repository_become_links_of_the_site(website):
    class Page:
        class file:
            src_uri = "architecture.md"

    text = "<!-- given: photos/ -->\n[a](../CONTRIBUTING.md) [b](../src/x.py) [c](sdes.md#precision)\n"
    assert website.on_page_markdown(text, Page) == "[a](contributing.md) b [c](sdes.md#precision)\n"
