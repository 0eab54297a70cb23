"""The house stands as docs/architecture.md draws it: no import points up, no files import each other in a circle."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_measure():
    spec = importlib.util.spec_from_file_location("measure", ROOT / "tools" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure"] = module
    spec.loader.exec_module(module)
    return module


measure = load_measure()


def test_every_file_has_its_floor():
    table = measure.floors()
    assert [m for m in measure.sources() if m != "scorefield" and measure.floor_of(m, table) is None] == []


def test_no_import_points_up():
    assert measure.upward() == []


def test_no_circles():
    assert measure.circles() == []


def test_the_picture_is_that_of_the_code():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    drawn = re.search(r"```mermaid\n(.*?)```", text, re.S)
    assert drawn is not None
    assert drawn[1] == measure.picture() + "\n", "python tools/measure.py --picture draws it anew"


def test_an_arrow_that_points_up_is_seen(tmp_path):
    """The check can fail: a file of the ground floor that imports the top."""
    for name in ("docs", "tools"):
        (tmp_path / name).mkdir()
    (tmp_path / "docs" / "architecture.md").write_text((ROOT / "docs" / "architecture.md").read_text("utf-8"))
    folder = tmp_path / "src" / "scorefield"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "errors.py").write_text("def f():\n    from scorefield.sampling import sample\n    return sample\n")
    (folder / "sampling.py").write_text("from scorefield.errors import f\n\nsample = f\n")
    assert measure.upward(tmp_path) == ["scorefield.errors -> scorefield.sampling"]
    assert measure.circles(tmp_path) == [["scorefield.errors", "scorefield.sampling"]]
