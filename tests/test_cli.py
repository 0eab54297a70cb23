"""The command line: what it makes, and one clear line for every bad input."""

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield import nn
from scorefield.cli import app, main
from scorefield.data import array
from scorefield.training.checkpoint import list_checkpoints

TRAIN = ["train", "vectors", "--device", "cpu", "--batch-size", "8", "--checkpoint-every", "2", "--log-every", "2"]


@pytest.fixture
def cli(capsys):
    """Run a command in this process: (exit status, standard output, standard error)."""

    def run(*args):
        status = main([str(a) for a in args])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def assert_one_line(err, *words):
    assert err.startswith("scorefield: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


@pytest.fixture
def cloud(tmp_path):
    path = tmp_path / "cloud.npy"
    np.save(path, np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on grey 8 x 8 images, of two steps."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = sf.ScoreModel(nn.UNet(1, 8, (1, 2), 1, ()), sf.VP(), "noise", shape=(1, 8, 8))
    data = array(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    sf.train(model, data, out=out, steps=2, batch_size=4, warmup=1, checkpoint_every=1, device="cpu")
    return out


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of that run, to be damaged or added to."""
    return shutil.copytree(trained, tmp_path / "tiny")


@pytest.fixture
def pictures(tmp_path):
    """Files of an 8 x 8 image and of a mask whose upper half is known."""
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(image)
    Image.fromarray(np.repeat(np.array([255, 0], np.uint8), 32).reshape(8, 8)).save(mask)
    return image, mask


# What the commands make


def test_train_makes_a_run_and_the_same_command_goes_on(cli, cloud, tmp_path):
    run = tmp_path / "run"
    command = [*TRAIN, "--data", cloud, "--out", run, "--optim.schedule", "constant", "--json"]
    status, out, _ = cli(*command, "--steps", 4)
    assert status == 0
    assert json.loads(out)["finished"]
    status, out, _ = cli(*command, "--steps", 6)
    assert (status, json.loads(out)["step"]) == (0, 6)
    assert sf.load(run).shape == (3,)


def test_train_takes_options_of_the_optimiser_with_and_without_prefix(cli, cloud, tmp_path):
    cli(*TRAIN, "--data", cloud, "--out", tmp_path / "run", "--steps", 2, "--optim.lr", 0.5, "--warmup", 7)
    optim = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["arguments"]["optim"]["arguments"]
    assert (optim["lr"], optim["warmup"]) == (0.5, 7)


def test_train_reads_proposals_by_name(cli, cloud, tmp_path):
    cli(*TRAIN, "--data", cloud, "--out", tmp_path / "run", "--steps", 2, "--times", "log_normal:-0.5,1.5")
    times = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["arguments"]["times"]
    assert times["arguments"] | {"t_min": 0} == {"mean": -0.5, "std": 1.5, "t_min": 0}


def test_sample_writes_a_grid(cli, run_folder):
    status, out, _ = cli("sample", run_folder, "-n", 5, "--steps", 2, "--columns", 3, "--sampler", "ddim")
    assert status == 0
    assert "5 samples" in out
    with Image.open(run_folder / "samples.png") as picture:
        assert (picture.mode, picture.size) == ("L", (3 * 10 + 2, 2 * 10 + 2))


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_sample_writes_arrays_of_what_the_library_samples(cli, run_folder, tmp_path, suffix):
    from safetensors.torch import load_file

    out = tmp_path / f"x.{suffix}"
    cli("sample", run_folder, "-n", 3, "--seed", 4, "--sampler", "ddim", "--steps", 3, "--batch-size", 2, "--out", out)
    read = {"npy": np.load, "npz": lambda p: np.load(p)["images"], "safetensors": lambda p: load_file(p)["samples"]}
    expected = sf.sample(sf.load(run_folder), 3, sf.DDIM(), steps=3, seed=4)
    np.testing.assert_allclose(np.asarray(read[suffix](out)), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "sampler", ["pc:predictor=ancestral,snr=0.1", "dpm", "unipc:order=2", "euler-maruyama", "heun", "dopri5:rtol=0.01"]
)
def test_every_sampler_name_samples(cli, run_folder, tmp_path, sampler):
    status, out, _ = cli(
        "sample", run_folder, "-n", 1, "--sampler", sampler, "--steps", 2, "--out", tmp_path / "x.npy", "--json"
    )
    assert status == 0
    assert json.loads(out)["nfe"] >= 2


def test_likelihood_writes_a_row_for_each_item_and_their_mean(cli, run_folder, tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(1).integers(0, 256, (3, 8, 8), dtype=np.uint8))
    rows_file = tmp_path / "rows.csv"
    options = ["likelihood", run_folder, "--data", data, "--tolerance", 0.1, "--out", rows_file, "--json"]
    status, out, _ = cli(*options)
    values = json.loads(out)
    with open(rows_file) as file:
        rows = [float(row["bits_per_dim"]) for row in csv.DictReader(file)]
    assert status == 0
    assert len(rows) == 3
    assert values["bits_per_dim"] == pytest.approx(np.mean(rows))
    assert values["stderr"] == pytest.approx(np.std(rows, ddof=1) / 3**0.5)
    _, again, _ = cli(
        *options, "--batch-size", 2, "--overwrite"
    )  # probes and dequantisation belong to items, not to batches
    assert json.loads(again)["bits_per_dim"] == pytest.approx(values["bits_per_dim"], rel=1e-5)


def test_likelihood_of_vectors_is_in_the_units_of_the_data(cli, tmp_path):
    # The same points in other units, x' = 10 x + 3 with --range, have the density p(x) / 10^D.
    x = np.random.default_rng(0).uniform(-1, 1, size=(6, 2)).astype(np.float32)
    results = []
    for name, values, low, high in (("a", x, -1, 1), ("b", 10 * x + 3, -7, 13)):
        np.save(tmp_path / f"{name}.npy", values)
        common = ["--range", low, high]
        cli(*TRAIN, "--data", tmp_path / f"{name}.npy", "--out", tmp_path / name, "--steps", 2, *common)
        file = tmp_path / f"{name}.jsonl"
        status, _, _ = cli(
            "likelihood", tmp_path / name, "--data", tmp_path / f"{name}.npy", "--trace", "exact", "--out", file
        )
        assert status == 0
        results.append([json.loads(line)["nats"] for line in file.read_text().splitlines()])
    np.testing.assert_allclose(np.array(results[0]) - np.array(results[1]), 2 * np.log(10), atol=1e-4)


def test_inpaint_keeps_what_is_known(cli, run_folder, pictures, tmp_path):
    out = tmp_path / "y.png"
    status, _, _ = cli("inpaint", run_folder, "--image", pictures[0], "--mask", pictures[1], "--steps", 3, "--out", out)
    assert status == 0
    filled, image = np.array(Image.open(out)), np.array(Image.open(pictures[0]))
    assert np.array_equal(filled[:4], image[:4])
    assert not np.array_equal(filled[4:], image[4:])


def test_inverted_mask_keeps_the_other_half(cli, run_folder, pictures, tmp_path):
    out = tmp_path / "y.png"
    cli("inpaint", run_folder, "--image", pictures[0], "--mask", pictures[1], "--invert", "--steps", 3, "--out", out)
    assert np.array_equal(np.array(Image.open(out))[4:], np.array(Image.open(pictures[0]))[4:])


def test_demo_prints_one_json_object_whatever_it_prints_itself(cli, monkeypatch):
    import scorefield.demo

    def demo(out, **options):
        print("a table")
        return {"bits_per_dim": 1.0, **options}

    monkeypatch.setattr(scorefield.demo, "main", demo)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")  # so that what the command sets is undone
    status, out, err = cli("demo", "--json", "--device", "cpu", "--steps", 3)
    assert (status, json.loads(out), err) == (
        0,
        {"bits_per_dim": 1.0, "steps": 3, "minutes": 4.0, "seed": 0},
        "a table\n",
    )
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize("command", ["train", "sample", "likelihood", "inpaint", "demo"])
def test_help_has_an_example_and_the_common_options(cli, command):
    status, out, err = cli(command, "--help")
    assert (status, err) == (0, "")
    for word in (f"Example: scorefield {command}", "--seed", "--device", "--json", "--debug"):
        assert word in out


def test_help_of_a_preset_shows_its_defaults(cli):
    assert "(default: 2300)" in cli("train", "digits", "--help")[1]
    assert "(default: 1300000)" in cli("train", "ve/cifar10_ncsnpp_continuous", "--help")[1]


def test_overview_lists_the_commands(cli):
    status, out, _ = cli("--help")
    assert status == 0
    assert all(name in out for name in ("train", "sample", "likelihood", "inpaint", "demo"))


# Bad input, each in one line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean train"]),
        (["likelihood"], ["RUN is missing"]),
        (["train"], ["PRESET is missing"]),
        (["inpaint", "r", "--mask", "m.png"], ["--image is missing"]),
        (["train", "digit"], ["preset 'digit' is unknown", "did you mean digits"]),
        (["train", "ve/cifar10_ncsnp"], ["preset 've/cifar10_ncsnp' is unknown", "did you mean ve/cifar10_ncsnpp"]),
        (["train", "vectors"], ["--data is missing"]),
        (["train", "digits", "--stepz", "3"], ["unknown option --stepz", "did you mean --steps"]),
        (["train", "digits", "--optim.lrr", "3"], ["unknown option --optim.lrr", "did you mean --optim.lr"]),
        (["train", "digits", "--steps", "-5"], ["steps=-5", "expected 1 or more"]),
        (["train", "digits", "--steps", "many"], ["--steps='many'", "a whole number"]),
        (["train", "digits", "--steps"], ["--steps needs a value"]),
        (["train", "digits", "--optim.lr", "-1"], ["optim.lr=-1", "a positive number"]),
        (["train", "digits", "--precision", "fp8"], ["--precision='fp8' is unknown", "choose one of bf16"]),
        (["train", "digits", "--times", "never"], ["--times", "uniform, log_snr"]),
        (["train", "digits", "--data", "no/such"], ["no/such", "does not exist"]),
        (["train", "digits", "--device", "gpu"], ["--device gpu is not available"]),
        (["sample", "r", "--steps", "-3"], ["--steps=-3", "expected 1 or more"]),
        (["sample", "r", "-n", "0"], ["--n=0"]),
        (["sample", "r", "--sampler", "magic"], ["--sampler='magic' is unknown", "choose one of"]),
        (["sample", "r", "extra"], ["unexpected argument 'extra'"]),
        (["sample", "no/such"], ["no/such", "does not exist"]),
        (["likelihood", "r", "--probes", "0"], ["--probes=0"]),
        (["likelihood", "r", "--tolerance", "0"], ["--tolerance=0.0"]),
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_status_two(cli, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = cli(*args)
    assert status == 2
    assert out == ""
    assert_one_line(err, *words)
    assert list(tmp_path.iterdir()) == []


def test_text_called_png_is_named(cli, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_2031.png").write_text("From: somebody\n")
    status, _, err = cli("train", "digits", "--data", tmp_path / "photos", "--out", tmp_path / "run")
    assert status == 2
    assert_one_line(err, "IMG_2031.png is not an image (starts with 'From: ')", "skip")
    assert not (tmp_path / "run").exists()


def test_wrong_channel_count_is_named(cli, run_folder, pictures, tmp_path):
    np.save(tmp_path / "rgb.npy", np.zeros((4, 3, 28, 28), np.uint8))
    status, _, err = cli("train", "digits", "--data", tmp_path / "rgb.npy", "--out", tmp_path / "run")
    assert status == 2
    assert_one_line(err, "rgb.npy has 3 channels", "1 are expected")
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "red.png")
    for args in (
        ("likelihood", run_folder, "--data", tmp_path / "red.png"),
        ("inpaint", run_folder, "--image", tmp_path / "red.png", "--mask", pictures[1]),
    ):
        status, _, err = cli(*args)
        assert status == 2
        assert_one_line(err, "red.png has 3 channels")


def test_unusable_run_data_and_outputs_are_named(cli, run_folder, pictures, tmp_path):
    image, mask = pictures
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    np.save(tmp_path / "five.npy", np.zeros((4, 5), np.float32))
    black = tmp_path / "black.png"
    Image.new("L", (8, 8)).save(black)
    cases = [
        (["sample", tmp_path], "holds no run.json"),
        (["sample", run_folder, "--label", "1"], "has no classes"),
        (["sample", run_folder, "--out", tmp_path / "x.doc"], "unknown suffix '.doc'"),
        (["likelihood", run_folder, "--data", tmp_path / "five.npy"], "five.npy"),
        (["likelihood", run_folder, "--data", image, "--out", tmp_path / "x.txt"], "use .csv or .jsonl"),
        (
            ["inpaint", run_folder, "--image", tmp_path / "wide.png", "--mask", mask],
            "is 9 x 8 pixels and 8 x 8 is expected",
        ),
        (["inpaint", run_folder, "--image", image, "--mask", black], "nothing that is known"),
        (["inpaint", run_folder, "--image", run_folder / "run.json", "--mask", mask], "is not an image"),
    ]
    for args, words in cases:
        status, out, err = cli(*args)
        assert (status, out) == (2, ""), args
        assert_one_line(err, words)


def cut_to_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_checkpoint_cut_to_half_is_passed_over_in_one_line(cli, run_folder):
    cut_to_half(run_folder / "step-000002" / "ema.safetensors")
    status, _, err = cli("sample", run_folder, "-n", 1, "--steps", 1, "--sampler", "ddim")
    assert status == 0
    assert_one_line(err, "step-000002 is damaged (checksum of ema.safetensors differs); continuing from step-000001")


def test_the_only_checkpoint_cut_to_half_is_refused_in_one_line(cli, run_folder):
    for path in list_checkpoints(run_folder):
        cut_to_half(path / "ema.safetensors")
    status, _, err = cli("sample", run_folder, "-n", 1)
    assert status == 2
    assert_one_line(err, "step-000002 is damaged")


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(cli, cloud, tmp_path):
    command = [*TRAIN, "--data", cloud, "--out", tmp_path / "run", "--steps", 6]
    cli(*command)
    whole = (tmp_path / "run" / "step-000006" / "model.safetensors").read_bytes()
    cut_to_half(tmp_path / "run" / "step-000006" / "model.safetensors")
    status, _, err = cli(*command)
    assert status == 0
    assert "step-000006 is damaged (checksum of model.safetensors differs); continuing from step-000004" in err
    assert (tmp_path / "run" / "step-000006" / "model.safetensors").read_bytes() == whole


def test_output_that_cannot_be_written_is_named(cli, run_folder, cloud):
    # A path below a file cannot be created even by root.
    below = cloud / "run"
    for args, wanted in (
        ([*TRAIN, "--data", cloud, "--steps", 2, "--out", below], 2),  # refused before any work
        (["sample", run_folder, "--out", below / "x.png"], 1),
    ):
        status, out, err = cli(*args)
        assert (status, out) == (wanted, "")
        assert_one_line(err, f"cannot write {below}", "choose another place")


def assert_last_checkpoint_is_intact(cli, run):
    kept = list_checkpoints(run)
    assert kept
    assert not list(run.glob(".tmp-*"))
    status, _, err = cli(
        "sample", run, "-n", 1, "--steps", 1, "--sampler", "ddim", "--out", run.parent.parent / "x.npy"
    )
    assert (status, err) == (0, "")


def test_disk_that_fills_up_in_training_leaves_the_last_checkpoint(cli, cloud, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full_from_the_second_checkpoint_on(handle):
        calls.append(handle)
        if len(calls) > 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full_from_the_second_checkpoint_on)
    run = tmp_path / "runs" / "run"
    status, _, err = cli(*TRAIN, "--data", cloud, "--out", run, "--steps", 20)
    monkeypatch.setattr(os, "fsync", real)
    assert status == 1
    assert_one_line("scorefield: " + err.rsplit("scorefield: ", 1)[1], "the disk is full; free some space")
    assert_last_checkpoint_is_intact(cli, run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes; three checkpoints of the vectors preset do not fit."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_leaves_the_last_checkpoint(cli, cloud, small_disk, tmp_path):
    status, _, err = cli(*TRAIN, "--data", cloud, "--out", small_disk / "run", "--steps", 20)
    assert status == 1
    assert_one_line("scorefield: " + err.rsplit("scorefield: ", 1)[1], "cannot write", "the disk is full")
    kept = list_checkpoints(small_disk / "run")
    assert kept
    assert sf.load(small_disk / "run").shape == (3,)


def test_sample_on_a_full_disk_leaves_no_half_written_file(cli, run_folder, small_disk):
    (small_disk / "filler").write_bytes(b"0" * (3 * 2**20 - 8192))
    status, _, err = cli(
        "sample", run_folder, "-n", 100, "--steps", 1, "--sampler", "ddim", "--out", small_disk / "x.npy"
    )
    assert status == 1
    assert_one_line(err, "the disk is full")
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_debug_shows_the_traceback_and_the_line(cli):
    status, _, err = cli("sample", "no/such", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("scorefield: cannot read no/such")


def test_fault_of_the_program_is_still_one_line(cli, run_folder, monkeypatch):
    monkeypatch.setattr(sf, "sample", lambda *a, **k: {}["missing"])
    status, _, err = cli("sample", run_folder)
    assert status == 1
    assert_one_line(err, "KeyError", "--debug shows where")


def test_ctrl_c_is_status_130(cli, run_folder, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sf, "sample", interrupted)
    status, _, err = cli("sample", run_folder)
    assert status == 130
    assert_one_line(err, "interrupted")


def test_sigterm_saves_and_is_status_zero(cli, cloud, tmp_path, monkeypatch):
    import signal

    from scorefield.training import loss as objective

    real, steps = objective.dsm_loss, []

    def loss(*args, **options):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*args, **options)

    monkeypatch.setattr(objective, "dsm_loss", loss)
    status, out, _ = cli(*TRAIN, "--data", cloud, "--out", tmp_path / "run", "--steps", 20)
    assert status == 0
    assert "step 3 of 20, loss" in out
    assert "stopped by SIGTERM" in out
    assert list_checkpoints(tmp_path / "run")[-1].name == "step-000003"


def test_module_runs_as_a_program(tmp_path):
    done = subprocess.run([sys.executable, "-m", "scorefield", "sample", "no/such"], capture_output=True, text=True)
    assert done.returncode == 2
    assert_one_line(done.stderr, "cannot read no/such")


def test_training_starts_from_the_weights_of_another_run(cli, cloud, tmp_path):
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other.npy"
    assert cli(*TRAIN, "--data", cloud, "--steps", "2", "--out", first)[0] == 0
    start = ("--data", cloud, "--steps", "2", "--out", second, "--seed", "5")
    assert cli(*TRAIN, *start, "--init", first)[0] == 0
    begin, wanted = sf.load(second, step=0).state_dict(), sf.load(first).state_dict()
    assert all(torch.equal(begin[name], value) for name, value in wanted.items())
    shutil.rmtree(first)
    assert cli(*TRAIN, *start, "--init", first)[0] == 0  # goes on, and needs it no more
    np.save(other, np.zeros((10, 4), np.float32))
    status, _, err = cli(*TRAIN, "--data", other, "--steps", "2", "--out", tmp_path / "third", "--init", second)
    assert status != 0
    assert_one_line(err, "belongs to another network")
    assert not (tmp_path / "third").exists()


# Words for solvers and operators


def test_a_new_solver_is_on_the_command_line_without_another_edit(monkeypatch):
    from dataclasses import dataclass
    from typing import ClassVar

    from scorefield.cli.names import read_solver, solvers

    @dataclass(frozen=True)
    class HalfStep(sf.Euler):
        share: float = 0.5
        order: ClassVar[float] = 1

    monkeypatch.setattr(sf.solve, "HalfStep", HalfStep, raising=False)
    assert solvers()["half-step"] is HalfStep
    assert read_solver("half-step:share=0.25") == HalfStep(share=0.25)


def test_every_solver_of_the_library_has_a_word_and_its_options():
    from scorefield.cli.names import read_solver, solvers

    ours = {
        c
        for c in vars(sf.solve).values()
        if isinstance(c, type) and issubclass(c, sf.Solver) and getattr(c, "order", 0)
    }
    left_out = {c.__name__ for c in ours - set(solvers().values())}
    assert left_out <= {"Tuned", "EmbeddedRungeKutta", "RungeKutta"}  # made by `tune`, or no solvers yet
    assert read_solver("ddim:eta=1") == sf.DDIM(eta=1.0)
    assert read_solver("UniPC:order=2") == sf.UniPC(order=2)
    assert read_solver("dpm") == sf.DPMSolver()
    assert read_solver("dopri5:rtol=1e-3,norm=max") == sf.Dopri5(rtol=1e-3, norm="max")
    made = read_solver("pc:predictor=euler-maruyama,snr=0.2,correct-first=yes")
    assert made == sf.PC(sf.EulerMaruyama(), sf.Langevin(snr=0.2), correct_first=True)
    assert read_solver("fitted") == sf.solve.Fitted()


def test_the_corrector_has_the_snr_of_the_paper_for_its_sde():
    from scorefield.cli.names import read_solver

    assert read_solver("pc", sf.VE()).corrector.snr == 0.16
    assert read_solver("pc", sf.VP()).corrector.snr == 0.01


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("ddim:eta", "expected OPTION=VALUE; it takes eta"),
        ("ddim:etta=1", "option 'etta' is unknown; it takes eta"),
        ("ddim:eta=much", "eta='much' cannot be read; expected a number"),
        ("ddim:eta=2", "eta lies between 0 and 1"),
        ("heun:order=3", "it takes none"),
        ("pc:predictor=magic", "predictor='magic' is unknown"),
    ],
)
def test_wrong_words_for_solvers_are_one_line(cli, word, words):
    status, out, err = cli("sample", "r", "--sampler", word)
    assert (status, out) == (2, "")
    assert_one_line(err, words)


def test_solvers_are_listed_with_their_options(cli):
    status, out, err = cli("sample", "--sampler", "list")
    assert (status, err) == (0, "")
    assert "adaptive-sde (rtol, atol, max_steps, min_step)" in out.splitlines()
    assert json.loads(cli("sample", "--sampler", "list", "--json")[1])["known"] == out.splitlines()


def test_help_of_train_is_true_where_no_preset_is_named(cli):
    text = " ".join(cli("train", "--help")[1].replace("│", " ").split())
    assert "(required)" not in text
    assert "(may be left out where --data names data of your own)" in text
    assert "--minutes FLOAT" in text
    assert "(default: 2300)" not in text
    assert "(default: 2300)" in cli("train", "digits", "--help")[1]
    for command in ("infill", "enhance"):
        assert "uni-pc" not in cli(command, "--help")[1]


@pytest.mark.parametrize("command", sorted(app.COMMANDS))
def test_every_command_has_seed_device_and_json(command):
    import importlib

    from scorefield.cli.parse import known_options

    options = importlib.import_module(f"scorefield.cli.{command}").Options
    assert {"--seed", "--device", "--json", "--debug"} <= set(known_options(options, {"prog": "x"}))


# The world around a command


def test_json_is_json_whatever_the_figures_are(cli, monkeypatch):
    from scorefield.cli import presets
    from scorefield.cli.options import Result

    monkeypatch.setattr(presets, "run", lambda options: Result("", {"a": float("nan"), "b": [1.0, float("inf")]}))
    status, out, _ = cli("presets", "--json")
    assert status == 0
    assert json.loads(out, parse_constant=lambda name: pytest.fail(name)) == {"a": None, "b": [1.0, None]}


@pytest.mark.parametrize(
    "words", [["sample", "nowhere"], ["sample", "digits", "--steps", "0"], ["presets", "--colour"], ["tarin"]]
)
def test_json_is_json_where_it_fails(cli, words):
    status, out, err = cli(*words, "--json")
    told = json.loads(out)
    assert (status, told["status"]) == (2, 2)
    assert_one_line(err, told["error"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", [["presets"], ["presets", "--json"], ["presets", "nothing", "--json"]])
def test_standard_output_on_a_full_disk_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scorefield", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode in (1, 2)
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_memory_is_said_as_such(cli, run_folder, monkeypatch):
    def greedy(*args, **options):
        raise MemoryError

    monkeypatch.setattr(sf, "sample", greedy)
    status, _, err = cli("sample", run_folder, "--sampler", "heun")
    assert status == 1
    assert_one_line(err, "not enough memory", "--batch-size")
    status, _, err = cli("sample", run_folder, "-n", "99999999999999999999")
    assert status == 2
    assert_one_line(err, "--n=99999999999999999999 is impossible; expected at most")


def test_a_link_keeps_and_a_pipe_gets_what_is_written(cli, run_folder, tmp_path):
    target, link, pipe = tmp_path / "v.npy", tmp_path / "l.npy", tmp_path / "p.npy"
    target.write_bytes(b"old")
    link.symlink_to(target)
    short = ["sample", run_folder, "-n", 1, "--steps", 1, "--sampler", "euler", "--out"]
    assert cli(*short, link)[0] == 0
    assert link.is_symlink()
    assert np.load(target).shape == (1, 1, 8, 8)
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert cli(*short, pipe)[0] == 0
    assert reader.communicate()[0] == target.read_bytes()
    assert not pipe.is_file()


def test_a_device_stays_a_device(cli, run_folder, tmp_path):
    import stat

    x = tmp_path / "x.npy"
    np.save(x, np.zeros((4, 8, 8), np.uint8))
    null = tmp_path / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except (PermissionError, OSError):
        pytest.skip("making a device needs root")
    before = sorted(p.name for p in tmp_path.iterdir())
    status, _, err = cli("evaluate", run_folder, "--data", x, "-n", 0, "--loss", 2, "--out", null)
    assert (status, err) == (0, "")
    assert stat.S_ISCHR(os.stat(null).st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_mask_is_no_photograph(cli, run_folder, pictures, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).normal(128, 40, (8, 8)).clip(0, 255).astype(np.uint8)).save(photo)
    status, _, err = cli("inpaint", run_folder, "--image", pictures[0], "--mask", photo)
    assert status == 2
    assert_one_line(err, "photo.png is not a mask", "neither black nor white")


def test_likelihoods_of_other_data_or_settings_lie_beside_each_other(cli, run_folder, tmp_path):
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.full((1, 8, 8), 9 + (name == "b"), np.uint8))
    short = ["likelihood", run_folder, "--tolerance", "0.1", "--data"]
    for more in (["a.npy"], ["b.npy"], ["b.npy", "--seed", "1"], ["a.npy"]):
        assert cli(*short, tmp_path / more[0], *more[1:])[0] == 0
    assert sorted(p.name[:13] for p in run_folder.glob("likelihood-*.csv")) == ["likelihood-a-", *["likelihood-b-"] * 2]


def test_output_of_few_characters_is_output(run_folder, tmp_path, monkeypatch):
    """Streams as PYTHONIOENCODING=ascii makes them."""
    import signal

    from scorefield.__main__ import program

    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    short = ["likelihood", run_folder, "--data", tmp_path / "x.npy", "--tolerance", 0.5, "--out", tmp_path / "y.csv"]
    out, err = (io.TextIOWrapper(io.BytesIO(), "ascii", "strict") for _ in range(2))
    for name, value in {"argv": ["scorefield", *map(str, short)], "stdout": out, "stderr": err}.items():
        monkeypatch.setattr(sys, name, value)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert program() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    out.flush(), err.flush()
    assert err.buffer.getvalue() == b""
    assert b" +/- " in out.buffer.getvalue()


def test_no_standard_error_is_no_fault(run_folder, tmp_path):
    short = ["sample", run_folder, "-n", 1, "--steps", 1, "--sampler", "euler", "--out", tmp_path / "c.npy"]
    words = " ".join(map(str, [sys.executable, "-m", "scorefield", *short]))
    assert subprocess.run(f"{words} 2>&-", shell=True).returncode == 0


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch):
    from pathlib import Path

    from scorefield.files import cache_folder

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SCOREFIELD_CACHE", raising=False)
    assert cache_folder().name == f"scorefield-{os.getuid()}"


def test_a_run_that_may_only_be_read_is_evaluated(monkeypatch, run_folder):
    from scorefield.cli.evaluate import _samples_folder

    assert _samples_folder(run_folder) == run_folder / "evaluation"
    monkeypatch.setattr(os, "access", lambda *a: False)
    assert run_folder not in _samples_folder(run_folder).parents


@pytest.mark.parametrize("value", ["", "many"])
def test_a_launchers_variable_without_a_number(cli, monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    status, _, err = cli("presets")
    assert status == (0 if not value else 2)
    if value:
        assert_one_line(err, "WORLD_SIZE='many' is no number")


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3, 1.0])
def test_ctrl_c_is_quiet_from_the_first_moment_on(run_folder, tmp_path, delay):
    import signal
    import time

    short = ["sample", run_folder, "-n", 64, "--steps", 100000, "--sampler", "euler", "--out", tmp_path / "c.npy"]
    code = "import scorefield.__main__ as m, sys; print('here', flush=True); sys.exit(m.program())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, short)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    time.sleep(delay + 0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "scorefield: interrupted"


def test_what_is_published_names_no_folder_and_is_not_written_into(cli, run_folder, tmp_path, monkeypatch):
    about = {"figures": {}, "features": "", "data": "/home/ann/customer 17/faces.npy", "samples": 0, "reference": 0}
    (run_folder / "evaluation.json").write_text(json.dumps(about))
    assert cli("push", run_folder, "--folder", tmp_path / "pub")[0] == 0
    text = "".join(p.read_text() for p in (tmp_path / "pub").rglob("*") if p.suffix in (".json", ".md"))
    assert "customer 17" not in text
    assert "faces.npy" in text
    before = sorted((tmp_path / "pub").rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert cli("sample", "pub", "-n", 1, "--steps", 1, "--sampler", "euler")[0] == 0
    assert sorted((tmp_path / "pub").rglob("*")) == before
    assert (tmp_path / "samples.png").exists()


def test_messages_name_flags_not_arguments(cli, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    Image.new("RGB", (28, 28), (9, 0, 0)).save(tmp_path / "red.png")
    assert "(--skip-broken)" in cli("train", "digits", "--data", tmp_path / "photos", "--out", tmp_path / "run")[2]
    (tmp_path / "photos" / "a.png").unlink()
    Image.new("RGB", (28, 28), (9, 0, 0)).save(tmp_path / "photos" / "b.png")
    assert (
        "pass --grey, or convert it"
        in cli("train", "digits", "--data", tmp_path / "photos", "--out", tmp_path / "run")[2]
    )


def test_training_without_a_preset_says_where_to_begin(cli):
    _, _, err = cli("train")
    assert_one_line(err, "begin with digits", "vectors (any array)", "lists all")
    assert len(err) < 320
    _, _, err = cli("train", "images")
    assert_one_line(err, "preset 'images' is unknown", "edm (pictures)", "your own data needs no preset")
    _, _, err = cli("train", "no_such_folder/")
    assert_one_line(err, "no_such_folder/ does not exist")
    _, _, err = cli("presets", "digits")
    assert_one_line(err, "'digits' is a recipe of scorefield", "scorefield train digits --help")
