"""The one door: it chooses, trains, judges, goes on, and repeats."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch

import scorefield as sf
from cli_tools import narrow
from scorefield.automatic import choose, door, findings
from scorefield.automatic.choose import _mixture
from scorefield.data import array
from scorefield.errors import CheckpointError, InputError
from scorefield.training import read_run
from scorefield.training.checkpoint import read_state

DRAWS = np.random.default_rng(1)
VECTORS = (DRAWS.normal(size=(200, 2)) @ np.array([[3.0, 0.0], [4.0, 0.5]]) + np.array([100.0, -7.0])).astype(
    np.float32
)


def weights(folder, step):
    return {p.name: p.read_bytes() for p in (folder / f"step-{step:06d}").glob("*.safetensors")}


@pytest.fixture
def go(tmp_path, capsys, monkeypatch):
    """sf.fit with networks that suit a test: what is wider is not trained better in a few steps."""
    monkeypatch.setattr(choose, "WIDTHS", dict.fromkeys(choose.WIDTHS, (8,)))
    narrow(monkeypatch, sf.nn.StateMLP, width=64)

    def run(name="run", data=VECTORS, **options):
        return sf.fit(data, out=tmp_path / name, **({"device": "cpu", "judged": False, "progress": False} | options))

    return run


def test_choices_are_said_recorded_and_repeated_bitwise(go, tmp_path, capsys):
    first = go(minutes=0.015, progress=None)
    told = capsys.readouterr().err.splitlines()
    assert "200 vectors of 2, 20 of them held out" in told[0]
    assert "MLP of width 64" in told[1]
    assert f"steps={first.run.step}, like=" in told[2]
    assert len(told) == 3
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["arguments"]
    assert config["steps"] == first.run.step
    again = go("again", steps=first.run.step, like=tmp_path / "run")
    assert weights(tmp_path / "run", first.run.step) == weights(tmp_path / "again", again.run.step)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": None}, "out=None: give the folder"),
        ({"device": "tpu"}, "device='tpu' is unknown"),
        ({"steps": "3"}, "steps='3' is impossible; expected a whole number"),
        ({"steps": 1.5}, "steps=1.5 is impossible; expected a whole number"),
        ({"steps": None, "minutes": "ten"}, "minutes='ten' is impossible; expected a number"),
    ],
)
def test_options_that_are_none_are_refused_by_name(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        sf.fit(VECTORS, **{"out": tmp_path, "steps": 1, "progress": False} | options)


def test_numbers_of_any_kind_are_taken(go):
    assert go(steps=np.int64(2), seed=np.int64(1)).run.step == 2
    fitted = go(steps=2.0, seed=torch.tensor(1))
    assert fitted.run.steps == 2
    lines = fitted.log_prob(VECTORS[:3].tolist(), seed=0).nats
    assert torch.equal(lines, fitted.log_prob(torch.from_numpy(VECTORS[:3]), seed=0).nats)
    for x, words in ((np.ones((3, 3)), "items of shape"), (VECTORS[:3] + 1j, "x is complex"), (None, "no numbers")):
        with pytest.raises(ValueError, match=words):
            fitted.log_prob(x)


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_refused_before_data_is_read(go, tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder"):
        go(place, data="nowhere")
    model = sf.ScoreModel(torch.nn.Identity(), sf.VP(), shape=(2,))
    with pytest.raises(InputError, match="file is not a folder"):
        sf.train(model, None, out=tmp_path / place)
    with pytest.raises(InputError, match="file is not a folder"):
        sf.reward.finetune(model, len, out=tmp_path / place)


def test_a_class_of_one_item_may_be_held_out_and_classes_may_begin_anywhere(go):
    """The network knows every class of the data, and is judged on those that it has seen."""
    labels = np.arange(200) + 1
    found = findings.find(array(VECTORS, labels=labels), labels=True)
    assert found.classes == 201 > int(found.data.labels.max())
    assert go(data=array(VECTORS, labels=labels), labels=True, steps=1, judged=True).judgement is not None
    with pytest.raises(
        InputError, match="item 3 of data has the label 1000000000, which would be one of 1,000,000,001"
    ):
        array(VECTORS, labels=np.where(np.arange(200) == 3, 10**9, 0))


def test_the_same_call_goes_on_within_the_same_total(go, tmp_path, monkeypatch):
    real = door._stops_rising
    monkeypatch.setattr(door, "_stops_rising", lambda run: lambda moment: moment.step == 2)
    assert go(minutes=0.05).run.stopped == "a callback"
    monkeypatch.setattr(door, "_stops_rising", real)
    done = go(minutes=0.05).run
    assert done.finished
    assert read_state(tmp_path / "run" / f"step-{done.step:06d}")["seconds"] < 2 * 0.05 * 60
    assert go(minutes=0.05).run.step == done.step


SIGNALS = np.cumsum(DRAWS.normal(size=(40, 1, 32)), 2).astype(np.float32)


def stops_at(monkeypatch, step):
    """Training ends at a step, as by a signal."""
    real = door.train
    stop = [lambda moment: moment.step == step]
    monkeypatch.setattr(door, "train", lambda *args, **options: real(*args, **options | {"callbacks": stop}))


def fits_nothing(monkeypatch):
    """Whatever would fit a law or a scale fails."""

    def fail(*args, **options):
        raise AssertionError("fitted anew")

    for name in ("choose", "fit_principal", "fit_stationary", "_scaled"):
        monkeypatch.setattr(findings, name, fail)


def as_if_killed_at_once(run, *steps):
    """Take these checkpoints and the log away."""
    for step in steps:
        shutil.rmtree(run / f"step-{step:06d}")
    (run / "log.jsonl").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("data", "stop"), [(VECTORS, 0), (VECTORS, 3), (SIGNALS, 3)], ids=["first step", "vectors", "signals"]
)
def test_a_run_goes_on_with_what_was_found_at_its_start(go, tmp_path, monkeypatch, data, stop):
    whole = go("whole", data, steps=5)
    with monkeypatch.context() as stopped:
        stops_at(stopped, stop or 1)
        assert go("run", data, steps=5, like=whole.path).run.stopped == "a callback"
    if stop == 0:
        as_if_killed_at_once(tmp_path / "run", 1)
    fits_nothing(monkeypatch)
    again = go("run", data, steps=5)
    assert again.run.step == 5
    assert weights(tmp_path / "run", 5) == weights(tmp_path / "whole", 5)
    assert read_run(tmp_path / "run").data["scale"] == read_run(tmp_path / "whole").data["scale"]
    assert torch.equal(again.found.data.scale.mean, whole.found.data.scale.mean)


def test_a_run_that_failed_before_its_first_step_keeps_its_law(go, tmp_path, monkeypatch):
    """Another number of steps begins it again, since its schedule ends there."""
    whole = go("whole", steps=6)
    go("run", steps=3)
    as_if_killed_at_once(tmp_path / "run", 3)
    fits_nothing(monkeypatch)
    again = go("run", steps=6)
    assert torch.equal(again.model.net.means, whole.model.net.means)
    assert not torch.equal(again.model.net.means, torch.zeros_like(again.model.net.means))


def test_a_run_that_failed_before_its_first_step_may_begin_with_other_data(go, tmp_path):
    """As with pictures of another size, where the first took too much memory."""
    whole = go("whole", data=VECTORS[:100, :1], steps=3)
    go("run", steps=3)
    as_if_killed_at_once(tmp_path / "run", 3)
    go("run", data=VECTORS[:100, :1], steps=3)
    assert weights(tmp_path / "run", 3) == weights(whole.path, 3)


def test_a_run_without_a_checkpoint_is_begun_anew(go, tmp_path):
    """Its description says how many components the mixture has, not which."""
    whole = go("whole", steps=3)
    go("run", steps=3)
    as_if_killed_at_once(tmp_path / "run", 0, 3)
    assert torch.equal(go("run", steps=3).model.net.means, whole.model.net.means)
    assert weights(tmp_path / "run", 3) == weights(tmp_path / "whole", 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: np.concatenate([x, x + 1]), r"was trained on other data \(.*data.npy, 180 items; now .*, 360 items"),
        (lambda x: x[:, :1], r"180 items of \(2,\); now .*data.npy, 180 items of \(1,\)\); choose another --out"),
        (lambda x: np.where(np.arange(200)[:, None] == 78, 0, x).astype(np.float32), r"held other values then"),
        (lambda x: 2 * x, r"trained on other data \(.*data.npy held other values then\); choose another --out, or use"),
    ],
    ids=["more rows", "fewer columns", "another row", "other numbers"],
)
def test_changed_data_is_told_before_anything_is_fitted(go, tmp_path, monkeypatch, change, words):
    path = tmp_path / "data.npy"
    np.save(path, VECTORS)
    go(data=str(path), steps=2)
    np.save(path, change(VECTORS))
    fits_nothing(monkeypatch)
    with pytest.raises(CheckpointError, match=words):
        go(data=str(path), steps=2)


def test_another_seed_is_told(go):
    go(steps=2)
    with pytest.raises(CheckpointError, match=r"was trained with seed=0, not 1; choose another --out"):
        go(steps=2, seed=1)


def test_choices_taken_for_data_without_a_law_leave_the_law(go, tmp_path):
    go(steps=2)
    labelled = sf.data.array(VECTORS, labels=np.arange(200) % 3)
    assert isinstance(go("like", labelled, steps=2, labels=True, like=tmp_path / "run").model.net, sf.nn.MLP)


def test_samples_and_densities_are_in_the_units_of_the_data(go):
    fitted = go(steps=30)
    scale = fitted.found.data.scale
    x = fitted.sample(400, sf.Heun(), steps=10, seed=0)
    z = sf.sample(fitted.model, 400, sf.Heun(), steps=10, seed=0)
    torch.testing.assert_close(x.double(), scale.to_units(z.double()), rtol=1e-4, atol=1e-4)
    assert float(x[:, 0].mean()) == pytest.approx(100, abs=3)
    options = {"trace": "exact", "solver": sf.Dopri5(1e-5, 1e-5)}
    lp = fitted.log_prob(VECTORS[:4], **options)
    inner = sf.log_prob(fitted.model, scale.to_model(torch.from_numpy(VECTORS[:4])), **options)
    torch.testing.assert_close(lp.nats, inner.nats - scale.log_volume(torch.from_numpy(VECTORS[:4])))
    assert repr(fitted).count("\n") == 0


def test_a_judged_run_keeps_its_figures(go, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = go(steps=60, judged=True, progress=None)
    told = capsys.readouterr().err
    assert "held out: " in told
    assert set(json.loads((tmp_path / "run" / "fit.json").read_text())["baselines"]) == {
        "Gaussian",
        "mixture",
        "kernels",
    }
    assert fitted.judgement.unit == "nats"


@pytest.mark.parametrize(
    "data",
    [
        DRAWS.integers(0, 256, (40, 3, 16, 16), np.uint8),
        DRAWS.normal(size=(40, 1, 32)).astype(np.float32),
        DRAWS.normal(size=(30, 1, 8, 8, 8)).astype(np.float32),
    ],
    ids=["pictures", "signals", "volumes"],
)
def test_every_kind_trains(go, tmp_path, data):
    fitted = go(data=data, steps=3)
    assert fitted.run.finished
    net = fitted.model.net
    assert isinstance(getattr(net, "net", net), sf.nn.UNet)
    assert fitted.sample(2, sf.Euler(), steps=2, seed=0).shape == (2, *data.shape[1:])
    assert read_run(tmp_path / "run").shape == data.shape[1:]


def test_classes_of_an_array_are_learned_where_they_are_wanted(go):
    data = sf.data.array(VECTORS, labels=np.arange(200) % 3)
    assert go("plain", data, steps=3).model.net.num_classes == 0
    assert go("classes", data, steps=3, labels=True).model.net.num_classes == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 0}, "minutes=0.* is impossible; expected a positive number"),
        ({"minutes": -1}, "is impossible"),
        ({"steps": 0}, "steps=0 is impossible"),
        ({"steps": 3, "minutes": 1}, "give minutes or steps, not both"),
    ],
)
def test_impossible_lengths_are_refused_before_anything_is_read(go, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        go(data="nowhere", **options)
    assert not (tmp_path / "run").exists()


def test_training_ends_when_the_held_out_loss_has_long_been_rising(tmp_path):
    from types import SimpleNamespace

    from scorefield.automatic.door import _stops_rising

    stop = _stops_rising(tmp_path)
    moment = SimpleNamespace(step=500)

    def losses(*values):
        lines = [json.dumps({"step": i, "held_out_loss": v}) for i, v in enumerate(values)]
        (tmp_path / "log.jsonl").write_text("\n".join(lines) + "\n")
        return stop(moment)

    assert not losses(*range(5))
    assert not losses(*np.linspace(2.0, 1.0, 30))
    assert losses(*np.linspace(2.0, 1.0, 10), *np.linspace(1.1, 3.0, 12))
    assert not losses(*np.linspace(2.0, 1.0, 30), *np.linspace(1.1, 3.0, 12))


def trees(n=300):
    """Two columns of words and one of numbers, which depend on each other."""
    draws = np.random.default_rng(0)
    kind = draws.choice(["oak", "ash", "elm"], n, p=[0.5, 0.3, 0.2])
    ground = np.where(draws.random(n) < np.where(kind == "oak", 0.9, 0.2), "wet", "dry")
    height = np.where(kind == "oak", 20, 8) + draws.normal(size=n)
    lines = [f"{a},{b},{c:.3f}" for a, b, c in zip(kind, ground, height, strict=True)]
    return "\n".join(["kind,ground,height", *lines]) + "\n"


def test_a_table_of_words_and_numbers_is_learned_jointly(go, tmp_path, capsys):
    table = tmp_path / "trees.csv"
    table.write_text(trees())
    fitted = go(data=str(table), steps=120, judged=True, progress=None)
    told = capsys.readouterr().err
    assert "columns of words are states" in told
    assert "numbers (height) fall into 16 ranges" in told
    assert fitted.found.kind == "states"
    # The columns' own entropies are 1.03, 0.69 and 2.77 nats; what a model of them together has is about a nat more.
    assert fitted.judgement.baselines["independent columns"] == pytest.approx(-4.49, abs=0.2)
    assert fitted.judgement.model[0] > fitted.judgement.baselines["independent columns"] + 0.2
    x = fitted.sample(200, seed=0)
    rows = [line.split(",") for line in fitted.found.data.codec.write(x)]
    tall = [float(h) > 14 for k, _, h in rows if k == "oak"]
    assert np.mean(tall) > 0.6
    assert fitted.log_prob(x[:4], samples=2, seed=0).discrete


def test_a_table_of_words_is_repeated_exactly(go, tmp_path):
    table = tmp_path / "trees.csv"
    table.write_text(trees(60))
    go(data=str(table), steps=3)
    again = go("again", str(table), steps=3, like=tmp_path / "run")
    assert weights(tmp_path / "run", 3) == weights(tmp_path / "again", again.run.step)


def test_data_frames_with_words_are_tables_of_states(go):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    rows = [line.split(",") for line in trees(40).splitlines()]
    frame = pandas.DataFrame(rows[1:], columns=rows[0]).astype({"height": float})
    assert go(data=frame, steps=2).found.data.columns == ("kind", "ground", "height")
    with pytest.raises(InputError, match=r"data holds words, which are no signals"):
        go("other", frame, steps=2, kind="signal")
    frame.loc[3, "ground"] = None
    with pytest.raises(InputError, match=r"row 4 of data has no value in column 'ground'"):
        go("missing", frame, steps=2)


def test_the_size_of_a_mixture_says_what_it_is_made_of():
    assert _mixture(96, 359) == " beside a mixture of 96 Gaussians"
    assert _mixture(455, 359) == " beside a mixture of 96 fitted Gaussians and a small one on each of the 359 rows"
    assert _mixture(359, 359) == " beside a small Gaussian on each of the 359 rows"
