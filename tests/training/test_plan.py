"""Training by the clock: it ends in time, and the number of steps it made repeats it exactly."""

import inspect
import itertools
import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest

import scorefield as sf
from scorefield.errors import InputError, ScorefieldWarning
from scorefield.training import OptimConfig, TrainConfig, progress
from scorefield.training.checkpoint import read_state
from scorefield.training.config import Options
from scorefield.training.plan import Plan
from scorefield.training.progress import Progress


def weights(folder, step):
    return {p.name: p.read_bytes() for p in (folder / f"step-{step:06d}").glob("*.safetensors")}


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: seconds a step, by the number of ticks so far."""
    ticks = itertools.count()

    class Clock:
        now = 0.0
        pace = staticmethod(lambda tick: 1.0)

    def read():
        Clock.now += Clock.pace(next(ticks))
        return Clock.now

    monkeypatch.setattr(progress, "monotonic", read)
    return Clock


def steps_made(config, limit=10_000):
    """The steps of a run whose every step takes what the clock says, and the learning rate of each."""
    at = Progress()
    plan = Plan(config, at)
    rates = []
    while at.step < plan.steps and at.step < limit and not plan.late:
        rates.append(plan.lr())
        if plan.due():
            plan.settle()
        at.take(1.0)
    return plan, at, rates


@pytest.mark.parametrize("schedule", ["constant", "cooldown"])
def test_steps_fill_the_minutes_and_the_schedule_ends_with_them(clock, schedule):
    config = TrainConfig().updated(minutes=5, schedule=schedule, warmup=10, lr=1.0)
    plan, at, rates = steps_made(config)
    assert at.step == plan.steps
    assert at.step == pytest.approx(300, abs=3)
    assert rates == [config.optim.lr_at(k, at.step) for k in range(at.step)]  # as if the number had been given
    if schedule == "cooldown":
        assert rates[-1] == pytest.approx(4 / at.step, rel=1e-6)


def test_a_machine_that_slows_down_ends_earlier(clock):
    clock.pace = lambda tick: 1.0 if tick < 100 else 4.0
    _, at, _ = steps_made(TrainConfig().updated(minutes=5, schedule="cooldown", warmup=0))
    assert at.seconds == pytest.approx(300, abs=30)  # it is noticed after half of `RECENT` steps


def test_a_machine_that_stalls_in_the_end_stops_within_twice_the_time(clock):
    clock.pace = lambda tick: 1.0 if tick < 240 else 30.0
    plan, at, _ = steps_made(TrainConfig().updated(minutes=5, schedule="cooldown", warmup=0))
    assert plan.late
    assert at.seconds < 600


def test_the_steps_that_the_clock_gave_repeat_the_run_bitwise(run_training, tmp_path):
    options = {"schedule": "cooldown", "log_every": 1000, "checkpoint_every": 1000, "report": False, "trackers": ()}
    by_clock = options | {"minutes": 0.01, "steps": 100_000}
    first = run_training("clock", **by_clock)
    assert first.finished
    assert first.steps > 4
    assert json.loads((tmp_path / "clock" / "run.json").read_text())["config"]["arguments"]["steps"] == first.steps
    run_training("steps", **options, steps=first.steps)
    assert weights(tmp_path / "clock", first.steps) == weights(tmp_path / "steps", first.steps)
    assert run_training("clock", **by_clock).step == first.steps  # finished: nothing more to do
    assert run_training("clock", **options, steps=first.steps).finished


def test_a_run_broken_off_goes_on_within_the_same_total(run_training, tmp_path):
    options = {"minutes": 0.03, "steps": 10**6, "schedule": "cooldown", "report": False, "trackers": ()}
    options |= {"log_every": 10**6, "checkpoint_every": 10**6}
    half = []

    def stop(moment):
        half.append(moment.step)
        return read_clock(moment) > 0.9

    from time import monotonic

    begin = monotonic()

    def read_clock(moment):
        return monotonic() - begin

    first = run_training(callbacks=[stop], **options)
    assert first.stopped == "a callback"
    second = run_training(**options)
    assert second.finished
    state = read_state(tmp_path / "run" / f"step-{second.step:06d}")
    assert state["seconds"] == pytest.approx(1.8, rel=0.5)
    assert state["planned"] == second.step


def test_a_schedule_that_needs_the_number_of_steps_is_refused_with_minutes():
    with pytest.raises(InputError, match="schedule=linear is impossible; expected constant or cooldown with minutes"):
        TrainConfig().updated(minutes=1, schedule="linear")
    with pytest.raises(InputError, match="minutes=0 is impossible"):
        TrainConfig().updated(minutes=0)


def test_every_option_of_train_has_its_type_and_its_word():
    known = {f.name for f in fields(TrainConfig)} | {f.name for f in fields(OptimConfig)}
    assert set(Options.__annotations__) == known
    words = inspect.getdoc(sf.train).replace(",", " ").replace(":", " ").split()
    assert known <= {word.strip("`.;") for word in words}
    assert "Unpack[Options]" in str(inspect.signature(sf.train))


def test_progress_without_a_terminal_is_a_line_every_half_minute(run_training, monkeypatch, capsys):
    from scorefield.training.monitor import Watch

    run_training(steps=10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(Watch, "EVERY", 0.0)
    run_training(steps=20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("step 11/20  loss ")
    monkeypatch.setattr("sys.stderr", None)
    assert run_training(steps=22).finished


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_commands_let_idle_threads_sleep_before_torch_is_loaded(given, found):
    code = "import os, sys, scorefield.cli; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [found, "False"]


def test_a_warm_up_that_outlasts_the_run_is_told_once(clock, recwarn):
    """By the steps at the start, and by the clock when it has planned them."""
    Plan(TrainConfig().updated(steps=200, warmup=199), Progress())
    assert not recwarn.list
    with pytest.warns(
        ScorefieldWarning, match=r"warmup=1000 .* 200 steps: .* rises to 4e-05, not to lr=0.0002; give warmup=20,"
    ):
        Plan(TrainConfig().updated(steps=200), Progress())
    with pytest.warns(ScorefieldWarning, match="no shorter than the run of") as told:
        plan, _, _ = steps_made(TrainConfig().updated(minutes=5, schedule="cooldown", warmup=1000))
    assert len(told) == 1
    assert plan.steps < 1000
