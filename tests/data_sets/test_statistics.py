"""One pass over data."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from scorefield.cli import main
from scorefield.data import array, digits, statistics


def test_figures_are_those_of_numpy_on_all_the_data():
    values = np.random.default_rng(0).integers(0, 256, (300, 2, 5), dtype=np.uint8)
    values[:, 1, 3] = 7
    found, x = statistics(array(values)), values / 127.5 - 1
    assert (found.count, found.shape, found.constant, found.compared) == (300, (2, 5), 1, 300)
    assert [found.low, found.high] == pytest.approx([x.min(), x.max()])
    assert [found.mean, found.std] == pytest.approx([x.mean(), x.std()], rel=1e-6)
    assert found.distance == pytest.approx(pdist(x.reshape(300, -1)).max(), rel=1e-6)


def test_greatest_distance_is_that_of_all_pairs():
    for seed in range(20):
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed)).square()
        assert statistics(x).distance == pytest.approx(pdist(x.double().numpy()).max(), rel=1e-6)


def test_a_small_spread_about_a_large_mean_is_not_lost():
    x = 1e4 + 1e-1 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    assert statistics(x).std == pytest.approx(float(x.double().std(correction=0)), rel=1e-6)


def test_passing_in_chunks_changes_nothing(monkeypatch):
    data = digits(train=False)[:100]
    whole = statistics(data)
    monkeypatch.setattr(sys.modules["scorefield.data.statistics"], "CHUNK_NUMBERS", 7 * 784)
    parts = statistics(data)
    assert parts.distance == pytest.approx(whole.distance, rel=1e-6)
    assert [parts.mean, parts.std] == pytest.approx([whole.mean, whole.std])
    assert parts.labels == whole.labels


def test_figures_move_with_the_range():
    values = np.random.default_rng(1).integers(0, 9, (50, 6))
    moved, direct = (
        statistics(array(values, levels=9)).to((0.0, 1.0)),
        statistics(array(values, levels=9), to=(0.0, 1.0)),
    )
    for name in ("low", "high", "mean", "std", "distance"):
        assert getattr(moved, name) == pytest.approx(getattr(direct, name), abs=1e-6)


def test_distance_within_a_subset_is_a_lower_bound_that_the_seed_decides():
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    whole, some = statistics(x), statistics(x, compare=50, seed=3)
    assert some.distance < whole.distance
    assert (some.compared, some) == (50, statistics(x, compare=50, seed=3))


def test_command_line_prints_what_to_set(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.uint8))
    assert main(["statistics", str(tmp_path / "x.npy")]) == 0
    assert "4 entries never change" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("a,b,c\n1,7,2\n2,7,5\n")
    assert main(["statistics", str(tmp_path / "t.csv")]) == 0
    assert "1 column (b) never change" in capsys.readouterr().out
    assert main(["statistics", "digits", "--compare", "200", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["count"] == 9000
    assert not found["exact"]
    assert found["sigma_max"] == pytest.approx(found["distance"] / 2)
