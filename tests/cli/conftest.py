"""A way to run commands, and runs to run them on."""

import pytest

from cli_tools import tiny_run
from scorefield.cli import main


@pytest.fixture
def cli(capsys):
    """Run a command in this process: (exit status, standard output, standard error)."""

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run on grey 8 x 8 images; not to be written into."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
