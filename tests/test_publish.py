"""Folders and the hub."""

import hashlib
import json
import sys
from types import ModuleType

import pytest
import torch

import scorefield as sf
from scorefield.cli import main
from scorefield.errors import CheckpointError, InputError


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sf.ScoreModel(sf.nn.MLP(2, width=8, depth=1), sf.VE(sigma_max=7.0), "noise", shape=(2,)).eval()


@pytest.fixture
def run(model, tmp_path):
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    sf.train(model, data, steps=3, batch_size=8, out=tmp_path / "run", device="cpu", progress=False)
    figures = {"frechet": {"value": 1.25, "stderr": 0.1, "interval": [1.05, 1.45], "n": 50, "error": "delta method"}}
    about = {"figures": figures, "samples": 50, "reference": 40, "features": "raw", "sampler": "Heun()"}
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(about))
    return tmp_path / "run"


def same(a, b):
    x, t = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.linspace(0.1, 0.9, 5)
    return torch.equal(a.score(x, t), b.score(x, t)) and a.sde == b.sde and a.shape == b.shape


def test_model_comes_back_as_it_was(model, tmp_path):
    sf.publish.save_pretrained(model, tmp_path / "m")
    assert same(sf.from_pretrained(tmp_path / "m"), model)


def test_run_comes_back_with_averaged_weights_and_without_the_rest(run, tmp_path):
    sf.publish.save_pretrained(run, tmp_path / "m")
    assert same(sf.from_pretrained(tmp_path / "m"), sf.load(run))
    names = {p.relative_to(tmp_path / "m").as_posix() for p in (tmp_path / "m").rglob("*") if p.is_file()}
    parts = {f"step-000003/{name}" for name in ("ema.safetensors", "state.json", "SHA256SUMS")}
    assert names == {"README.md", "evaluation.json", "run.json"} | parts


def test_commands_take_the_folder_for_a_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sf.publish.save_pretrained(run, tmp_path / "m")
    assert main(["sample", str(tmp_path / "m"), "-n", "3", "--steps", "2", "--device", "cpu"]) == 0
    assert (tmp_path / "samples.npy").exists()  # not in the folder that is published


def test_card_states_sde_network_preset_licence_and_figures(run, tmp_path):
    sf.publish.save_pretrained(run, tmp_path / "m", licence="cc-by-4.0", preset="vectors", title="Points | of a plane")
    card = (tmp_path / "m" / "README.md").read_text()
    for part in ("license: cc-by-4.0", "sigma_max=7.0", "MLP", "vectors", "| frechet | 1.25 | 0.2 | 50 |", "Heun()"):
        assert part in card
    assert card.startswith("---\nlibrary_name: scorefield\n")


def test_path_of_the_data_stays_private(run, tmp_path):
    about = json.loads((run / "run.json").read_text())
    about["data"]["name"] = "/home/somebody/secret/photos/"
    (run / "run.json").write_text(json.dumps(about))
    sf.publish.save_pretrained(run, tmp_path / "m")
    everything = "".join(p.read_text() for p in (tmp_path / "m").rglob("*") if p.suffix in (".json", ".md"))
    assert "photos" in everything
    assert "somebody" not in everything


def test_what_is_there_is_replaced_only_if_it_is_a_published_folder(run, model, tmp_path):
    sf.publish.save_pretrained(model, tmp_path / "m")
    sf.publish.save_pretrained(run, tmp_path / "m")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    for folder in (tmp_path / "other", run):
        with pytest.raises(InputError, match="holds something else"):
            sf.publish.save_pretrained(model, folder)


def test_parts_of_ones_own_are_refused_before_anything_is_written(tmp_path):
    own = sf.ScoreModel(torch.nn.Linear(2, 2), sf.VP(), "noise", shape=(2,))
    with pytest.raises(InputError, match="class of your own"):
        sf.publish.save_pretrained(own, tmp_path / "m")
    assert not (tmp_path / "m").exists()


class FakeHub:
    """What HfApi and snapshot_download do, on a folder."""

    def __init__(self):
        self.files, self.created = {}, None

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.created = (repo_id, private, exist_ok)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files = {
            p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()
        }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake, module = FakeHub(), ModuleType("huggingface_hub")

    def snapshot_download(name, *, revision=None, allow_patterns):
        if name != "somebody/points":
            raise OSError("404 Client Error.\nRepository Not Found")
        from fnmatch import fnmatch

        for path, content in fake.files.items():
            if any(fnmatch(path, pattern) for pattern in allow_patterns):
                target = tmp_path / "snapshot" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        return str(tmp_path / "snapshot")

    module.HfApi, module.snapshot_download = lambda: fake, snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return fake


def test_to_the_hub_and_back(run, hub, capsys, tmp_path):
    assert main(["push", str(run), "somebody/points", "--licence", "mit", "--private"]) == 0
    assert capsys.readouterr().out.strip() == "https://hub.example/somebody/points"
    assert hub.created == ("somebody/points", True, True)
    assert b"license: mit" in hub.files["README.md"]
    hub.files["evil.py"] = hub.files["pytorch_model.bin"] = b"boom"
    assert same(sf.from_pretrained("somebody/points"), sf.load(run))
    assert not {"evil.py", "pytorch_model.bin"} & {p.name for p in (tmp_path / "snapshot").iterdir()}


def test_bad_names_and_refusals_get_one_line(run, hub, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"cannot fetch somebody/else: 404 Client Error\. Repository Not Found"):
        sf.from_pretrained("somebody/else")
    with pytest.raises(CheckpointError, match="neither a folder nor a name"):
        sf.from_pretrained("no/such/folder")
    with pytest.raises(InputError, match="give OWNER/NAME"):
        sf.publish.push_to_hub(run, "points")
    with pytest.raises(InputError, match="is not a name of the hub"):
        sf.publish.save_pretrained(run, tmp_path / "m", licence="mit\ntags: [x]")
    hub.create_repo = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("401 Unauthorized"))
    with pytest.raises(InputError, match="cannot push to a/b: 401 Unauthorized"):
        sf.publish.push_to_hub(run, "a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"install scorefield\[hub\]"):
        sf.from_pretrained("somebody/points")


def reseal(step):
    """Checksums that fit, as a stranger would write them."""
    names = sorted(p.name for p in step.iterdir() if p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((step / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (step / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m, s: m["model"]["net"].update({"class": "system", "arguments": {"command": "touch x"}}),
        lambda m, s: m["model"]["sde"].update({"class": "MLP"}),
        lambda m, s: m["model"]["net"].update({"arguments": {"size": "x"}}),
        lambda m, s: m["model"].update({"net": {"custom": "os.system"}}),
        lambda m, s: m["model"].update({"predict": ["noise"]}),
        lambda m, s: m.update({"shape": 7}),
        lambda m, s: (s / "ema.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch x'\ntR."),
        lambda m, s: (s / "state.json").write_text("[]"),
        lambda m, s: (s / "state.json").write_text("{}"),
    ],
)
def test_files_of_a_stranger_are_refused_in_one_line(model, tmp_path, spoil):
    folder = sf.publish.save_pretrained(model, tmp_path / "m")
    about = json.loads((folder / "run.json").read_text())
    step = folder / "step-000000"
    spoil(about, step)
    (folder / "run.json").write_text(json.dumps(about))
    reseal(step)
    with pytest.raises((CheckpointError, InputError)) as caught:
        sf.from_pretrained(folder)
    assert "\n" not in str(caught.value)
