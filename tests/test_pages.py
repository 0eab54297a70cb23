"""README and docs can be pasted: every block of Python and every command runs, at toy size, and every link leads somewhere."""

import re
from pathlib import Path

import pytest

import given
import pages
import scorefield as sf
from cli_tools import narrow
from scorefield import bundled, latent, presets
from scorefield.automatic import choose
from scorefield.cli.app import COMMANDS
from scorefield.data import arrays
from scorefield.discrete.solve import JumpSolver
from scorefield.solve.ode import EmbeddedRungeKutta

EVERY_PAGE = pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)


NARROW = {
    "HistogramUNet": {"nf": 8},
    "StateUNet": {"nf": 8},
    "Transformer": {"width": 32, "depth": 1, "heads": 2},
    "StateMLP": {"width": 32},
}


def quick(monkeypatch):
    """Narrow networks of the recipes, few steps and loose tolerances, where a page leaves them to the library."""
    for name, sizes in NARROW.items():
        narrow(monkeypatch, getattr(sf.nn, name), **sizes)
    digits_unet = sf.nn.digits_unet
    monkeypatch.setattr(sf.nn, "digits_unet", lambda *args, **options: digits_unet(*args, **({"nf": 8} | options)))
    monkeypatch.setattr(choose, "WIDTHS", dict.fromkeys(choose.WIDTHS, (8,)))
    for solver in (sf.Solver, sf.PC, JumpSolver):
        monkeypatch.setattr(solver, "default_steps", pages.STEPS)
    monkeypatch.setattr(EmbeddedRungeKutta.__init__, "__defaults__", (0.1, 0.1))
    monkeypatch.setattr(latent, "EVERY_ENTRY", sf.Dopri5(norm="max"))


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A folder of its own; the bundled model and the networks of the paper are small, and the digits few."""
    get = presets.get

    def smaller(name):
        if not str(name).startswith(("ve/", "vp/", "subvp/")):
            return get(name)
        network = {"nf": 8, "num_res_blocks": 1, "ch_mult": (1, 1), "attn_resolutions": (4,)}
        return get(name).but(name, model=network, data={"image_size": 8})

    given.kept(given.digits_run)(tmp_path / "models" / "digits")
    for name in bundled.BUNDLED[1:]:
        (tmp_path / "models" / name).symlink_to(bundled.MODELS / name)
    quick(monkeypatch)
    monkeypatch.setattr(bundled, "MODELS", tmp_path / "models")
    monkeypatch.setattr(presets, "get", smaller)
    monkeypatch.setenv("SCOREFIELD_CACHE", str(tmp_path / "cache"))
    pixels, labels = arrays._digits()
    monkeypatch.setattr(arrays, "_digits", lambda: (pixels[-160:], labels[-160:]))
    monkeypatch.setattr(arrays, "TRAIN_DIGITS", 120)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@EVERY_PAGE
def test_every_block_runs(page, toys, capsys):
    pages.run_page(page, given.make, capsys)


def test_pages_have_blocks():
    """The finder finds them: a page of tutorials without any would pass everything."""
    found = [block for page in pages.PAGES for block in pages.blocks_of(page)]
    assert sum(block.language == "python" for block in found) > 40
    assert sum(len(block.commands()) for block in found) > 40


@EVERY_PAGE
def test_other_commands_exist(page):
    """`make TARGET`, `python FILE` and launchers of scorefield, also where they stand in a sentence."""
    text = page.read_text("utf-8")
    made = (pages.ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)(?:$| +#)|`make (\w+)`", text, re.M):
        name = "".join(target)
        assert re.search(rf"^{name}:", made, re.M), f"{page.name}: make {name}"
    for file in re.findall(r"\bpython ((?:benchmarks|tools|examples)/[\w/]+\.py)", text):
        assert (pages.ROOT / file).exists(), f"{page.name}: {file}"
    for line in re.findall(r"^(?:torchrun|accelerate launch) .*?-m (scorefield [^.\n]*)$", text, re.M):
        pages.check_command(line, page.name)
    for word in re.findall(r"`scorefield ([a-z]+)", text):
        assert word in COMMANDS, f"{page.name}: `scorefield {word}`"
    for file in re.findall(r"\btests/[\w/]+\.py", text):
        assert (pages.ROOT / file).exists(), f"{page.name}: {file}"


def test_the_first_page_leads_to_every_other():
    text = (pages.ROOT / "docs" / "index.md").read_text("utf-8")
    linked = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert {page.name for page in (pages.ROOT / "docs").glob("*.md")} - linked == {"index.md"}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    titles = [re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", t) for t in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", t.strip().lower()).replace(" ", "-") for t in titles}


def broken(page: Path) -> list[str]:
    """The links of a page to files or headings that are not there."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.S | re.M)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", [*pages.PAGES, *sorted(pages.ROOT.glob("C*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def written(tmp_path, text):
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(text, "utf-8")
    return page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A\n\n```python\nx = 1\ny = x + missing\n```\n", "page.md:5 fails: NameError"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "page.md:6 fails: AssertionError"),
        ("```python\nx = (1\n```\n", "page.md:2 fails: SyntaxError"),
        ("```\nscorefield sample runs/none\n```\n", "page.md:2: `scorefield sample runs/none` ends with status 2"),
        ("<!-- given: x.unheard -->\n", "nobody makes x.unheard"),
        ("<!-- not run: a GPU -->\n```python\nsf.nothing(1)\n```\n", "there is no sf.nothing"),
        ("<!-- not run: a GPU -->\n```\nscorefield sample x --stps 3\n```\n", "did you mean --steps"),
    ],
)
def test_a_broken_page_fails(text, words, tmp_path, toys, monkeypatch, capsys):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(AssertionError) as caught:
        pages.run_page(written(tmp_path, text), given.make, capsys)
    assert words in str(caught.value)


def test_a_broken_link_fails(tmp_path):
    page = written(
        tmp_path, "# One thing: `a`, b\n\n[a](#one-thing-a-b) [b](#two) [c](none.md) [d](page.md#one-thing-a-b)\n"
    )
    assert broken(page) == ["#two", "none.md"]


def test_what_is_made_small():
    text = "f(minutes=10, steps=1_000); g(steps=2, n=64)"
    assert pages.small(text) == "f(steps=3, steps=3); g(steps=2, n=64)"
