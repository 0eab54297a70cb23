"""The average of the weights."""

import math

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.errors import CheckpointError, ScorefieldWarning
from scorefield.training import EMA, post_hoc_ema
from scorefield.training.averages import combination, power_function, power_of_width


def test_average_of_a_jump_is_the_product_of_decays():
    # Weights jump from 0 to 1 once: after n updates the average is 1 - prod d_i, d_i = min(rate, (1 + i) / (10 + i)).
    module = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.5)
    torch.nn.init.ones_(module.weight)
    for _ in range(20):
        ema.update()
    expected = 1 - math.prod(min(0.5, (1 + i) / (10 + i)) for i in range(1, 21))
    assert float(ema.tensors["weight"]) == pytest.approx(expected, rel=1e-12)


def test_whole_numbers_are_copied_and_float_buffers_averaged():
    module = torch.nn.BatchNorm1d(2)
    ema = EMA(module, 0.0)
    module.num_batches_tracked += 7
    module.running_mean += 3.0
    ema.update()
    assert int(ema.tensors["num_batches_tracked"]) == 7
    assert ema.tensors["running_mean"].tolist() == [3.0, 3.0]


def test_average_leaves_the_weights_alone():
    module = torch.nn.Linear(3, 3)
    before = module.weight.detach().clone()
    ema = EMA(module, 0.9)
    ema.update()
    assert torch.equal(module.weight, before)
    assert ema.tensors["weight"].data_ptr() != module.weight.data_ptr()


def test_continued_average_equals_an_unbroken_one():
    module = torch.nn.Linear(2, 2)
    whole, first = EMA(module, 0.99), EMA(module, 0.99)
    for i in range(10):
        with torch.no_grad():
            module.weight += i
        whole.update()
        first.update()
        if i == 4:
            kept = {k: v.clone() for k, v in first.tensors.items()}
            first = EMA(module, 0.99)
            first.load(kept, 5)
    assert torch.equal(first.tensors["weight"], whole.tensors["weight"])


def test_rate_of_one_is_refused():
    with pytest.raises(ValueError, match="from 0 up to 1"):
        EMA(torch.nn.Linear(1, 1), 1.0)


def profile(step, gamma):
    """Weights of the steps 1 .. step in the power-function average, by hand."""
    k = np.arange(step + 1.0)
    return np.diff(k ** (gamma + 1)) / step ** (gamma + 1)


@pytest.mark.parametrize("width", [0.03, 0.1, 0.25])
def test_width_is_the_standard_deviation_of_the_profile(width):
    n = 100_000
    weights, at = profile(n, power_of_width(width)), (np.arange(n) + 0.5) / n
    mean = weights @ at
    assert (weights @ (at - mean) ** 2) ** 0.5 == pytest.approx(width, rel=1e-4)


def test_power_function_average_has_the_weights_of_its_profile():
    module = torch.nn.Linear(1, 1, bias=False).double()
    average, values = EMA(module, power_function(0.1)), []
    rng = np.random.default_rng(0)
    for _ in range(60):
        values.append(rng.normal())
        torch.nn.init.constant_(module.weight, values[-1])
        average.update()
    expected = profile(60, power_of_width(0.1)) @ values
    assert float(average.tensors["weight"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("width", [0.04, 0.05, 0.07, 0.12, 0.15])
def test_any_average_from_twenty_snapshots_of_two_widths(width):
    # Weights that approach their goal, with the noise of a random walk: against the average over all steps.
    n, every = 4000, 200
    time = np.arange(1, n + 1) / n
    walk = np.cumsum(np.random.default_rng(0).normal(size=(n, 3)), 0) / n**0.5
    weights = np.concatenate([np.exp(-3 * time)[:, None] + 1, np.sin(4 * time)[:, None] + 2, 0.3 * walk + 3], 1)
    snapshots = [(at, power_of_width(w)) for w in (0.05, 0.1) for at in range(every, n + 1, every)]
    shares, error = combination(snapshots, (n, power_of_width(width)))
    stored = np.array([profile(at, gamma) @ weights[:at] for at, gamma in snapshots])
    exact = profile(n, power_of_width(width)) @ weights
    np.testing.assert_allclose(shares @ stored, exact, rtol=1e-3)
    assert shares.sum() == pytest.approx(1.0, abs=1e-9)
    assert error < 0.1


def test_post_hoc_average_of_a_run_is_the_average_over_its_steps(run_training, tmp_path):
    steps = []
    options = {"power_ema": (0.05, 0.1), "snapshot_every": 4, "steps": 80, "lr": 1e-2}
    kept = [lambda m: steps.append({k: v.detach().clone() for k, v in m.model.named_parameters()})]
    run_training(callbacks=kept, **options)
    for width, end in ((0.07, None), (0.1, None), (0.12, 60)):
        model, n = post_hoc_ema(tmp_path / "run", width, step=end), end or 80
        share = torch.from_numpy(profile(n, power_of_width(width)))
        for name, value in model.named_parameters():
            exact = torch.einsum("n,n...->...", share, torch.stack([s[name] for s in steps[:n]]).double())
            error = float((value.detach() - exact).norm() / exact.norm())
            assert error < 1e-3, (width, name, error)


def test_snapshots_are_the_same_after_a_stop(run_training, tmp_path):
    options = {"power_ema": (0.1,), "snapshot_every": 10}
    run_training("whole", **options)
    run_training("parts", callbacks=[lambda moment: moment.step == 17], **options)
    run_training("parts", **options)
    for name in ("snapshots/step-000010", "snapshots/step-000030"):
        file = f"{name}/0.1.safetensors"
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_too_few_snapshots_are_told(run_training, tmp_path):
    run_training(power_ema=(0.1,), snapshot_every=15)
    with pytest.warns(ScorefieldWarning, match="2 snapshots give an average of width 0.02 only to"):
        post_hoc_ema(tmp_path / "run", 0.02)


def test_a_run_without_snapshots_is_named(run_training, tmp_path):
    run_training(steps=10)
    with pytest.raises(CheckpointError, match=r"has no snapshots; train it with power_ema="):
        post_hoc_ema(tmp_path / "run", 0.1)
    with pytest.raises(ValueError, match=r"between 0 and 0\.288"):
        post_hoc_ema(tmp_path / "run", 0.3)


def test_sampling_from_a_post_hoc_average(run_training, tmp_path):
    run_training(power_ema=(0.05, 0.1), snapshot_every=10)
    assert sf.sample(post_hoc_ema(tmp_path / "run", 0.1), 3, seed=0).shape == (3, 2)
