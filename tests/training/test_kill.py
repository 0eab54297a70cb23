"""SIGKILL: nothing but the steps since the last checkpoint is lost, and the outcome is the same bit for bit."""

import os
import signal

import pytest

import scorefield as sf
from scorefield.training.checkpoint import list_checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(work):
    """Run `work` in a forked process and return the signal that ended it, 0 if it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def die_at_call(function, number):
    """`function`, but the process is killed when it is called for the given time."""

    def call(*args, **options):
        call.count += 1
        if call.count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)

    call.count = 0
    return call


def test_killed_in_a_step_and_in_a_checkpoint_equals_unbroken_bitwise(run_training, tmp_path):
    run_training("whole")

    def in_a_step():
        run_training("killed", loss=die_at_call(sf.dsm_loss, 14))

    def in_a_checkpoint():
        # Two flushes for the log and seven for each checkpoint: the 12th is amid the files of the second checkpoint.
        os.fsync = die_at_call(os.fsync, 12)
        run_training("killed")

    assert in_child(in_a_step) == signal.SIGKILL
    assert [p.name for p in list_checkpoints(tmp_path / "killed")] == ["step-000000", "step-000010"]
    assert in_child(in_a_checkpoint) == signal.SIGKILL
    assert [p.name for p in list_checkpoints(tmp_path / "killed")][-1] == "step-000020"
    assert list((tmp_path / "killed").glob(".tmp-*"))
    assert run_training("killed").finished
    for group in ("model", "ema", "optimizer"):
        file = f"step-000030/{group}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list((tmp_path / "killed").glob(".tmp-*"))
