"""scorefield dynamics: a CSV file, a table, and a page."""

import json
import math

import pytest
import torch

from cli_tools import assert_one_line

F64 = torch.float64
QUICK = ("--labels", 800, "--steps", 200, "--neighbours", 300)


def relaxing(n, dt, seed=0):
    """A path of dX = (1.2 - X) dt + 0.3 dW, exactly."""
    z = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64).tolist()
    decay, x = math.exp(-dt), [1.2]
    for v in z:
        x.append(1.2 + decay * (x[-1] - 1.2) + 0.3 * math.sqrt((1 - decay**2) / 2) * v)
    return x


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("series") / "s.csv"
    rows = [f"{0.1 * k:.1f},{v:.8f}" for k, v in enumerate(relaxing(6000, 0.1)) if not 100 < k < 150]
    file.write_text("time,level\n" + "\n".join(rows) + "\n")
    return file


def test_a_relaxing_process_is_found(cli, path, tmp_path):
    """Drift within 4 of its errors, so the diffusion, and the stationary law N(1.2, 0.2121^2), as JSON."""
    status, out, err = cli("dynamics", path, "--dt", 0.1, "--json", *QUICK, "--out", tmp_path / "d.html")
    assert status == 0, err
    assert_one_line(err, "1 of 5951 steps do not take dt=0.1: these gaps are left out")
    told = json.loads(out)
    assert told["pairs"] == 5950
    assert told["columns"] == ["level"]
    (entry,) = told["entries"]
    rate = -math.expm1(-0.1) / 0.1
    for x, b, error in zip(entry["x"], entry["drift"], entry["drift_stderr"], strict=True):
        assert abs(b - rate * (1.2 - x)) < 4 * error
    exact = 0.3 * math.sqrt(-math.expm1(-0.2) / 0.2)
    for s, error in zip(entry["diffusion"], entry["diffusion_stderr"], strict=True):
        assert abs(s - exact) < 4 * error < 0.4 * exact
    assert told["stationary"]["settled"]
    assert told["stationary"]["mean"][0] == pytest.approx(1.2, abs=0.05)
    assert told["stationary"]["std"][0] == pytest.approx(0.2121, rel=0.15)
    density = told["stationary"]["density"][0]
    width = density["x"][1] - density["x"][0]
    assert sum(density["density"]) * width == pytest.approx(1.0)
    assert (tmp_path / "d.html").read_text().count("<svg") == 3


def test_text_has_a_table_and_the_step_comes_from_the_times(cli, path, tmp_path):
    status, out, err = cli("dynamics", path, "--labels", 50, "--steps", 3, "--out", tmp_path / "d.html")
    assert status == 0, err
    assert "5950 pairs of states, dt=0.1" in out
    assert out.count("+-") == 14


def test_paths_that_never_settle_are_said_so(cli, tmp_path):
    """Growth leaves the range of the data: no density is made up."""
    x = 1 + 4 * torch.rand(400, dtype=F64, generator=torch.Generator().manual_seed(0))
    z = torch.randn(400, dtype=F64, generator=torch.Generator().manual_seed(1))
    rows = [f"{i},{v:.6f}" for i in range(400) for v in (x[i], x[i] * 1.2 + 0.05 * z[i])]
    (tmp_path / "g.csv").write_text("id,x\n" + "\n".join(rows) + "\n")
    quick = ("--labels", 100, "--steps", 50, "--json")
    out_file = ("--out", tmp_path / "g.html")
    status, out, err = cli("dynamics", tmp_path / "g.csv", "--dt", 0.1, "--path", "id", *quick, *out_file)
    assert status == 0, err
    told = json.loads(out)
    assert told["pairs"] == 400
    assert not told["stationary"]["settled"]
    assert told["stationary"]["density"] is None
    assert "% of the paths leave the range of the data" in (tmp_path / "g.html").read_text()


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("x\n1\n2\n3\n", ("--dt", "0"), "--dt=0 is impossible"),
        ("x\n1\n2\n3\n", ("--dt", "-1"), "--dt=-1 is impossible"),
        ("x\n1\n2\n3\n", ("--dt", "nan"), "--dt=nan is impossible"),
        ("x\n1\n2\n3\n", (), "has no column of times; give --dt"),
        ("x\n1\n2\n3\n", ("--dt", "1"), "2 pairs for neighbours=16"),
        ("x\n" + "1\n2\n" * 20, ("--dt", "1", "--neighbours", "40"), "39 pairs for neighbours=40"),
        ("x\n1\nnan\n3\n", ("--dt", "1"), "row 2 of"),
        ("t,x\n0,1\n1,2\n1,3\n", ("--dt", "1"), "the same time as the row before"),
        ("t,x\n0,1\n1,2\n2,3\n", ("--dt", "0.5"), "dt=0.5 is not the time between the states, which is 1"),
        ("x\n1\n2\n3\n", ("--dt", "1", "--out", "d.png"), "must end"),
        (None, ("--dt", "1"), "it does not exist"),
    ],
)
def test_bad_input_is_one_line(cli, tmp_path, text, words, told, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    status, _, err = cli("dynamics", "s.csv", *words)
    assert status == 2
    assert_one_line(err, told)
    assert [f.name for f in tmp_path.iterdir()] in (["s.csv"], [])
