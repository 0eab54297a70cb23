"""Tar shards."""

import functools
import io
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield.data import open_data, shards
from scorefield.data.shards import expand
from scorefield.errors import InputError
from scorefield.training import OptimConfig
from scorefield.training.batches import batch_indices


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def picture(value, side=6):
    buffer = io.BytesIO()
    Image.new("L", (side, side), value).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two shards of three pictures, 0 to 5, each with its class."""
    monkeypatch.setenv("SCOREFIELD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    for s in range(2):
        with tarfile.open(tmp_path / "web" / f"{s:03d}.tar", "w") as archive:
            for k in range(3 * s, 3 * s + 3):
                add(archive, f"a/{k}.png", picture(k, 6 + k))
                add(archive, f"a/{k}.cls", str(k % 2).encode())
                add(archive, f"a/{k}.json", b"{}")
    return tmp_path / "web"


def test_items_of_all_shards_by_index(folder):
    data = shards(f"{folder}/{{000..001}}.tar", 4, channels=1, labels=True)
    assert (data.shape, len(data), data.groups, data.levels) == ((1, 4, 4), 6, (3, 3), 256)
    assert data.read([5, 0, 3])[:, 0, 0, 0].tolist() == [5, 0, 3]
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.item_name(4).endswith("001.tar/a/4")


def test_kept_index_notices_a_changed_shard(folder):
    assert len(shards(f"{folder}/000.tar", 4)) == 3
    assert len(shards(f"{folder}/000.tar", 4)) == 3
    with tarfile.open(folder / "000.tar", "a") as archive:
        add(archive, "a/9.png", picture(9))
    assert shards(f"{folder}/000.tar", 4)[3].unique().tolist() == [9]


def test_arrays_keep_their_shape_and_dtype(folder):
    with tarfile.open(folder / "v.tar", "w") as archive:
        for k in range(3):
            buffer = io.BytesIO()
            np.save(buffer, np.full((2, 5), k, np.float32))
            add(archive, f"{k}.npy", buffer.getvalue())
    data = shards(f"{folder}/v.tar")
    assert (data.shape, data.levels, float(data[2].mean())) == ((2, 5), None, 2.0)


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
    ],
)
def test_braces(pattern, places):
    assert sorted(expand(pattern)) == places


def test_bad_shards_are_named_in_one_line(folder):
    with pytest.raises(InputError, match="counts down"):
        shards("{5..2}.tar")
    with pytest.raises(InputError, match="does not exist"):
        shards(f"{folder}/7.tar")
    (folder / "text.tar").write_text("From: somebody" * 100)
    with pytest.raises(InputError, match="not an uncompressed tar file"):
        shards(f"{folder}/text.tar")
    with tarfile.open(folder / "mixed.tar", "w") as archive:
        add(archive, "0.png", picture(0))
        add(archive, "1.png", b"no picture")
    with pytest.raises(InputError, match="0 has no class"):
        shards(f"{folder}/mixed.tar", labels=True)
    with pytest.raises(InputError, match="1 is damaged"):
        shards(f"{folder}/mixed.tar", 4).tensor()
    assert len(shards(f"{folder}/mixed.tar", 4, skip_broken=True).tensor()) == 2


@pytest.fixture
def web(folder):
    """The address of the folder, and the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_remote_shards_are_fetched_when_needed_and_removed_beyond_the_limit(web, tmp_path):
    address, asked = web
    data = shards(f"{address}/{{000..001}}.tar", 4, channels=1, cache=tmp_path / "kept", cache_bytes=1)
    assert len(list((tmp_path / "kept").glob("*.tar"))) == 1
    assert data.read([0, 1, 2])[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.read([3, 4])[:, 0, 0, 0].tolist() == [3, 4]
    again = len(asked)
    assert shards(f"{address}/{{000..001}}.tar", 4, cache=tmp_path / "kept", cache_bytes=2**20).size == 6
    assert len(asked) <= again + 1  # the kept index spares the second pass; only the first picture is decoded
    with pytest.raises(InputError, match=r"002\.tar.*File not found"):
        shards(f"{address}/002.tar", cache=tmp_path / "kept")


def test_a_shard_replaced_behind_its_address_is_fetched_again(web, folder, tmp_path):
    address, _ = web
    options = {"channels": 1, "cache": tmp_path / "kept"}
    assert shards(f"{address}/000.tar", 4, **options)[0].unique().tolist() == [0]
    with tarfile.open(folder / "000.tar", "w") as archive:
        add(archive, "new.png", picture(77, 30))
        add(archive, "more.png", bytes(50_000))
    data = shards(f"{address}/000.tar", 4, **options)
    assert len(data) == 2
    assert data[0].unique().tolist() == [77]
    assert open_data(f"{address}/000.tar?sig=1", (1, 4, 4)).size == 2


def test_a_shard_that_is_cut_off_is_an_error_wherever_the_cut_is(folder):
    with tarfile.open(folder / "whole.tar", "w") as archive:
        for k in range(8):
            add(archive, f"{k}.png", picture(k) + bytes(3000))
    content = (folder / "whole.tar").read_bytes()
    member = 512 + 512 * -(-(len(picture(0)) + 3000) // 512)
    for place, samples in ((4 * member + 700, 4), (4 * member, 4), (8 * member, 8)):
        (folder / "cut.tar").write_bytes(content[:place])
        with pytest.raises(InputError, match=f"is cut off or damaged after [{samples}{samples + 1}] samples"):
            shards(f"{folder}/cut.tar", 4)


def test_names_with_brackets(folder):
    (folder / "b[0]").mkdir()
    (folder / "000.tar").rename(folder / "b[0]" / "s{1,2}.tar")
    assert open_data(f"{folder}/b[0]/s{{1,2}}.tar", (1, 4, 4)).size == 3


def test_order_visits_every_item_once_and_few_shards_at_a_time():
    groups = tuple(range(1, 41))
    owner = [g for g, size in enumerate(groups) for _ in range(size)]
    order = batch_indices(0, 0, sum(groups), sum(groups), groups)
    assert sorted(order) == list(range(sum(groups)))
    last = {owner[i]: k for k, i in enumerate(order)}
    first = {owner[i]: k for k, i in reversed(list(enumerate(order)))}
    assert max(sum(first[g] <= k <= last[g] for g in first) for k in range(len(order))) <= 8
    assert order != batch_indices(1, 0, sum(groups), sum(groups), groups)


def test_training_on_shards_resumes_bit_for_bit(folder, tmp_path):
    for s in range(10):
        with tarfile.open(folder / f"v{s}.tar", "w") as archive:
            for k in range(5):
                buffer = io.BytesIO()
                np.save(buffer, np.array([s, k], np.float32) / 10)
                add(archive, f"{k}.npy", buffer.getvalue())
    data = shards(f"{folder}/v{{0..9}}.tar")

    def trained(name, *steps):
        for count in steps:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = sf.ScoreModel(sf.nn.MLP(2, width=8, depth=1), sf.VP(), "noise", shape=(2,))
            options = {"batch_size": 7, "optim": OptimConfig(warmup=2), "report": False, "trackers": ()}
            sf.train(model, data, steps=count, out=tmp_path / name, device="cpu", progress=False, **options)
        return sf.load(tmp_path / name).state_dict()

    whole, parts = trained("whole", 12), trained("parts", 5, 12)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
