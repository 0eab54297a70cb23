"""Several processes do what one would: the same losses, weights, samples and likelihoods."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

import scorefield as sf
from scorefield.cli import main
from scorefield.errors import InputError
from scorefield.parallel import Processes
from scorefield.randomness import SeedRows
from scorefield.training import TrainConfig
from scorefield.training.log import read_log
from scorefield.training.optimizer import check_plain
from scorefield.training.sharding import check_shardable

TRAIN = [
    "train",
    "vectors",
    "--device",
    "cpu",
    "--steps",
    "50",
    "--log-every",
    "5",
    "--batch-size",
    "12",
    "--no-report",
]
TRAIN += ["--trackers", "--power-ema", "0.1", "--snapshot-every", "25", "--checkpoint-every", "25"]

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available() and hasattr(os, "fork")),
    reason="needs gloo and fork",
)


def torchrun(*words):
    """Run a command in two processes, as users do."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "scorefield",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launch, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr


def fork(processes, *words):
    """Start a command in forked processes that find each other as those of torchrun do: their ids.

    Nothing is imported again, which is most of the time of a launch.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if "--shard" in words:
        from torch.distributed import fsdp, tensor  # noqa: F401  # loaded here, and not in every process
    PartialState(cpu=True)  # what the processes inherit says that there is only one, and must not count
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)  # the threads of the parent are not there
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {k: str(v) for k, v in names.items()}
                status = main([str(word) for word in words])
                sys.stdout.flush()
            finally:
                os._exit(status)
        children.append(child)
    return children


def scorefield(processes, *words):
    """Run a command in some number of processes to its end."""
    for child in fork(processes, *words):
        assert os.waitpid(child, 0)[1] == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same run by one and by two processes."""
    place = tmp_path_factory.mktemp("processes")
    np.save(place / "cloud.npy", np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32))
    scorefield(1, *TRAIN, "--data", place / "cloud.npy", "--out", place / "1", "--accumulate", 2)
    torchrun(*TRAIN, "--data", place / "cloud.npy", "--out", place / "2")
    return place


@needs_gloo
def test_two_processes_have_the_losses_and_weights_of_one(runs):
    # One process that accumulates two parts, and two processes of one part each.
    one, two = (read_log(runs / name) for name in "12")
    assert [line["step"] for line in two] == list(range(5, 51, 5))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=1e-4)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a["levels"], b["levels"], rtol=1e-4)
    weights = [load_file(runs / name / "step-000050" / "ema.safetensors") for name in "12"]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5)


@needs_gloo
def test_sharded_training_has_the_weights_of_one_process_and_goes_on_as_one(runs, tmp_path):
    # Two processes hold half of everything each; then one goes on from their checkpoint of the middle.
    words = [*TRAIN, "--data", runs / "cloud.npy", "--out", tmp_path, "--accumulate", 2]
    scorefield(2, *words, "--shard", "--sample-every", 30, "--held-out", runs / "cloud.npy")
    files = ("step-000050/model", "step-000050/ema", "step-000050/optimizer", "snapshots/step-000050/0.1")
    for attempt in ("sharded", "continued"):
        if attempt == "continued":
            shutil.rmtree(tmp_path / "step-000050")
            scorefield(1, *words)
        for file in files:
            mine, one = (load_file(run / f"{file}.safetensors") for run in (tmp_path, runs / "1"))
            for name, value in one.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)


@needs_gloo
def test_two_processes_draw_the_samples_of_one(runs, tmp_path):
    # An odd number, so that the shares differ, and a sampler that draws noise at every step.
    options = ["-n", 5, "--sampler", "pc", "--steps", 4, "--seed", 3, "--batch-size", 2]
    for processes in (1, 2):
        scorefield(processes, "sample", runs / "1", *options, "--out", tmp_path / f"{processes}.npy")
    np.testing.assert_allclose(np.load(tmp_path / "2.npy"), np.load(tmp_path / "1.npy"), atol=1e-5)


@needs_gloo
def test_two_processes_have_the_likelihoods_of_one_and_print_once(runs, tmp_path, capfd):
    options = ["--data", runs / "cloud.npy", "-n", 7, "--batch-size", 2, "--tolerance", 1e-2, "--json"]
    printed, rows = [], []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.csv"
        scorefield(processes, "likelihood", runs / "1", *options, "--out", out)
        printed.append(json.loads(capfd.readouterr().out)["nats"])
        with open(out) as file:
            rows.append([float(row["nats"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-5)
    assert printed[1] == pytest.approx(printed[0], abs=1e-5)


@needs_gloo
def test_sigterm_to_one_process_stops_all_at_one_step(runs, tmp_path):
    out = tmp_path / "stopped"
    words = ["train", "vectors", "--data", runs / "cloud.npy", "--out", out, "--steps", 10**6, "--device", "cpu"]
    children = fork(2, *words, "--log-every", 1, "--no-report")
    while not read_log(out):
        time.sleep(0.02)
    os.kill(children[1], signal.SIGTERM)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert max(int(p.name[5:]) for p in out.glob("step-*")) >= 1


def test_shares_cover_every_row_once():
    for n in (0, 1, 7, 10):
        assert [row for rank in range(3) for row in Processes(rank, 3).share(n)] == list(range(n))


def test_rows_of_a_seed_are_those_rows(make_model):
    model = make_model()
    whole = sf.sample(model, 5, sf.EulerMaruyama(), steps=3, seed=2)
    part = sf.sample(model, 2, sf.EulerMaruyama(), steps=3, seed=SeedRows(2, range(3, 5)))
    torch.testing.assert_close(part, whole[3:], rtol=0, atol=1e-6)


def test_accumulated_gradient_is_that_of_the_whole_batch(run_training):
    whole, parts = run_training("whole"), run_training("parts", accumulate=4)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_sharded_is_named():
    with pytest.raises(InputError, match=r"not for optim\.name=muon"):
        check_shardable(TrainConfig().updated(name="muon"))
    with pytest.raises(InputError, match="not for precision=fp16"):
        check_shardable(TrainConfig(precision="fp16"))


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_of_accelerate_is_refused(kind):
    from accelerate import DistributedType

    with pytest.raises(InputError, match=f"configured for {kind}; leave that out and give shard=True"):
        check_plain(SimpleNamespace(distributed_type=DistributedType(kind)))


def test_accelerates_own_accumulation_does_not_count(run_training, monkeypatch):
    plain = run_training("plain", steps=10)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    again = run_training("again", steps=10)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), again.model.parameters(), strict=True))


def test_batch_that_cannot_be_cut_evenly_is_refused(run_training):
    with pytest.raises(
        InputError, match=r"batch_size=16 cannot be shared evenly .* accumulate=3; choose a multiple of 3"
    ):
        run_training(accumulate=3)
