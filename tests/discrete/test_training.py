"""Jump models in the one trainer: learns, resumes bit for bit, is described, loaded and sampled like any other."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from jump_oracles import H_MARGINALS, H, joint
from scorefield.errors import CheckpointError, InputError
from scorefield.training import read_run

J = joint()
QUICK = {"batch_size": 256, "lr": 3e-3, "warmup": 5, "log_every": 50, "trackers": (), "report": False, "ema": 0.98}


def model(process=None, **options):
    process = process or sf.discrete.Absorbing(4)
    torch.manual_seed(0)
    states = 4 + (process.mask is not None)
    net = sf.nn.StateMLP(states, 3, 4, width=64, time=process.mask is None)
    return sf.discrete.JumpModel(net, process, (3,), clock=None if process.mask is not None else "t", **options)


def data(n=20_000):
    return sf.discrete.Table(J, sf.discrete.Absorbing(4)).sample(n, seed=0)


def test_a_masked_model_learns_what_positions_share(tmp_path):
    run = sf.train(
        model(), data(), out=tmp_path, steps=200, times=sf.discrete.JumpTimes(), checkpoint_every=200, **QUICK
    )
    loaded = sf.load(tmp_path)
    assert isinstance(loaded, sf.discrete.JumpModel)
    assert loaded.process == sf.discrete.Absorbing(4)
    x = data(4000)
    bound = -sf.discrete.bound(loaded, x, samples=8, seed=1).nats
    mean, error = float(bound.mean()), float(bound.std()) / 4000**0.5
    assert mean + 4 * error < H_MARGINALS  # better than independent positions
    assert mean - 4 * error > H - 0.1  # and no better than the truth, but for this sample of it
    assert run.loss * 3 == pytest.approx(mean, abs=0.6)  # the log is in nats per position
    assert torch.equal(sf.sample(loaded, 5, seed=0), sf.sample(run.model, 5, seed=0))


@pytest.mark.parametrize(
    "process", [sf.discrete.Uniform(4), sf.discrete.Ordinal(4, spread=1.0), sf.discrete.RateMatrix([[-1, 1], [1, -1]])]
)
def test_a_run_resumes_and_is_described(tmp_path, process):
    states = process.S
    x = data(500) % states
    make = lambda: sf.discrete.JumpModel(sf.nn.StateMLP(states, 3, width=16, time=True), process, (3,))  # noqa: E731
    torch.manual_seed(0)
    whole = sf.train(make(), x, out=tmp_path / "whole", steps=6, checkpoint_every=3, **QUICK)
    torch.manual_seed(0)
    first = make()
    sf.train(first, x, out=tmp_path / "parts", steps=6, checkpoint_every=3, callbacks=[lambda m: m.step == 3], **QUICK)
    again = sf.train(make(), x, out=tmp_path / "parts", steps=6, checkpoint_every=3, **QUICK)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert sf.load(tmp_path / "whole").process == process
    assert read_run(tmp_path / "whole").range is None


def test_other_losses_train(tmp_path):
    for k, (loss, options) in enumerate(
        [
            (sf.discrete.continuous_elbo, {}),
            (sf.discrete.ratio_matching, {"predict": "hollow"}),
            (sf.discrete.score_entropy, {"predict": "ratio"}),
        ]
    ):
        process = sf.discrete.Uniform(4)
        net = sf.nn.HollowTransformer(4, width=16, depth=1, heads=2)
        jump = sf.discrete.JumpModel(net, process, (3,), **options)
        run = sf.train(jump, data(500), out=tmp_path / str(k), steps=3, loss=loss, **QUICK)
        assert run.finished
        assert run.loss == run.loss


def test_data_that_is_no_state_is_refused(tmp_path):
    with pytest.raises(InputError, match="floating-point numbers"):
        sf.train(model(), torch.rand(10, 3), out=tmp_path / "a", steps=1, **QUICK)
    with pytest.raises(ValueError, match="outside 0"):
        sf.train(model(), torch.full((10, 3), 7), out=tmp_path / "b", steps=1, **QUICK)
    sf.train(model(), data(100), out=tmp_path / "c", steps=1, **QUICK)
    with pytest.raises(CheckpointError, match="another sde"):
        sf.train(model(sf.discrete.Absorbing(4, sf.discrete.Cosine())), data(100), out=tmp_path / "c", steps=1, **QUICK)


def test_samples_of_a_table_have_its_marginals_and_its_pairs(tmp_path):
    """Words and numbers that go together: every pair of columns within sampling error, and 0.02 for the model."""
    from scorefield.data.states import categories

    g = torch.Generator().manual_seed(0)
    size = torch.randint(3, (3000,), generator=g)
    weight = 10.0 * size + torch.rand(3000, generator=g) * 8
    colour = torch.where(torch.rand(3000, generator=g) < 0.8, size, torch.randint(3, (3000,), generator=g))
    rows = [
        f"{('s', 'm', 'l')[a]},{float(w):.3f},{('red', 'blue', 'green')[c]}"
        for a, w, c in zip(size, weight, colour, strict=True)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["size,weight,colour", *rows]) + "\n", "utf-8")
    table = categories(tmp_path / "t.csv")
    assert table.codec.sizes == (3, 16, 3)
    torch.manual_seed(0)
    net = sf.nn.StateMLP(17, 3, 16, width=64, sizes=table.codec.sizes)
    jump = sf.discrete.JumpModel(net, sf.discrete.Absorbing(16), (3,), clock=None)
    run = sf.train(jump, table, out=tmp_path / "run", times=sf.discrete.JumpTimes(), steps=200, **QUICK)
    x, y = sf.sample(run.model, 3000, sf.discrete.FirstHitting(), seed=0), table.read(range(3000))
    for i in range(3):
        for j in range(i + 1):
            p, q = (pairs(v, i, j) for v in (x, y))
            error = torch.sqrt((p * (1 - p) + q * (1 - q)) / 3000)
            assert ((p - q).abs() < 4 * error + 0.02).all()
    assert float((pairs(x, 0, 1) - pairs(x, 0, 0).sum(1)[:, None] * pairs(x, 1, 1).sum(1)).abs().sum()) > 0.8


def pairs(x, i, j):
    """Shares of the states of two columns, (16, 16)."""
    counts = torch.zeros(16, 16, dtype=torch.float64)
    return counts.index_put((x[:, i], x[:, j]), torch.full((len(x),), 1 / len(x), dtype=torch.float64), accumulate=True)
