"""Completion in a real shell."""

import shutil
import subprocess

import pytest

from cli_tools import assert_one_line
from scorefield.cli.app import COMMANDS

bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


@pytest.fixture(scope="module")
def script():
    from scorefield.cli.completion import script

    few = {name: COMMANDS[name] for name in ("sample", "presets", "encode")}
    return script(few, ["bash"])


def complete(script, *words):
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("scorefield", *words))
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _scorefield; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@bash
def test_commands_options_and_files(script):
    assert complete(script, "sa") == ["sample"]
    assert complete(script, "sample", "--samp") == ["--sampler"]
    assert "--seed" in complete(script, "encode", "runs/x", "--")
    assert complete(script, "presets", "--samp") == []
    assert complete(script, "sample", "ru") == []  # and -o default offers files


def test_other_shells_are_refused(cli):
    status, _, err = cli("--completion", "bish")
    assert status == 2
    assert_one_line(err, "bish", "did you mean bash")


def test_every_command_is_listed(cli):
    status, out, _ = cli("--completion", "zsh")
    assert status == 0
    assert all(f"        {name}) words=" in out for name in COMMANDS)
    assert out.startswith("autoload")
