"""What the page shows is what its lines of Python and its command do."""

import csv
import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield.cli import main
from scorefield.cli.names import read_solver, solver_code, solvers
from scorefield.diagnose.chapters import COMPARED, COMPARED_STEPS
from scorefield.errors import InputError
from scorefield.studio.between import Between
from scorefield.studio.compare import Compare, read_steps
from scorefield.studio.complete import Complete
from scorefield.studio.draw import Draw
from scorefield.studio.judge import Judge
from scorefield.studio.opened import open_images
from scorefield.studio.pictures import kept
from scorefield.studio.restore import Restore, choices
from scorefield.studio.work import Watch


@pytest.fixture
def opened(run):
    return open_images(run)


@pytest.fixture
def image(tmp_path):
    return kept(tmp_path / "kept", sf.digits(train=False)[3], "image")


@pytest.fixture
def mask(tmp_path):
    known = torch.zeros(1, 28, 28, dtype=torch.uint8)
    known[:, :14] = 255
    return kept(tmp_path / "kept", known, "mask")


def done_by_python(options, opened):
    names = {}
    exec(options.python(opened), names)
    return names


def done_by_command(options, opened, tmp_path, monkeypatch, capsys, *more):
    """Run the command that the page shows, in a folder of its own: what it printed."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(options.command(opened))
    assert words[0] == "scorefield"
    status = main([*words[1:], *more])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def tiles(path, n, columns=None):
    """The images of a grid that the command line wrote, (n, 28, 28) uint8."""
    pixels = np.array(Image.open(path))
    columns = columns or int(np.ceil(np.sqrt(n)))
    return np.stack([pixels[2 + 30 * (i // columns) :][:28, 2 + 30 * (i % columns) :][:, :28] for i in range(n)])


def pixels(x):
    return ((x[:, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def same(drawn, shown):
    """Pictures that differ by the rounding of a grey level at most."""
    assert np.abs(drawn.astype(int) - shown.astype(int)).max() <= 1
    assert shown.std() > 0


@pytest.mark.parametrize("sampler", ["", "ddim:eta=1", "pc", "dopri5:rtol=1e-2,atol=1e-2"])
def test_draw(opened, tmp_path, monkeypatch, capsys, sampler):
    options = Draw(n=5, sampler=sampler, steps=None if "dopri" in sampler else 3, seed=4)
    found = options.run(opened, Watch())
    names = done_by_python(options, opened)
    assert torch.equal(names["x"], found.x)
    assert torch.equal(names["path"], found.path)
    done_by_command(options, opened, tmp_path, monkeypatch, capsys)
    same(tiles(tmp_path / "samples.png", 5), pixels(found.x))
    # The guesses are E[x_0 | x_t] of the first sample, at places that go down in time.
    k = found.guessed_at[2]
    with torch.no_grad():
        guess = opened.model.denoise(found.path[k, :1], float(found.times[k]))
    assert torch.allclose(found.guesses[2], guess[0], atol=1e-5)
    assert int(found.guessed_at[0]) == 0
    assert int(found.guessed_at[-1]) == len(found.path) - 1
    assert bool((found.guessed_at.diff() >= 0).all())


@pytest.mark.parametrize(("label", "guidance"), [(3, 1.0), (3, 2.5)])
def test_draw_of_a_class(classes, tmp_path, monkeypatch, capsys, label, guidance):
    opened, options = open_images(classes), Draw(n=3, steps=3, label=label, guidance=guidance)
    found = options.run(opened, Watch())
    assert torch.equal(done_by_python(options, opened)["x"], found.x)
    done_by_command(options, opened, tmp_path, monkeypatch, capsys)
    same(tiles(tmp_path / "samples.png", 3), pixels(found.x))


@pytest.mark.parametrize(
    "word", [*solvers(), "pc:predictor=ancestral,steps=2", "dpm-solver:order=3", "churn:inflation=1.01"]
)
def test_a_solver_is_written_as_the_python_that_makes_it(word):
    for sde in (sf.VP(), sf.VE()):
        assert eval(solver_code(word, sde)) == read_solver(word, sde)


def test_complete(opened, image, mask, tmp_path, monkeypatch, capsys):
    options = Complete(image, mask, n=3, steps=4)
    found = options.run(opened, Watch())
    names = done_by_python(options, opened)
    assert torch.allclose(names["samples"], found.samples, atol=1e-5)
    assert torch.allclose(names["mean"], found.mean, atol=1e-5)
    assert torch.allclose(names["deviation"], found.deviation, atol=1e-5)
    assert bool((found.deviation[0, :14] < 1e-6).all())  # what is known is the same in all
    assert float(found.deviation[0, 14:].mean()) > 0.01
    assert torch.allclose(found.samples[1, 0, :14], sf.digits(train=False)[3:4].tensor()[0, 0, :14], atol=1e-6)
    done_by_command(options, opened, tmp_path, monkeypatch, capsys)
    same(tiles(tmp_path / "completed.png", 3), pixels(found.samples))


def test_judge(opened, image, tmp_path, monkeypatch, capsys):
    options = Judge(image, probes=3, tolerance=1e-2)
    found = options.run(opened, Watch())
    names = done_by_python(options, opened)
    assert float(names["bits"][0]) == pytest.approx(found.bits, rel=1e-9)
    assert float(names["stderr"][0]) == found.stderr
    assert torch.equal(names["where"][0], found.where)
    assert float(found.where.mean()) == found.bits
    done_by_command(options, opened, tmp_path, monkeypatch, capsys)
    with (tmp_path / "bits.csv").open() as file:
        row = next(csv.DictReader(line for line in file if not line.startswith("#")))
    assert float(row["bits_per_dim"]) == pytest.approx(found.bits, rel=1e-9)
    assert float(row["nats"]) == pytest.approx(found.nats, rel=1e-9)


def test_between(opened, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "ends"
    folder.mkdir()
    data = sf.digits(train=False)
    for i in range(2):
        Image.fromarray(data[i][0].numpy()).save(folder / f"{i}.png")
    options = Between(str(folder), n=3, tolerance=1e-2, temperature=0.9)
    found = options.run(opened, Watch())
    assert torch.equal(done_by_python(options, opened)["x"], found)
    done_by_command(options, opened, tmp_path, monkeypatch, capsys)
    same(tiles(tmp_path / "path.png", 3, 3), pixels(found))


@pytest.mark.parametrize("operator", choices(1))
def test_restore(opened, image, tmp_path, monkeypatch, capsys, operator):
    options = Restore(image, operator, method="dps" if "phase" in operator else "mmps", n=2, steps=2, seed=1)
    found = options.run(opened, Watch())
    names = done_by_python(options, opened)
    assert torch.equal(names["samples"], found.samples)
    assert torch.allclose(names["deviation"], found.deviation)
    out = json.loads(done_by_command(options, opened, tmp_path, monkeypatch, capsys, "--json"))
    same(tiles(tmp_path / "restored.png", 2), pixels(found.samples))
    assert out["psnr"] == pytest.approx(found.psnr, abs=1e-3)


def test_operators_that_need_colour_or_a_file_are_not_offered():
    assert "downsample:4" in choices(1)
    assert not [word for word in choices(1) if word.startswith(("grayscale", "mask"))]
    assert "grayscale" in choices(3)


def test_compare(opened, tmp_path, monkeypatch, capsys):
    def errors(table):
        return [(run.solver, run.steps, run.nfe, run.error) for run in table.runs]

    few = Compare(("UniPC", "Heun"), n=2, seed=5, steps=(2, 3))
    assert errors(done_by_python(few, opened)["table"]) == errors(few.run(opened, Watch()))
    capsys.readouterr()
    options = Compare(n=2, seed=5)
    found = errors(options.run(opened, Watch()))
    assert {name for name, *_ in found} == set(COMPARED)
    told = json.loads(done_by_command(options, opened, tmp_path, monkeypatch, capsys, "--json"))
    assert "samplers.html" in told["out"]
    assert all(repr(error) in json.dumps(told) for *_, error in found)


def test_other_choices_of_samplers_have_no_command(opened):
    assert Compare(("DDIM",)).command(opened) == ""
    assert Compare(steps=(4, 8)).command(opened) == ""
    assert Compare(steps=COMPARED_STEPS).command(opened) != ""
    assert read_steps("8, 4 16") == (4, 8, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Draw(n=0), "n=0"),
        (Draw(sampler="hein"), "did you mean heun"),
        (Draw(label=3), "no classes"),
        (Draw(guidance=-1.0), "guidance=-1.0"),
        (Judge("x.png", probes=1), "probes=1"),
        (Judge("x.png", tolerance=2.0), "tolerance=2.0"),
        (Between("x", n=1), "n=1"),
        (Restore("x.png", operator="sharpen:2"), "sharpen"),
        (Restore("x.png", method="magic"), "magic"),
        (Compare(()), "0 samplers"),
        (Compare(n=1), "n=1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(opened, options, words):
    with pytest.raises(InputError, match=words) as caught:
        options.run(opened, Watch())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "a", "0", "4,,x", "2000"])
def test_numbers_of_steps_that_cannot_be_read(text):
    with pytest.raises(InputError, match="cannot be read"):
        read_steps(text)
