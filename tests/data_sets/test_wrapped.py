"""Datasets of torch, torchvision and Hugging Face."""

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import as_dataset, huggingface, sequence
from scorefield.errors import InputError


class Pictures:
    """What torchvision's CIFAR10 looks like from outside."""

    classes = ("even", "odd")

    def __init__(self, n=6, sizes=(8,)):
        self.targets = [i % 2 for i in range(n)]
        self.sizes, self.decoded = sizes, []

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        self.decoded.append(i)
        side = self.sizes[i % len(self.sizes)]
        return Image.new("RGB", (side, side), (i, 2 * i, 3 * i)), self.targets[i]


def test_pictures_with_labels_become_bytes_and_classes():
    data = as_dataset(Pictures())
    assert (data.shape, data.levels, len(data), data.classes) == ((3, 8, 8), 256, 6, ("even", "odd"))
    assert data[2][:, 0, 0].tolist() == [2, 4, 6]
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_known_targets_spare_the_decoding_of_every_picture():
    source = Pictures()
    as_dataset(source)
    assert set(source.decoded) == {0}


def test_pictures_of_mixed_sizes_need_a_size():
    source = Pictures(sizes=(8, 10))
    with pytest.raises(InputError, match=r"item 1 of data has shape \(3, 10, 10\), the first \(3, 8, 8\); give a size"):
        sequence(source).tensor()
    assert sequence(source, size=(4, 6), channels=1).tensor().shape == (6, 1, 4, 6)


def test_torch_dataset_of_tensors_and_labels():
    values = torch.arange(12.0).reshape(4, 3)
    data = as_dataset(torch.utils.data.TensorDataset(values, torch.tensor([3, 1, 2, 0])))
    torch.testing.assert_close(data.tensor(), values)
    assert data.labels.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "empty"),
        (["a"], "type str"),
        ([torch.zeros(2), torch.zeros(3)], "item 1"),
        ([torch.zeros(2).long()], "dtype"),
    ],
)
def test_what_is_no_dataset_is_named(source, message):
    with pytest.raises(InputError, match=message):
        as_dataset(source).tensor()


def table(n=5, **more):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((7, 9), 10 * i, np.uint8)) for i in range(n)]
    columns = {"caption": [str(i) for i in range(n)], "picture": pictures, "label": [i % 2 for i in range(n)], **more}
    kinds = {"caption": datasets.Value("string"), "picture": datasets.Image()}
    kinds["label"] = datasets.ClassLabel(names=["even", "odd"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def test_hugging_face_images_and_class_names():
    data = as_dataset(table())
    assert (data.shape, data.levels, data.classes) == ((1, 7, 9), 256, ("even", "odd"))
    assert data.read([3, 1])[:, 0, 0, 0].tolist() == [30, 10]
    assert data.labels.tolist() == [0, 1, 0, 1, 0]


def test_hugging_face_columns_of_numbers():
    datasets = pytest.importorskip("datasets")
    data = huggingface(
        datasets.Dataset.from_dict({"v": [[1.0, 2.0], [3.0, 4.0]], "kind": [5, 6]}), image="v", label="kind"
    )
    assert data.tensor().tolist() == [[1, 2], [3, 4]]
    assert data.labels.tolist() == [5, 6]


def test_unknown_columns_splits_and_streams_are_named():
    datasets = pytest.importorskip("datasets")
    with pytest.raises(InputError, match="no column 'pictures'; did you mean picture"):
        huggingface(table(), image="pictures")
    with pytest.raises(InputError, match="no column of images; name one of v"):
        huggingface(datasets.Dataset.from_dict({"v": [1.0]}))
    with pytest.raises(InputError, match="has the splits train"):
        huggingface(datasets.DatasetDict(train=table()))
    with pytest.raises(InputError, match="streamed"):
        huggingface(table().to_iterable_dataset())
