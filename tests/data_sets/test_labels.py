"""Labels in every form in which people keep them."""

import numpy as np
import pytest
import torch

from scorefield.data import array, sequence
from scorefield.data.labels import class_labels, with_classes_of
from scorefield.errors import InputError, ScorefieldWarning


@pytest.mark.parametrize(
    ("values", "expected", "classes"),
    [
        ([0, 2, 1], [0, 2, 1], ()),
        (torch.tensor([0, 2, 1]), [0, 2, 1], ()),
        ([torch.tensor(0), np.int64(2), 1], [0, 2, 1], ()),
        (np.array([0.0, 2.0, 1.0]), [0, 2, 1], ()),
        (np.array([[0], [2], [1]]), [0, 2, 1], ()),
        ([False, True, True], [0, 1, 1], ()),
        (["cat", "ant", "cat"], [1, 0, 1], ("ant", "cat")),
        (np.array(["cat", "ant", "cat"], dtype=object), [1, 0, 1], ("ant", "cat")),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [2, 0, 1], ()),
        (torch.eye(3), [0, 1, 2], ()),
    ],
)
def test_every_usual_form_is_understood(values, expected, classes):
    labels, names = class_labels(values, 3, "data")
    assert labels.dtype == torch.int64
    assert labels.tolist() == expected
    assert names == classes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1], "expected 3 integers or words"),
        ([0, None, 1], "item 1 of data has no label"),
        ([0, 1, float("nan")], "item 2 of data has no label"),
        ([0, 0.5, 1], "item 1 of data has a fractional label"),
        ([0, 1, -1], "item 2 of data has the label -1"),
        ([[0, 1], [1, 1], [1, 0]], "item 1 of data is not one-hot"),
        ([[0, 1], [1], [1, 0]], "expected"),
        (np.zeros(3, complex), "complex128"),
    ],
)
def test_what_is_no_class_is_named_with_its_item(values, words):
    with pytest.raises(InputError, match=words) as caught:
        class_labels(values, 3, "data")
    assert "\n" not in str(caught.value)


def test_labels_that_cannot_be_understood_are_told_and_left_out_where_nobody_asked():
    items = [(torch.zeros(2), 0.5), (torch.ones(2), 1.0)]
    with pytest.warns(ScorefieldWarning, match="fractional label .*going on without labels"):
        assert sequence(items).labels is None


def test_held_out_classes_have_the_numbers_of_training():
    data = array(torch.zeros(3, 2), labels=["a", "b", "c"])
    held_out = with_classes_of(array(torch.zeros(3, 2), labels=["c", "b", "c"], name="val"), data)
    assert held_out.labels.tolist() == [2, 1, 2]
    assert held_out.classes == ("a", "b", "c")
    with pytest.raises(InputError, match="val has the class 'zebra', which data lacks"):
        with_classes_of(array(torch.zeros(2, 2), labels=["a", "zebra"], name="val"), data)
    with pytest.raises(InputError, match="val has no labels and data has"):
        with_classes_of(array(torch.zeros(2, 2), name="val"), data)


def test_fingerprint_sees_labels_and_names_of_classes():
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 2])
    prints = {array(x, labels=v).fingerprint() for v in (None, y, 2 - y, ["a", "b", "c"], ["a", "b", "d"])}
    assert len(prints) == 5
