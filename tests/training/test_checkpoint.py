"""Checkpoints are whole and verified, or not there."""

import contextlib
import errno
import os
import random
import warnings

import pytest
import torch

from scorefield.errors import CheckpointError, OutputError, ScorefieldWarning
from scorefield.training.checkpoint import (
    best_checkpoint,
    list_checkpoints,
    load_optimizer,
    newest_checkpoint,
    optimizer_tensors,
    read_checkpoint,
    save_checkpoint,
)

GROUPS = ("model", "ema")


def save(run, step, keep=3):
    tensors = {g: {"w": torch.full((4, 3), float(step)), "n": torch.tensor(step)} for g in GROUPS}
    return save_checkpoint(run, step, tensors, {"seconds": 1.5}, keep)


def test_what_was_saved_is_read(tmp_path):
    strange = {"model": {"a/b": torch.randn(3, 5).t(), "tied": (w := torch.randn(2)), "again": w}}
    found = read_checkpoint(save_checkpoint(tmp_path, 12, strange, {"note": "x"}), ("model",))
    assert found.step == 12
    assert found.state["note"] == "x"
    assert all(torch.equal(found.tensors["model"][k], v) for k, v in strange["model"].items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 5, 20, 1_000_000):
        save(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000020", "step-1000000"]
    assert newest_checkpoint(tmp_path, GROUPS).step == 1_000_000


def losing(run, step, **state):
    return save_checkpoint(run, step, {"model": {}}, state, keep=2, keep_best=True)


def test_best_is_kept_beside_the_newest(tmp_path):
    for step, loss in enumerate([9.0, 5.0, 2.0, 6.0, 4.0, 3.0, 8.0]):
        losing(tmp_path, step, running_loss=loss)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-000002", "step-000005", "step-000006"]
    assert best_checkpoint(tmp_path).name == "step-000002"


def test_held_out_loss_decides_where_there_is_one(tmp_path):
    losing(tmp_path, 1, running_loss=1.0)
    losing(tmp_path, 2, running_loss=3.0, held_out_loss=2.0)
    losing(tmp_path, 3, running_loss=2.0, held_out_loss=4.0)
    losing(tmp_path, 4, running_loss=2.0, held_out_loss=float("nan"))
    assert best_checkpoint(tmp_path).name == "step-000002"


def test_damaged_best_is_passed_over(tmp_path):
    losing(tmp_path, 1, running_loss=1.0)
    losing(tmp_path, 2, running_loss=2.0)
    (tmp_path / "step-000001" / "state.json").write_text("{")
    assert best_checkpoint(tmp_path).name == "step-000002"


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", "SHA256SUMS"])
def test_file_cut_to_half_falls_back_with_one_line(tmp_path, name):
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(ScorefieldWarning, match=r"step-000002 is damaged \(.*\); continuing from step-000001") as caught:
        assert newest_checkpoint(tmp_path, GROUPS).step == 1
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "state.json", "SHA256SUMS"])
def test_truncation_at_every_byte_is_found(tmp_path, name):
    path = save(tmp_path, 1)
    whole = (path / name).read_bytes()
    for length in range(len(whole)):
        (path / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged") as caught:
            read_checkpoint(path, GROUPS)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "SHA256SUMS"])
def test_missing_file_is_damage(tmp_path, name):
    path = save(tmp_path, 1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_checkpoint(path, GROUPS)


def test_any_flipped_bit_is_found(tmp_path):
    path = save(tmp_path, 1)
    rng = random.Random(0)
    for _ in range(200):
        file = rng.choice(sorted(path.iterdir()))
        whole = file.read_bytes()
        broken = bytearray(whole)
        broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(broken))
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path, GROUPS)
        file.write_bytes(whole)
    read_checkpoint(path, GROUPS)


def test_all_damaged_is_an_error_not_a_new_start(tmp_path):
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-000002 is damaged .* all 2 of"):
        newest_checkpoint(tmp_path, GROUPS)


def test_full_disk_leaves_the_last_checkpoint_and_no_litter(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    real = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="step-000002: the disk is full"):
        save(tmp_path, 2)
    monkeypatch.setattr(os, "fsync", real)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    assert newest_checkpoint(tmp_path, GROUPS).step == 1


@pytest.mark.parametrize("moment", range(12))
def test_death_at_any_moment_of_writing_leaves_an_intact_checkpoint(tmp_path, monkeypatch, moment):
    class Killed(BaseException):
        pass

    save(tmp_path, 1, keep=1)
    calls = 0
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: None)  # a dead process does not clean up

    def dying(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "rename"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    with contextlib.suppress(Killed):
        save(tmp_path, 2, keep=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing half-written under the name of a checkpoint, not even a detected one
        assert newest_checkpoint(tmp_path, GROUPS).step in (1, 2)


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_optimiser_continues_bitwise_in_its_memory_format(cls):
    def setup():
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        return net, {p: n for n, p in net.named_parameters()}, cls(net.parameters(), lr=1e-2, fused=True)

    def step(net, optimizer, seed):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    net, names, optimizer = setup()
    step(net, optimizer, 0)
    stored = {k: v.clone().contiguous() for k, v in optimizer_tensors(optimizer, names).items()}
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    step(net, optimizer, 1)
    other, other_names, again = setup()
    other.load_state_dict(weights)
    load_optimizer(again, other_names, stored)
    assert again.state[other.weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    step(other, again, 1)
    assert torch.equal(other.weight, net.weight)
