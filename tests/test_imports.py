"""Importing scorefield stays light: nothing heavy, nothing written, every public name there."""

from __future__ import annotations

import subprocess
import sys

import scorefield as sf


def test_import_loads_nothing_heavy():
    code = "import sys, scorefield; print([m for m in ('accelerate', 'matplotlib', 'rich', 'tyro', 'PIL') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"


def test_every_public_name_exists():
    for name in sf.__all__:
        assert getattr(sf, name) is not None
        assert name in dir(sf)
