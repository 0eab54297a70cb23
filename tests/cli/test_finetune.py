"""scorefield finetune: a run, a function in a file, and a run that every command takes."""

import json

import pytest

REWARD = """
import torch

def less(x):
    return -x.flatten(1).mean(1)

def wide(x):
    return x

def keyed(x):
    raise KeyError("colour")

def alone():
    return 1

number = 3
"""


@pytest.fixture
def rewards(tmp_path):
    file = tmp_path / "ink.py"
    file.write_text(REWARD)
    return file


QUICK = ("--steps", 3, "--batch-size", 4, "--chain-steps", 3, "--json")


def test_a_run_is_tuned_and_sampled(cli, trained, rewards, tmp_path):
    command = ("finetune", trained, "--reward", f"{rewards}:less", "--out", tmp_path / "light", *QUICK)
    status, out, err = cli(*command, "--how", "policy", "--learn-from", 2)
    assert status == 0, err
    told = json.loads(out)
    assert told["finished"]
    assert told["before"]["kl"] == 0 < told["after"]["kl"]
    assert (tmp_path / "light" / "reward.jsonl").exists()
    status, out, err = cli("sample", tmp_path / "light", "-n", 2, "--steps", 3, "--out", tmp_path / "light.png")
    assert status == 0, err
    assert (tmp_path / "light.png").exists()


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("ink.py", "names no function; write FILE.py:FUNCTION"),
        ("nothing.py:less", "there is no file"),
        ("ink.py:more", "has no function more; it has less, wide"),
        ("ink.py:number", "has no function number"),
        ("broken.py:less", "fails with ZeroDivisionError"),
        ("ink.txt:less", "must end in .py"),
        ("ink.py:wide", "expected one number a sample"),
        ("ink.py:keyed", "ink.py:keyed fails with KeyError: 'colour'; --debug shows where"),
        ("ink.py:alone", "takes 0 positional arguments"),
        ("leaves.py:less", "fails with SystemExit: 3"),
    ],
)
def test_a_bad_reward_is_one_line(cli, trained, rewards, tmp_path, reward, told):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "ink.txt").write_text(REWARD)
    status, _, err = cli("finetune", trained, "--reward", tmp_path / reward, "--out", tmp_path / "out", *QUICK)
    assert status == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_tuned_into_itself(cli, trained, rewards):
    status, _, err = cli("finetune", trained, "--reward", f"{rewards}:less", "--out", trained, *QUICK)
    assert status == 2
    assert "choose another folder" in err
