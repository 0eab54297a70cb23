"""The command line: one file a command, and one place where errors become one line."""

from scorefield.cli.app import main

__all__ = ["main"]
