"""The command line: one file a command, and one place where errors become one line."""

import os

# Before torch is loaded: threads that wait for each other sleep. Those that spin take the core that the one they wait for
# needs, and beside other work on a machine with two cores training was ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from scorefield.cli.app import entry, main

__all__ = ["entry", "main"]
