"""Tables, and other forms in which numbers are held."""

import warnings

import numpy as np
import pytest
import torch

from scorefield.automatic.findings import find
from scorefield.data import open_data, statistics, table
from scorefield.data.open import as_dataset
from scorefield.data.tables import few_values
from scorefield.errors import InputError, ScorefieldWarning

ROWS = "height,weight,species\n1.0,10,ant\n2.0,30,bee\n3.0,20,ant\n"


def written(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_columns_are_standardised_and_the_classes_apart(tmp_path):
    data = open_data(written(tmp_path, ROWS), labels=True)
    assert (data.columns, data.classes, data.labels.tolist()) == (("height", "weight"), ("ant", "bee"), [0, 1, 0])
    x = data.tensor().double()
    torch.testing.assert_close(x.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(data.scale.to_units(x), torch.tensor([[1.0, 10], [2, 30], [3, 20]]).double())


@pytest.mark.parametrize("apart", [",", ";", "\t"])
def test_separators_and_missing_names(tmp_path, apart):
    data = open_data(written(tmp_path, f"1{apart}2\n3{apart}5\n\n"))
    assert (len(data), data.columns) == (2, ("column 1", "column 2"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ROWS, "column 'species' of .* holds words .'ant' in row 1."),
        ("a,b\n1,2\n3,\n", "row 2 of .* has no value in column 'b'"),
        ("a,b\n1,2\n3,nan\n", "row 2 of .* holds nan in column 'b'"),
        ("a,b\n1,2\n3,nan\n,4\n1,1\n", r"2 of 4 rows of .* lack a finite number \(2, 3\)"),
        ("a,b\n1,2\n1,3\n", "column 'a' of .* never changes"),
        ("a,b\n1,2\n3\n", "has 1 entries in line 3 and 2 columns"),
        ("a,b\n1,2\n", "has 1 rows; give at least two"),
        ("", "is empty"),
    ],
)
def test_what_is_no_table_of_numbers_is_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as caught:
        open_data(written(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_data_frames_and_series():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 4.0], "b": [3, 5, 4]})
    assert as_dataset(frame).columns == ("a", "b")
    assert as_dataset(frame["a"]).shape == (1,)
    with pytest.raises(InputError, match="row 2 of data has no value in column 'a'"):
        as_dataset(pandas.DataFrame({"a": [1.0, np.nan, 2.0]}))
    labelled = frame.assign(label=["x", "y", "x"])
    assert table(labelled, labels="label").classes == ("x", "y")


def test_lists_and_paths(tmp_path):
    assert as_dataset([[1.0, 2.0], [3.0, 4.0]]).shape == (2,)
    assert as_dataset(written(tmp_path, "1,2\n3,5\n")).size == 2
    with pytest.raises(InputError, match="not numbers of one shape"):
        as_dataset([[1.0, 2.0], [3.0]])


def test_columns_that_repeat_few_values_are_named_with_what_is_right(tmp_path):
    """Integers, categories and many zeros have no density; rounded measurements and what repeats by chance are left alone."""
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rain = torch.where(z[:, 2] < 0, 0.0, z[:, 2])
    rows = torch.stack([z[:, 0], (2 + z[:, 1]).round(), rain, (z[:, 3] * 20).round(), z[:, 4]], 1)
    names = ("income", "kids", "rain", "rounded", "height")
    told = few_values(rows, "people", names)
    count = len(rows[:, 1].unique())
    assert told.startswith(
        f"people: kids ({count} different values), rain (one value again and again) of 200 rows: a density"
    )
    assert "noise of one unit" in told
    assert "kind='states'" in told
    assert few_values(rows[:, [0, 3, 4]], "people") is None
    table = tmp_path / "people.csv"
    np.savetxt(table, rows[:, :2].numpy(), delimiter=",", header="income,kids", comments="")
    with pytest.warns(ScorefieldWarning, match=r"people\.csv: kids \("):
        find(str(table))
    assert statistics(str(table), progress=False).repeats.startswith(f"{table}: kids (")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find(rows[:, [0, 4]])
    assert statistics(rows[:, [0, 4]], progress=False).repeats == ""
