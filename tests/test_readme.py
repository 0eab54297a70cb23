"""README and docs can be pasted: commands line by line, and every name of Python is defined before it is used."""

import ast
import builtins
import importlib
import re
import shlex
from pathlib import Path

import pytest

from scorefield.cli.app import COMMANDS
from scorefield.cli.parse import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for name, text in found if name == language]


LINES = [line for block in blocks("") for line in block.splitlines() if line.startswith("scorefield ")]


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_one_line_that_is_understood(line):
    words = shlex.split(line, comments=True)
    assert words[1] in COMMANDS
    assert parse(importlib.import_module(f"scorefield.cli.{words[1]}"), words[2:], "scorefield") is not None
    assert not [word for word in words[2:] if word in ("scorefield", "|")]


def test_there_are_commands():
    assert len(LINES) > 5


@pytest.mark.parametrize("block", blocks("python"))
def test_names_are_defined_before_they_are_used(block):
    known = set(dir(builtins))
    for statement in ast.parse(block).body:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
        local = {arg.arg for node in ast.walk(statement) if isinstance(node, ast.arguments) for arg in node.args}
        assert used - known - local <= set(), ast.unparse(statement)
        known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                known |= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                known.add(node.name)
