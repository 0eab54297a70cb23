"""`python -m scorefield` is the command `scorefield`."""

import os
import sys


def program() -> int:
    """The command, quiet from its first line on when it is interrupted."""
    try:
        from scorefield.cli import entry
    except KeyboardInterrupt:
        os.write(2, b"scorefield: interrupted\n")
        return 130
    return entry()


if __name__ == "__main__":
    sys.exit(program())
