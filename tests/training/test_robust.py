"""Data, networks and folders as people have them: augmentation, connections, hooks, compilers, stray files."""

import errno
import os
import random
import sqlite3
import stat

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield.cli import main
from scorefield.data import array
from scorefield.errors import CheckpointError, InputError, ScorefieldWarning
from scorefield.training import read_run
from scorefield.training.checkpoint import best_checkpoint, read_state
from scorefield.training.classes import learns_classes


def weights(folder, step):
    return {p.name: p.read_bytes() for p in (folder / f"step-{step:06d}").glob("*.safetensors")}


class Augmented(torch.utils.data.Dataset):
    """What RandomHorizontalFlip and its like do."""

    def __init__(self, items, draw):
        self.items, self.draw = items, draw

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i].flip(0) if self.draw() < 0.5 else self.items[i]


DRAWS = {"torch": lambda: float(torch.rand(())), "numpy": lambda: np.random.rand(), "python": random.random}  # noqa: NPY002


@pytest.mark.parametrize("library", DRAWS)
def test_random_augmentation_resumes_and_repeats_bitwise(run_training, tmp_path, cloud, library):
    data = Augmented(cloud, DRAWS[library])
    run_training("parts", data=data, steps=10)
    run_training("parts", data=data, steps=20)
    run_training("whole", data=data, steps=20)
    assert weights(tmp_path / "parts", 20) == weights(tmp_path / "whole", 20)
    with pytest.raises(CheckpointError, match="trained on other data"):
        run_training("parts", data=Augmented(cloud[:50], DRAWS[library]), steps=30)


def test_augmentation_is_drawn_afresh_each_time(run_training, cloud):
    seen = []

    def draw():
        seen.append(float(torch.rand(())))
        return seen[-1]

    run_training(data=Augmented(cloud, draw), steps=10, batch_size=16)
    drawn = seen[-160:]
    assert len(set(drawn)) == 160
    assert np.mean(drawn) == pytest.approx(0.5, abs=4 * (1 / 12 / 160) ** 0.5)


def test_augmentation_leaves_the_callers_random_numbers(run_training, cloud):
    states = [torch.get_rng_state(), random.getstate(), repr(np.random.get_state(legacy=True))]  # noqa: NPY002
    run_training(data=Augmented(cloud, DRAWS["python"]), steps=10)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert repr(np.random.get_state(legacy=True)) == states[2]  # noqa: NPY002


def test_a_connection_that_belongs_to_one_thread_is_read_by_it(run_training, tmp_path, cloud):
    base = sqlite3.connect(tmp_path / "items.db")
    base.execute("create table items (i integer primary key, x real, y real)")
    base.executemany("insert into items values (?, ?, ?)", [(i, *map(float, row)) for i, row in enumerate(cloud)])

    class Stored(torch.utils.data.Dataset):
        def __len__(self):
            return len(cloud)

        def __getitem__(self, i):
            return torch.tensor(base.execute("select x, y from items where i = ?", (int(i),)).fetchone())

    with pytest.warns(ScorefieldWarning, match="cannot be read by another thread .* reading it between the steps"):
        run_training("stored", data=Stored(), steps=10)
    base.close()
    run_training("plain", data=[row.float() for row in cloud], steps=10)
    assert weights(tmp_path / "stored", 10) == weights(tmp_path / "plain", 10)


def test_one_open_file_is_not_read_by_two_threads_at_a_time(run_training, tmp_path):
    (tmp_path / "x.bin").write_bytes(np.arange(400, dtype=np.float32).tobytes())
    file = open(tmp_path / "x.bin", "rb", buffering=0)  # noqa: SIM115 - the dataset of a user
    wrong = []

    class Stored(torch.utils.data.Dataset):
        def __len__(self):
            return 200

        def __getitem__(self, i):
            file.seek(8 * int(i))
            torch.randn(0)  # gives other threads a chance
            item = torch.frombuffer(bytearray(file.read(8)), dtype=torch.float32)
            if item[0] != 2 * int(i):
                wrong.append(i)
            return item

    run_training(data=Stored(), steps=30, batch_size=64)
    file.close()
    assert not wrong


