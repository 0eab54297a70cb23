"""Scores at each noise level, memory, curl and samplers: closed forms, and nothing where a model is exact."""

from __future__ import annotations

import math

import pytest
import torch

import scorefield as sf
from oracles import gaussian, mixture
from scorefield.diagnose import calibration, compare_samplers, curl, memory

SDE = sf.VP()
GM = mixture(SDE, 3)


def wrong(size):
    return sf.ScoreModel.from_score(lambda x, t: size * GM.score(x, t), SDE, shape=(3,))


def test_an_exact_score_keeps_every_identity():
    for level in calibration(GM, GM.sample(2000, seed=0), GM.sample(2000, seed=1), GM):
        assert abs(level.factor.value - 1) < 4 * level.factor.stderr
        assert abs(level.pairing.value - 1) < 4 * level.pairing.stderr
        assert abs(level.bias.value) < 4 * level.bias.stderr
        assert level.excess.value < 1e-20
        assert abs(level.gap.value) < 4 * level.gap.stderr


def test_a_score_of_another_size_says_which():
    data = GM.sample(1000, seed=2)
    for level, best in zip(calibration(wrong(1.1), data, oracle=GM), calibration(GM, data), strict=True):
        assert abs(level.factor.value - 1 / 1.1) < 4 * level.factor.stderr
        assert abs(level.pairing.value - 1.1) < 4 * level.pairing.stderr
        # E|1.1 e - e|^2 = 0.01 E|e|^2, and E|e|^2 = 1 - E|e - eps|^2
        assert level.excess.value == pytest.approx(0.01 * (1 - best.loss.value), abs=0.04 * best.loss.stderr + 1e-3)


def test_a_shifted_score_is_a_bias_and_a_remembered_set_a_gap():
    shifted = sf.ScoreModel.from_score(lambda x, t: GM.score(x, t) + 0.5 / SDE.sigma(t).to(x).reshape(-1, 1), SDE)
    for level in calibration(shifted, GM.sample(2000, seed=3)):
        assert abs(level.bias.value - 0.25) < 0.05
    train = GM.sample(50, seed=4)
    levels = calibration(sf.Empirical(train, SDE), GM.sample(500, seed=5), train)
    assert max(v.gap.value / v.gap.stderr for v in levels) > 4


def test_copies_are_near_and_new_samples_are_not():
    train, held_out = GM.sample(300, seed=6), GM.sample(300, seed=7)
    copied = memory(train[5:25] + 1e-6, train, held_out)
    assert copied.index.tolist() == list(range(5, 25))
    assert copied.ratio < 1e-3
    assert 0.7 < memory(GM.sample(300, seed=8), train, held_out).ratio < 1.4


def test_curl_is_that_of_a_linear_field():
    a = torch.tensor([[1.0, 0.3, 0.0], [-0.5, 2.0, 0.2], [0.1, 0.0, 1.5]], dtype=torch.float64)
    model = sf.ScoreModel.from_score(lambda x, t: -x @ a.T, SDE, shape=(3,))
    found = curl(model, GM.sample(500, seed=9), 0.3)
    wanted = float(torch.square(a - a.T).sum() / torch.square(a + a.T).sum())
    assert abs(found.value - wanted) < 4 * found.stderr
    assert curl(GM, GM.sample(50, seed=9), 0.3).value < 1e-20


def test_samplers_are_ranked_by_their_distance_to_the_flow():
    gm = gaussian(SDE, 2)
    table = compare_samplers(gm, 16, (8, 32), ("Euler", "Heun", "UniPC"))
    error = {(run.solver, run.steps): run.error for run in table.runs}
    nfe = {(run.solver, run.steps): run.nfe for run in table.runs}
    assert nfe["Euler", 8] == 8
    assert nfe["Heun", 8] == 16
    assert error["UniPC", 32] < error["Euler", 32] < error["Euler", 8]
    assert table.best(error["UniPC", 32]).nfe <= 32
    lines = repr(table).splitlines()
    assert [line.split()[0] for line in lines] == ["error", "UniPC", "Heun", "Euler", "best:"]
    assert lines[1].split()[1:] == [f"{error['UniPC', 8]:.4f}", f"{error['UniPC', 32]:.4f}"]
    assert set(compare_samplers(gm, 2, (4,)).curves()) > {"DDIM", "DPMSolver", "RK4"}
    with pytest.raises(ValueError, match="choose among those that follow the flow"):
        compare_samplers(gm, 2, solver=["PC"])


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="16 or more items"):
        calibration(GM, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="must be equal"):
        memory(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4))
    assert math.isfinite(curl(GM, GM.sample(2), 0.5).value)


def test_the_variance_that_the_jacobian_claims_is_left_over_by_an_exact_score_alone():
    data = GM.sample(1000, seed=10)
    exact = calibration(GM, data)
    for best, level in zip(exact, calibration(wrong(1.1), data), strict=True):
        assert abs(best.trace.value - 1) < 4 * best.trace.stderr
        # with E|e|^2 = sigma E div e = 1 - loss: 1 - 2 c a + c^2 a + c a = 1 + c (c - 1) a
        wanted = 1 + 1.1 * 0.1 * (1 - best.loss.value)
        assert abs(level.trace.value - wanted) < 4 * level.trace.stderr + 0.5 * best.loss.stderr
    assert calibration(GM, data[:20], trace=False)[0].trace is None


def test_a_model_that_knows_less_than_the_best_line_is_found():
    data = GM.sample(2000, seed=11)
    silent = sf.ScoreModel.from_score(lambda x, t: 0 * x, SDE, shape=(3,))
    for exact, none in zip(calibration(GM, data), calibration(silent, data), strict=True):
        # E|eps|^2 - E|eps - a x|^2 = sigma^2 / E|x|^2 for the best a, and nothing beats E[eps | x]
        size = float(SDE.alpha(none.t)) ** 2 * float(torch.square(data).mean()) + float(SDE.sigma(none.t)) ** 2
        assert abs(none.plain.value - float(SDE.sigma(none.t)) ** 2 / size) < 4 * none.plain.stderr + 0.01
        assert exact.plain.value < 4 * exact.plain.stderr
    assert "untrained" in sf.diagnose.report(silent, data[:200], only=["calibration"]).chapters["calibration"].found
