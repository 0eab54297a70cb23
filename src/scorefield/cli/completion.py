"""Completion of commands and options in the shell: `scorefield --completion bash`, or zsh."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from scorefield.cli.parse import known_options
from scorefield.errors import InputError, closest

SHELLS = ("bash", "zsh")

SCRIPT = """_scorefield() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} words=
    if [ "$COMP_CWORD" = 1 ]; then
        words="{commands} --help --version"
    elif [ "${{word#-}}" != "$word" ]; then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _scorefield scorefield
"""
"""After a command options are completed, and everything else as files."""


def options_of(command: str) -> list[str]:
    """The options of a command, as its help spells them."""
    options = importlib.import_module(f"scorefield.cli.{command}").Options
    return known_options(options, {"prog": f"scorefield {command}"})


def script(commands: Mapping[str, object], words: Sequence[str]) -> str:
    """What the shell is to read, for the one word that names the shell.

    Raises:
        InputError: no shell, or one that is not known here.
    """
    if len(words) != 1 or words[0] not in SHELLS:
        asked = words[0] if words else ""
        raise InputError(f"--completion {asked!r} is no shell that is known here{closest(asked, SHELLS)}")
    cases = [f'        {name}) words="{" ".join(options_of(name))}" ;;' for name in commands]
    text = SCRIPT.format(commands=" ".join(commands), cases="\n".join(cases))
    return text if words[0] == "bash" else f"autoload -U +X compinit bashcompinit && compinit && bashcompinit\n{text}"
