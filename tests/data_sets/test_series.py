"""Time series from CSV files: states, times, paths, and what is refused."""

import pytest
import torch

from scorefield.data import series
from scorefield.errors import InputError


def written(tmp_path, text):
    file = tmp_path / "s.csv"
    file.write_text(text)
    return file


def test_states_times_and_paths_are_told_apart(tmp_path):
    file = written(tmp_path, "T;who;x;y\n0;a;1;5\n0,5;a;2;4\n".replace("0,5", "0.5") + "0;b;3;3\n1;b;4;1\n")
    found = series(file, path="who")
    assert found.columns == ("x", "y")
    assert torch.equal(found.values, torch.tensor([[1, 5], [2, 4], [3, 3], [4, 1]], dtype=torch.float64))
    assert found.time.tolist() == [0, 0.5, 0, 1]
    assert found.path.tolist() == [0, 0, 1, 1]
    bare = series(written(tmp_path, "1\n2.5\n0.1\n"))
    assert bare.columns == ("column 1",)
    assert bare.time is None is bare.path
    assert bare.values.dtype == torch.float64
    assert bare.values[2, 0] == 0.1  # not by way of 32 bits


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("x\n1\n\n", {}, "at least two"),
        (
            "t,x\n0,1\n1,\n2,3\n",
            {},
            "row 2 of .* has no value in column 'x'; fill it in, or leave the row out: steps across",
        ),
        ("x,y\n1,1\n,2\n3,0\n", {}, "row 2 of .* has no value .* would be an unseen gap"),
        ("x\n1\nnan\n3\n", {}, "row 2 of .* holds nan"),
        ("x\n1\ninf\n3\n", {}, "row 2 of .* holds inf"),
        ("t,x\n0,1\n1,2\n1,3\n", {}, "row 3 of .* has the same time as the row before; sort the rows and remove dup"),
        ("t,x\n0,1\n2,2\n1,3\n", {}, "row 3 of .* has an earlier time"),
        ("t,x\n0,1\n1,1\n2,1\n", {}, "column 'x' of .* never changes"),
        ("t,x\n0,1\n1,one\n2,1\n", {}, "holds words"),
        ("x,y\n1,2\n3,4\n", {"time": "yy"}, "has no column 'yy' for time; .*it has x, y"),
        ("t\n1\n2\n", {}, "0 columns of states"),
        ("x,y\n1,2\n3\n", {}, "has 1 entries in line 3 and 2 columns"),
    ],
)
def test_bad_input_is_one_line(tmp_path, text, options, told):
    with pytest.raises(InputError, match=told) as caught:
        series(written(tmp_path, text), **options)
    assert "\n" not in str(caught.value)
