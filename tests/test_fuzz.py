"""Command lines, configuration files and image files that somebody got wrong: one line each, and nothing half-done."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import scorefield as sf
from cli_tools import tiny_run
from scorefield.cli import main

torch.set_num_threads(1)
VALUES = (
    "",
    "-1",
    "0",
    "1",
    "2.5",
    "nan",
    "inf",
    "1e-400",
    "x",
    "0x2",
    "٣",
    "a b",
    "None",
    "../..",
    "-",
    "--",
    "é\udc80",
    "\n",
)
WORDS = (
    *VALUES,
    "--help",
    "--json",
    "--seed",
    "--steps",
    "--nope",
    "-n",
    "--out",
    "--data=",
    "--label",
    "--no-json",
    "-q",
)


def fuzz(count: int):
    every = list(HealthCheck)
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=every,
        phases=[Phase.generate],
    )


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    """Where the number of steps is dropped from a command, the default need not be the thousand of the paper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sf.PC, "default_steps", 20)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run, a run with classes, data, an image, a mask and codes."""
    folder = tmp_path_factory.mktemp("fuzz")
    tiny_run(folder / "run")
    tiny_run(folder / "labelled", labels=True)
    rng = np.random.default_rng(0)
    np.save(folder / "cloud.npy", rng.normal(size=(8, 3)).astype(np.float32))
    np.save(folder / "x.npy", rng.integers(0, 256, (2, 8, 8), dtype=np.uint8))
    np.savez(folder / "c.npz", images=rng.integers(0, 256, (20, 8, 8), dtype=np.uint8), labels=np.arange(20) % 2)
    np.savez(folder / "codes.npz", codes=rng.normal(size=(2, 1, 8, 8)).astype(np.float32))
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(np.repeat(np.array([255, 0], np.uint8), 32).reshape(8, 8)).save(folder / "m.png")
    return folder


COMMANDS = [
    "train vectors --data {0}/cloud.npy --out {0}/new --steps 1 --batch-size 2 --device cpu --report False",
    "sample {0}/run -n 1 --steps 1 --sampler heun --seed 1 --out {0}/new.npy",
    "sample {0}/labelled -n 1 --steps 1 --sampler pc:snr=0.1 --label 1 --out {0}/new.png",
    "likelihood {0}/run --data {0}/x.npy -n 1 --tolerance 0.5 --probes 1 --out {0}/new.csv",
    "encode {0}/run --data {0}/x.npy -n 1 --tolerance 0.5 --out {0}/new.npz",
    "decode {0}/run {0}/codes.npz --temperature 0.5 --tolerance 0.5 --out {0}/new.png",
    "interpolate {0}/run --data {0}/x.npy --pairs 0,1 -n 2 --tolerance 0.5 --out {0}/new.png",
    "classifier {0}/run --data {0}/c.npz --out {0}/new --steps 1 --batch-size 2 --width 1 --lr 0.01",
    "generate {0}/labelled --label 1 --guidance 2 -n 1 --steps 1 --out {0}/new.npy",
    "inpaint {0}/run --image {0}/a.png --mask {0}/m.png --steps 1 -n 1 --out {0}/new.png",
    "restore {0}/run --image {0}/a.png --operator downsample:4 --noise 0.1 --simulate --steps 1 -n 1 --out {0}/new.png",
    "colorize {0}/run --image {0}/a.png --steps 1 -n 1 --out {0}/new.png",
    "presets ve/cifar10_ncsnpp_continuous",
    "convert {0}/x.npy --preset ve/cifar10_ncsnpp_continuous --out {0}/new",
]


def contents(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def run(place: Path, args: list[str]) -> tuple[int, str]:
    """Run a command in `place`; check the rules that hold for every command line."""
    before = contents(place)
    out, err = io.StringIO(), io.StringIO()
    home = Path.cwd()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(args)
    finally:
        os.chdir(home)
        new = contents(place) - before
        for path in (place / name for name in sorted(new, reverse=True)):
            path.rmdir() if path.is_dir() else path.unlink()
    said = err.getvalue()
    assert status in (0, 1, 2), (args, said)
    assert "fault of scorefield" not in said, (args, said)
    other = [line for line in said.splitlines() if not line.startswith(("scorefield: ", "step "))]
    assert all(re.search(r": \d+ %", line) for line in other), (args, said)  # where a long computation stands
    assert not [name for name in new if ".tmp-" in name], (args, new)
    if status:
        assert said.splitlines()[-1].startswith("scorefield: "), (args, said)
        told = out.getvalue()
        if "--json" in args:
            assert said.splitlines()[-1] == f"scorefield: {json.loads(told)['error']}", (args, said, told)
            assert json.loads(told)["status"] == status, (args, told)
        else:
            assert not told, (args, told)
        # A training that diverges leaves its last good checkpoint, as it says.
        assert not new or "is intact" in said, (args, said, new)
    return status, said


@st.composite
def command_lines(draw):
    words = draw(st.sampled_from(COMMANDS)).split()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(words) - 1)) if words else 0
        match draw(st.sampled_from(["value", "word", "drop", "insert", "twice", "cut"])):
            case "value":
                words[at : at + 1] = [draw(st.sampled_from(VALUES))]
            case "word":
                words[at : at + 1] = [draw(st.text(max_size=6))]
            case "drop":
                del words[at : at + 1]
            case "insert":
                words[at:at] = [draw(st.sampled_from(WORDS))]
            case "twice":
                words[at:at] = words[at : at + 2]
            case "cut":
                words[at : at + 1] = [word[: len(word) // 2] for word in words[at : at + 1]]
    return words


@fuzz(400)
@given(words=command_lines())
def test_command_lines(place, words):
    run(place, [word.replace("{0}", str(place)) for word in words])


def mutate(value, draw):
    """The same JSON with one part replaced, removed or nested."""
    junk = st.sampled_from([None, -1, 0, 1e308, 10**30, "", "x", [], {}, True, [[]], {"class": "os.system"}])
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 3)) == 0:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [mutate(value[0], draw), *value[1:]]
    return draw(junk)


@fuzz(100)
@given(data=st.data())
def test_configuration_files(place, data):
    """run.json of a run, and an official configuration, with parts of another type, missing, or cut off."""
    from scorefield.presets import get

    kind = data.draw(st.sampled_from(["run", "preset"]))
    name = "run.json" if kind == "run" else "config.json"
    whole = json.loads((place / "run" / name).read_text()) if kind == "run" else get("vp/cifar10_ncsnpp").official()
    text = json.dumps(mutate(whole, data.draw))
    if data.draw(st.integers(0, 4)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    if kind == "preset":
        (place / name).write_text(text)
        command = ["convert", "x.npy", "--preset", "config.json", "--out", "new"]
    else:
        if not (place / "damaged").exists():
            shutil.copytree(place / "run", place / "damaged")
        (place / "damaged" / name).write_text(text)
        command = ["sample", "damaged", "-n", "1", "--steps", "1", "--out", "new.npy"]
    run(place, command)


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8), dtype=np.uint8))
    picture.save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return buffer.getvalue()


@fuzz(200)
@given(
    suffix=st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"]),
    way=st.sampled_from(["cut", "flip", "insert", "swap", "noise"]),
    a=st.integers(0, 2**16),
    b=st.integers(0, 255),
)
def test_image_files(place, suffix, way, a, b):
    whole = encoded(suffix)
    at = a % len(whole)
    content = {
        "cut": whole[:at],
        "flip": whole[:at] + bytes([whole[at] ^ (b or 1)]) + whole[at + 1 :],
        "insert": whole[:at] + bytes([b] * 7) + whole[at:],
        "swap": encoded("png")[: at % 40] + whole[at % 40 :],
        "noise": bytes(np.random.default_rng(a).integers(0, 256, b, dtype=np.uint8)),
    }[way]
    path = place / f"broken.{suffix}"
    path.write_bytes(content)
    command = ["restore", "run", "--image", path.name, "--operator", "downsample:4", "--simulate", "-n", "1"]
    status, said = run(place, [*command, "--steps", "1", "--method", "replace", "--out", "new.npy"])
    if status:
        assert path.name in said
