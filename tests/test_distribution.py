"""What a release needs: one version everywhere, the typed marker and the data in the wheel, files that are well-formed."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import tomllib

import scorefield

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
yaml = pytest.importorskip("yaml")


def test_one_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert PROJECT["version"] == scorefield.__version__ == str(cited["version"])
    assert f"scorefield-{scorefield.__version__}-py3-none-any.whl" in (ROOT / "docs" / "index.md").read_text("utf-8")
    assert cited["references"][0]["year"] == 2021


def test_what_goes_with_the_package():
    root = resources.files("scorefield")
    for name in ("py.typed", "data/mnist10k.npz", "models/digits/run.json", "evaluation/digits.safetensors"):
        assert root.joinpath(name).is_file(), name


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_workflows_call_what_is_there(file):
    content = yaml.safe_load(file.read_text("utf-8"))
    assert content
    text = file.read_text("utf-8")
    made = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"run: make (\w+)", text):
        assert re.search(rf"^{target}:", made, re.M), target
    for path in re.findall(r"\b(?:tests|tools)/[\w./]+", text):
        assert (ROOT / path).exists(), path


def test_help_and_version_load_neither_torch_nor_numpy():
    """Under half a second is what this buys: 0.05 s of processor time for both."""
    ask = (
        "import sys; from scorefield.cli import main; main([%r]); "
        "print([m for m in ('torch', 'numpy', 'tyro') if m in sys.modules])"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", ask % option], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", option