def test_nan_in_a_torch_dataset_is_named(run_training, cloud):
    items = [row.clone() for row in cloud]
    items[17][1] = torch.nan
    with pytest.raises(InputError, match="item 17 of data holds a value that is not finite"):
        run_training(data=items)


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.utils.weight_norm(torch.nn.Linear(3, 2))

    def forward(self, x, t):
        return self.layer(torch.cat([x, t[:, None]], 1))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_weight_norm_trains_and_loads(run_training, tmp_path, cloud):
    run = run_training(model=sf.ScoreModel(Normed(), sf.VP(), "noise"), sample_every=10, held_out=cloud[:20])
    x = torch.ones(3, 2)
    again = sf.load(tmp_path / "run", net=Normed(), step=30)
    best = sf.load(tmp_path / "run", net=Normed())
    assert torch.equal(best.score(x, 0.5), run.model.score(x, 0.5))
    assert torch.isfinite(again.score(x, 0.5)).all()


def test_a_network_that_the_user_compiled_is_the_network_inside(run_training, make_model, tmp_path):
    model = make_model()
    model.net = torch.compile(model.net, backend="eager")
    run = run_training("compiled", model=model, steps=10)
    run_training("plain", model=make_model(), steps=10)
    assert weights(tmp_path / "compiled", 10).keys() == weights(tmp_path / "plain", 10).keys()
    loaded = sf.load(tmp_path / "compiled")
    for (name, a), b in zip(loaded.state_dict().items(), run.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b), name
    other = sf.load(tmp_path / "compiled", net=torch.compile(make_model(3).net, backend="eager"))
    x = torch.ones(3, 2)
    torch.testing.assert_close(other.score(x, 0.5), loaded.score(x, 0.5))
    sf.publish.save_pretrained(model, tmp_path / "published", levels=None)
    assert isinstance(sf.publish.from_pretrained(tmp_path / "published").net, sf.nn.MLP)
    assert run_training("compiled", model=make_model(), steps=12).finished


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", ".nfs0001", "note.txt", "model (conflicted copy).safetensors"]
)
def test_stray_files_in_a_checkpoint_do_no_harm(run_training, tmp_path, name):
    run_training(steps=10)
    (tmp_path / "run" / "step-000010" / name).write_text("?")
    (tmp_path / "run" / "step-000010" / "@eaDir").mkdir()
    assert sf.load(tmp_path / "run").shape == (2,)
    assert run_training(steps=20).finished


