"""Data named on a command line."""

import sys
from types import ModuleType

import pytest
import torch
from PIL import Image

from scorefield.data import open_data
from scorefield.errors import InputError


class Pictures:
    def __init__(self, root, train=True):
        if root == "nowhere":
            raise RuntimeError("Dataset not found.\nUse download=True to get it")
        self.targets, self.value = [0, 1], 10 if train else 20

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return Image.new("RGB", (9, 9), (self.value,) * 3), self.targets[i]


@pytest.fixture
def torchvision(monkeypatch):
    module = ModuleType("torchvision.datasets")
    module.Pictures, module.__all__ = Pictures, ("Pictures",)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_torchvision_with_arguments(torchvision):
    data = open_data("torchvision:Pictures?root=data&train=false", (3, 4, 4))
    assert data.read([1]).unique().tolist() == [20]
    assert data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:Picture?root=x", "no dataset 'Picture'; did you mean Pictures"),
        ("torchvision:__all__", "no dataset '__all__'"),
        ("torchvision:Pictures?root", r"write torchvision:NAME\?key=value"),
        ("torchvision:Pictures?root=nowhere", r"not found\. Use download=True"),
        ("torchvision:Pictures?colour=x", "unexpected keyword argument 'colour'"),
        ("torchvision:", "names no dataset"),
        ("hf:", "names no dataset"),
        ("hf:x?splat=train", "unknown option 'splat'; did you mean split"),
        ("https://example.org/x.png", "does not exist; give a folder"),
        ("shards/{3..1}.tar", "counts down"),
    ],
)
def test_bad_names_get_one_line(torchvision, source, message):
    with pytest.raises(InputError, match=message) as caught:
        open_data(source)
    assert "\n" not in str(caught.value)


def test_hugging_face_dataset_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict(
        {"img": [Image.new("L", (6, 6), k) for k in (1, 2)], "kind": [4, 5]},
        features=datasets.Features({"img": datasets.Image(), "kind": datasets.Value("int64")}),
    )
    datasets.DatasetDict(test=table).save_to_disk(str(tmp_path / "d"))
    data = open_data(f"hf:{tmp_path}/d?split=test&label=kind", (1, 3, 3))
    assert data.read([1]).unique().tolist() == [2]
    assert data.labels.tolist() == [4, 5]
    with pytest.raises(InputError, match="splits test; choose one"):
        open_data(f"hf:{tmp_path}/d?split=dev")
    with pytest.raises(InputError, match="no column 'image'; did you mean img"):
        open_data(f"hf:{tmp_path}/d?split=test&image=image")


def test_shape_is_checked_for_every_kind(torchvision):
    with pytest.raises(InputError, match="reshape or resize"):
        open_data("torchvision:Pictures?root=x", (5,))
    assert torch.equal(open_data("torchvision:Pictures?root=x").labels, torch.tensor([0, 1]))
