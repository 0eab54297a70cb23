"""Importing scorefield stays light: nothing heavy, nothing written, every public name there and where it is said to be."""

from __future__ import annotations

import ast
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import scorefield as sf


def test_import_loads_nothing_heavy():
    heavy = ("torch", "numpy", "accelerate", "matplotlib", "rich", "tyro", "PIL")
    code = f"import sys, scorefield; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_overview_and_version_take_less_than_half_a_second_of_processor(option):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "scorefield", option], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_every_public_name_exists():
    assert len(sf.__all__) <= 60
    for name in sf.__all__:
        assert getattr(sf, name) is not None
        assert name in dir(sf)


def test_what_type_checkers_read_is_what_is_loaded():
    tree = ast.parse(Path(sf.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: line.module for line in block.body for alias in line.names}
    rooms = [name for name, module in seen.items() if module == "scorefield"]
    assert set(rooms) <= set(sf._ROOMS)
    assert sorted(set(seen) - set(rooms)) == sf.__all__
    for name, module in seen.items():
        assert name in rooms or getattr(importlib.import_module(module), name) is getattr(sf, name)


def test_no_public_name_is_also_a_module():
    """Importing scorefield.X puts the module under sf.X, whatever stood there: name the file otherwise."""
    assert [name for name in sf.__all__ if importlib.util.find_spec(f"scorefield.{name}")] == []


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("UNet", "sf.nn.UNet"),
        ("restore", "sf.inverse.restore"),
        ("VPSDE", "sf.VP"),
        ("Unipc", "sf.UniPC"),
        ("Tsit5", "sf.solve.Tsit5"),
        ("interpolate", "sf.latent.interpolate"),
    ],
)
def test_name_that_is_elsewhere_is_found(name, right):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean {right}\\?"):
        getattr(sf, name)
