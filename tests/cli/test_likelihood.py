"""`scorefield likelihood`: a table that survives a kill and is not mixed with another."""

import numpy as np
import pytest

from cli_tools import assert_one_line
from scorefield.evaluation import bits

ITEMS = 5


@pytest.fixture
def command(trained, tmp_path):
    data = tmp_path / "x.npy"
    np.save(data, np.random.default_rng(1).integers(0, 256, (ITEMS, 8, 8), dtype=np.uint8))
    return ["likelihood", trained, "--data", data, "--tolerance", 0.1, "--batch-size", 2]


WHOLE: dict[str, bytes] = {}


@pytest.fixture
def whole(cli, command, tmp_path, request):
    """What the command writes into a file that nothing has been cut from; computed once."""
    suffix = request.getfixturevalue("suffix")
    if suffix not in WHOLE:
        assert cli(*command, "--out", tmp_path / f"whole.{suffix}")[0] == 0
        WHOLE[suffix] = (tmp_path / f"whole.{suffix}").read_bytes()
    return WHOLE[suffix]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("kept", ["", "3 rows", "in the middle of a row"])
def test_what_a_kill_left_is_completed_to_the_same_file(cli, command, tmp_path, suffix, kept, whole, monkeypatch):
    cut, content = tmp_path / f"cut.{suffix}", whole
    lines = content.splitlines(keepends=True)
    rows = lines[-ITEMS:]
    left = {
        "": b"",
        "3 rows": b"".join(lines[: len(lines) - 2]),
        "in the middle of a row": content[: len(content) - len(rows[-1]) - len(rows[-2]) - 7],
    }
    cut.write_bytes(left[kept])
    computed = []
    real = bits.log_prob
    monkeypatch.setattr(bits, "log_prob", lambda m, x, *a, **k: computed.append(len(x)) or real(m, x, *a, **k))
    status, out, _ = cli(*command, "--out", cut)
    assert status == 0
    assert f"{ITEMS} items" in out
    assert cut.read_bytes() == content
    assert (
        b"nan" not in content.lower()
    )  # one probe gives an item no standard error of its own: an empty field, or null
    # Whole batches of two are kept, so that the others have the batch-mates that they had.
    assert computed == ([2, 1] if kept else [2, 2, 1])


def test_finished_rows_are_not_computed_again_and_more_can_be_added(cli, command, tmp_path, monkeypatch):
    out = tmp_path / "rows.csv"
    cli(*command, "--out", out, "-n", 2)
    cli(*command, "--out", out)
    assert len(out.read_text().splitlines()) == 1 + ITEMS
    monkeypatch.setattr(bits, "log_prob", None)
    status, text, _ = cli(*command, "--out", out, "-n", 3)
    assert status == 0
    assert "3 items" in text
    assert len(out.read_text().splitlines()) == 1 + ITEMS


def test_a_table_of_other_settings_is_refused_and_untouched(cli, command, tmp_path):
    out = tmp_path / "rows.csv"
    cli(*command, "--out", out)
    before = out.read_bytes()
    status, _, err = cli(*command, "--out", out, "--probes", 3)
    assert status == 2
    assert_one_line(err, "rows.csv", "probes=1", "probes=3", "--overwrite")
    assert out.read_bytes() == before
    assert cli(*command, "--out", out, "--probes", 3, "--overwrite")[0] == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize("content", ["name,age\nAnn,7\n", "\x00\x01", "index,name\n"])
def test_a_file_that_is_no_such_table_is_refused(cli, command, tmp_path, content):
    out = tmp_path / "rows.csv"
    out.write_text(content)
    status, _, err = cli(*command, "--out", out)
    assert status == 2
    assert_one_line(err, "rows.csv", "not a table")
    assert out.read_text() == content
