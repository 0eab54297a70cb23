"""docs/cifar10.md: every command on it runs, at toy size."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scorefield import presets
from scorefield.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "cifar10.md"
BLOCKS = re.findall(r"```\n(.*?)```", PAGE.read_text("utf-8"), re.S) if PAGE.exists() else []
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("scorefield ")]

TOY = {
    "statistics": "",
    "train": "--steps 2 --batch-size 2 --checkpoint-every 1 --log-every 1 --sample-every 2 --sample-count 2 --trackers",
    "sample": "-n 2 --steps 2",
    "likelihood": "-n 2 --tolerance 0.1",
    "evaluate": "-n 4 --steps 2 --features raw --neighbours 1",
}
"""Options that make a command small; the last word counts."""


@pytest.mark.skipif(not PAGE.exists(), reason="needs the repository")
def test_every_command_of_the_page(tmp_path, monkeypatch, capsys):
    get = presets.get

    def small(name):
        network = {"nf": 8, "num_res_blocks": 1, "ch_mult": (1, 1), "attn_resolutions": (4,)}
        return get(name).but(name, model=network, data={"image_size": 8})

    monkeypatch.setattr(presets, "get", small)
    monkeypatch.setenv("SCOREFIELD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        Path("cifar10", part).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(f"cifar10/{part}/{i}.png")
    assert {command.split()[1] for command in COMMANDS} == set(TOY)
    for command in COMMANDS:
        name, *words = shlex.split(command)[1:]
        toy = TOY[name].split()
        device = [] if name == "statistics" else ["--device", "cpu"]
        status = main([name, *words, *toy, *device])
        assert status == 0, (command, capsys.readouterr().err)
    made = (
        "runs/cifar10/report.html",
        "cifar10-pc.png",
        "cifar10-fast.png",
        "cifar10-bits.csv",
        "runs/cifar10/evaluation.json",
    )
    assert [path for path in made if not Path(path).exists()] == []
