"""A loss that diverges stops the run, or takes it back to the last good checkpoint."""

import warnings

import pytest
import torch

import scorefield as sf
from scorefield.errors import DivergedError, ScorefieldWarning
from scorefield.training.checkpoint import read_state
from scorefield.training.log import read_log
from scorefield.training.progress import Progress


def failing(when, value=torch.nan):
    """The loss, but `value` (or times `value`) at noise draws of the batches in `when`, by the order they first appear."""
    seen = []

    def loss(model, x0, *, t, noise):
        key = float(noise.sum())
        if key not in seen:
            seen.append(key)
        each = sf.dsm_loss(model, x0, t=t, noise=noise)
        return each * value if seen.index(key) in when else each

    return loss


def weights(folder, step=30):
    return (folder / f"step-{step:06d}" / "model.safetensors").read_bytes()


def test_rollback_goes_on_from_the_checkpoint_with_later_batches(run_training, tmp_path):
    # Batch 13 is bad: back to step 10, and steps 10 .. 29 see the batches 14 .. 33.
    used = []

    def loss(model, x0, *, t, noise):
        used.append(float(noise.sum()))
        return failure(model, x0, t=t, noise=noise)

    failure = failing([13])
    with pytest.warns(
        ScorefieldWarning, match=r"step 13: the loss is nan, first at .*sigma=.*; rolled back to step 10"
    ):
        run = run_training(loss=loss, on_divergence="rollback", batch_size=4)
    assert run.finished
    rolled = used[14:]
    used.clear()
    failure = failing([])
    run_training("planned", loss=loss, steps=34, batch_size=4)
    assert rolled == used[14:34]
    state = read_state(tmp_path / "run" / "step-000030")
    assert (state["skipped"], state["rollbacks"]) == (4, 1)


def test_log_tells_of_the_rollback_and_forgets_what_it_undid(run_training, tmp_path):
    with pytest.warns(ScorefieldWarning):
        run_training(loss=failing([13]), on_divergence="rollback", log_every=2)
    lines = read_log(tmp_path / "run")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(2, 31, 2))
    (event,) = [line for line in lines if "rollback_from" in line]
    assert (event["rollback_from"], event["step"]) == (13, 10)
    assert "sigma=" in event["reason"]


def test_rollback_is_deterministic_also_across_a_stop(run_training, tmp_path):
    options = {"on_divergence": "rollback", "batch_size": 4}
    with pytest.warns(ScorefieldWarning):
        run_training("whole", loss=failing([13]), **options)
    # The same bad batch, but the run is stopped at step 12, between the checkpoint and the divergence, and again at 16.
    bad = failing([13])
    run_training("parts", loss=bad, callbacks=[lambda moment: moment.step == 12], **options)
    with pytest.warns(ScorefieldWarning):
        run_training("parts", loss=bad, callbacks=[lambda moment: moment.step == 16], **options)
    run_training("parts", loss=bad, **options)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_rollbacks_end(run_training, tmp_path):
    def always(model, x0, **rest):
        always.calls += 1
        return sf.dsm_loss(model, x0, **rest) * (torch.nan if always.calls > 12 else 1.0)

    always.calls = 0
    with (
        pytest.warns(ScorefieldWarning) as told,
        pytest.raises(DivergedError, match="it had rolled back 2 times"),
    ):
        run_training(loss=always, on_divergence="rollback", rollbacks=2)
    assert len(told) == 2


def test_an_explosion_is_told_from_an_ordinary_loss(run_training):
    options = {"steps": 130, "log_every": 50, "checkpoint_every": 50}
    with pytest.raises(
        DivergedError, match=r"stopped at step 120: the loss has exploded to .*, most at noise level sigma="
    ):
        run_training(loss=failing([120], 1e5), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_training("calm", loss=failing([120], 100.0), **options).finished
        assert run_training("free", loss=failing([120], 1e5), explosion=0.0, **options).finished


def test_a_stopped_run_has_its_report_and_may_go_on_with_rollback(run_training, tmp_path):
    with pytest.raises(DivergedError, match="on_divergence=rollback"):
        run_training(loss=failing([13]))
    assert (tmp_path / "run" / "report.html").exists()
    bad = failing([3])  # the thirteenth batch is the fourth after step 10
    with pytest.warns(ScorefieldWarning, match="step 13"):
        assert run_training(loss=bad, on_divergence="rollback").finished


def test_running_loss_is_the_mean_and_then_forgets():
    at = Progress()
    for value in range(50):
        at.take(float(value))
    assert at.running_loss == pytest.approx(24.5)
    for _ in range(2000):
        at.take(7.0)
    assert at.running_loss == pytest.approx(7.0, rel=1e-6)