@pytest.mark.parametrize("state", ["{}", "[]", "1", "[" * 100_000, '{"step": 0}', '{"format": "a", "step": 1}'])
def test_a_state_that_is_none_is_damage_in_one_line(run_training, tmp_path, state):
    import hashlib

    run_training(steps=10)
    for folder in (tmp_path / "run").glob("step-*"):
        (folder / "state.json").write_text(state)
        sums = (folder / "SHA256SUMS").read_text().splitlines()
        new = hashlib.sha256(state.encode()).hexdigest()
        lines = [f"{new}  state.json" if line.endswith("state.json") else line for line in sums]
        (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match=r"is damaged \(state\.json") as caught:
        sf.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("shape", [-4]),
        ("shape", "abc"),
        ("sde", "VP"),
        ("net", 3),
        ("net", {"class": "MLP", "arguments": {"features": 2, "width": -1}}),
        ("net", {"class": "MLP", "arguments": {"features": 2, "width": 10**18}}),
        ("predict", "x"),
        ("clock", [1]),
        ("net", {"class": "MLP", "arguments": {"features": 2, "width": 8, "time_scale": None}}),
    ],
)
def test_a_description_that_is_none_is_one_line_and_status_two(run_training, tmp_path, capsys, part, value):
    import json

    run_training(steps=10)
    file = tmp_path / "run" / "run.json"
    content = json.loads(file.read_text())
    content["model"][part] = value
    if part == "shape":
        content["shape"] = value
    file.write_text(json.dumps(content))
    assert main(["sample", str(tmp_path / "run"), "-n", "1", "--out", str(tmp_path / "x.npy")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_file_systems_that_refuse_to_synchronise_folders(run_training, tmp_path, monkeypatch):
    real = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    assert run_training(steps=10).finished


def test_held_out_labels_are_checked_before_the_first_step(run_training, make_model, tmp_path, cloud):
    data = array(cloud, labels=torch.arange(100) % 4)
    held_out = array(cloud, labels=torch.arange(100) % 6, name="held out")
    with pytest.raises(InputError, match="held out has class 5 and the network knows 4 classes"):
        run_training(model=make_model(num_classes=4), data=data, held_out=held_out)
    assert not list((tmp_path / "run").glob("step-*"))


def test_held_out_folders_follow_the_classes_of_training(run_training, tmp_path):
    from scorefield.data import images

    for place, names in {"train": "abc", "val": "bc"}.items():
        for i, name in enumerate(names):
            folder = tmp_path / place / name
            folder.mkdir(parents=True)
            shade = 40 * "abc".index(name)
            Image.new("L", (8, 8), shade).save(folder / f"{i}.png")
    seen = set()

    def loss(model, x0, *, t, noise, label):
        if not model.training:
            seen.update((round(float(x + 1) * 127.5) // 40, int(n)) for x, n in zip(x0[:, 0, 0, 0], label, strict=True))
        return sf.dsm_loss(model, x0, t=t, noise=noise, label=label)

    data, held_out = (images(tmp_path / place, 8, channels=1, labels=True) for place in ("train", "val"))
    model = sf.ScoreModel(sf.nn.UNet(1, 8, (1,), 1, (), num_classes=3), sf.VP(), "noise")
    run_training(model=model, data=data, held_out=held_out, loss=loss, steps=2, batch_size=2, checkpoint_every=2)
    assert seen == {(1, 1), (2, 2)}


def test_load_takes_the_best_where_data_was_held_out_and_a_rise_is_told(run_training, tmp_path):
    def loss(model, x0, *, t, noise):
        each = sf.dsm_loss(model, x0, t=t, noise=noise)
        if model.training:
            loss.seen += 1
            return each
        return each.detach() * 0 + 1.0 + abs(loss.seen - 15)  # least at step 10 and 20, then rising

    loss.seen = 0
    with pytest.warns(ScorefieldWarning, match="least at step 10 .* has risen to .*; load.. takes step 10"):
        run = run_training(loss=loss, held_out=torch.randn(20, 2), steps=40)
    assert best_checkpoint(tmp_path / "run").name == "step-000010"
    assert read_state(tmp_path / "run" / "step-000040")["held_out_loss"] > 10
    x = torch.ones(3, 2)
    chosen = sf.load(tmp_path / "run").score(x, 0.5)
    assert torch.equal(chosen, run.model.score(x, 0.5))
    assert torch.equal(chosen, sf.load(tmp_path / "run", step=10).score(x, 0.5))
    assert not torch.equal(chosen, sf.load(tmp_path / "run", step="newest").score(x, 0.5))
    (tmp_path / "run" / "step-000010" / "ema.safetensors").write_bytes(b"")
    with pytest.warns(ScorefieldWarning, match="step-000010 is damaged .* taking the newest"):
        assert sf.load(tmp_path / "run").shape == read_run(tmp_path / "run").shape


class Labelled(torch.nn.Module):
    """A network of one's own, whose table has no row for what has no label."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(3, 2)

    def forward(self, x, t, label=None):
        return x + (self.table.weight.sum(0) if label is None else self.table(label))


def test_a_network_that_takes_labels_and_does_not_say_so_is_named(run_training, cloud, recwarn):
    data = array(cloud, labels=torch.arange(100) % 3)
    with pytest.warns(ScorefieldWarning, match=r"Labelled takes `label` but has no num_classes.*num_classes = 3"):
        run_training("silent", model=sf.ScoreModel(Labelled(), sf.VP(), "noise"), data=data, steps=1, warmup=0)
    knowing = Labelled()
    knowing.num_classes = 3
    with pytest.raises(ValueError, match=r"index out of range.* label is -1, which stands for no label"):
        run_training("knowing", model=sf.ScoreModel(knowing, sf.VP(), "noise"), data=data, label_dropout=1.0)
    recwarn.clear()
    for net in (sf.nn.MLP(2, width=4, depth=1), torch.nn.Identity()):  # says that it knows none; takes none
        assert not learns_classes(net, data, None)
    assert not recwarn.list
    wrapped = sf.ladder.DDPMScore(sf.nn.MLP(2, width=4, depth=1, num_classes=3))
    with pytest.warns(ScorefieldWarning, match="DDPMScore takes `label`"):
        learns_classes(wrapped, data, None)
