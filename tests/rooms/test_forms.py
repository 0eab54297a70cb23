"""What the rooms take and in which form: batches of real tensors, in any precision, whatever that of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield import bridge, consistency, diagnose, discrete, dynamics, flow, phase

VP, BOX = sf.VP(), sf.ReflectedVE()
X = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))


class Net(torch.nn.Module):
    def __init__(self, width=2, out=2):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(width, out)

    def forward(self, x, t, x1=None, span=None):
        return self.layer(x) * (1 if span is None else 1 + span[:, None])


MODEL = sf.ScoreModel(Net(), VP, shape=(2,))
BRIDGE = bridge.Bridge(0.5)
AVERAGE = sf.FlowMap(Net(), VP, "average", shape=(2,))
TRIG = sf.FlowMap(Net(), VP, "trig", shape=(2,))
PHASE = phase.PhaseModel(Net(4, 4), sf.CLD(), shape=(2,))
STATES = discrete.JumpModel(lambda x, t: torch.zeros(*x.shape, 3), discrete.Uniform(3), (2,))
LOSSES = {
    "dsm": lambda x: sf.dsm_loss(MODEL, x, seed=0),
    "ssm": lambda x: sf.ssm_loss(MODEL, x, seed=0),
    "fokker planck": lambda x: sf.fokker_planck_loss(MODEL, x, seed=0),
    "flow": lambda x: flow.flow_matching_loss(MODEL, x, seed=0),
    "consistency": lambda x: sf.consistency_loss(sf.FlowMap(Net(), VP), x, seed=0),
    "trig": lambda x: sf.scm_loss(TRIG, x, seed=0),
    "meanflow": lambda x: consistency.meanflow_loss(AVERAGE, x, seed=0),
    "shortcut": lambda x: consistency.shortcut_loss(AVERAGE, x, seed=0, share=0.5),
    "bridge": lambda x: bridge.bridge_loss(bridge.BridgeModel(Net(), BRIDGE), x, x, seed=0),
    "interpolant": lambda x: bridge.interpolant_loss(bridge.InterpolantModel(Net(2, 4), BRIDGE), x, x, seed=0),
    "hybrid": lambda x: phase.hsm_loss(PHASE, x, seed=0),
}
DOORS = LOSSES | {
    "residual": lambda x: diagnose.fokker_planck_residual(MODEL, x, 0.5),
    "transport": lambda x: flow.minibatch_ot(x, X),
    "bound": lambda x: phase.log_prob_bound(PHASE, x),
    "ends": lambda x: BRIDGE.kernel(x, x, 0.5),
    "walls": lambda x: BOX.perturb(x, 0.5, X),
    "their kernel": lambda x: BOX.kernel_score(x, X, 0.5),
    "their prior": lambda x: BOX.prior((20, 2)).log_prob(x),
}
TAKE_ARRAYS = {
    "points": lambda x: sf.Empirical(x, VP).score(X, 0.5),
    "their density": lambda x: sf.Empirical(X, VP).log_prob(x, 0.5),
    "given": lambda x: sf.Empirical(X, VP, given=x, bandwidth=0.2).score(X, 0.5, given=X),
    "polynomial": lambda x: sf.polynomial_score(x, VP).score(X, 0.5),
    "its ratio": lambda x: sf.polynomial_score(X, VP).log_density_ratio(x, 0.5),
    "distribution": lambda x: sf.as_distribution(sf.GaussianMixture(X[:2], 0.1, None, VP)).log_prob(x),
    "pairs": lambda x: dynamics.pairs_of(x, 0.1)[0],
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda x: x.mul(9).long(), "has dtype torch.int64; give data in the model's range, in floating point"),
        (lambda x: x.mul(9).to(torch.uint8), "has dtype torch.uint8; give data"),
        (lambda x: x.to(torch.complex64), "is complex; give its parts"),
        (lambda x: x.numpy(), "is a ndarray; give a tensor"),
        (lambda x: None, "is a NoneType; give a tensor"),
    ],
    ids=["int64", "uint8", "complex", "array", "nothing"],
)
def test_what_is_no_tensor_of_real_numbers_is_refused_in_one_line(door, form, words):
    with pytest.raises(ValueError, match=words) as told:
        DOORS[door](form(X))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("door", LOSSES)
def test_an_item_is_no_batch(door):
    with pytest.raises(ValueError, match=r"has shape \(2,\); give a batch \(B, \*\)"):
        LOSSES[door](X[0])


@pytest.mark.parametrize("door", TAKE_ARRAYS)
def test_arrays_lists_and_graphs_are_taken_as_tensors(door):
    expected = TAKE_ARRAYS[door](X).detach().double()
    for form in (X.numpy(), X.clone().requires_grad_(), np.asfortranarray(X.numpy()), X.T.contiguous().T):
        torch.testing.assert_close(TAKE_ARRAYS[door](form).detach().double(), expected)


@pytest.mark.parametrize("door", LOSSES)
def test_data_may_have_more_digits_than_the_network(door):
    """The same numbers drawn in another precision are other numbers, so only the form of the answer is compared."""
    found = LOSSES[door](X.double())
    assert found.dtype == torch.float64
    assert found.shape == (20,)
    assert torch.isfinite(found).all()


def test_points_and_states_may_differ_in_precision():
    exact = sf.Empirical(X.double(), VP).score(X.double(), 0.3)
    for points in (X, X.double()):
        for dtype in (torch.float32, torch.float64, torch.float16):
            found = sf.Empirical(points, VP).score(X.to(dtype), 0.3)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), exact, atol=3e-5 if dtype != torch.float16 else 2e-2, rtol=1e-3)
    half = sf.Empirical(X.half(), VP).denoise(X, 0.3)
    torch.testing.assert_close(half, sf.Empirical(X.half().float(), VP).denoise(X, 0.3))


@pytest.mark.parametrize("model", [sf.Empirical(X, VP), sf.polynomial_score(X, VP)], ids=["points", "polynomial"])
def test_items_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"x has shape \(5, 1\); this model is over items of shape \(2,\)"):
        model.score(torch.zeros(5, 1), 0.5)
    assert model.score(torch.zeros(0, 2), 0.5).shape == (0, 2)


@pytest.mark.parametrize("y", [torch.tensor([1.7, 0.0]), torch.tensor([True, False])])
def test_known_states_are_integers(y):
    with pytest.raises(ValueError, match="give states, integers"):
        discrete.Infill.prompt(y, 2)
    with pytest.raises(ValueError, match="give states, integers"):
        discrete.Infill(y, torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="is a list; give a tensor"):
        STATES.ratio([[0, 1]], 0.5)


TIMED = {
    "points": lambda t: sf.Empirical(X, VP).score(X, t),
    "mixture": lambda t: sf.GaussianMixture(X[:2], 0.1, None, VP).score(X, t),
    "its draws": lambda t: sf.GaussianMixture(X[:2], 0.1, None, VP).sample(20, t, seed=0),
    "walls": lambda t: BOX.kernel_score(X, X.flip(1), t),
    "ends": lambda t: BRIDGE.kernel(X, X.flip(1), t)[0],
    "velocity": lambda t: PHASE.denoise(torch.cat([X, X], 1), t),
    "states": lambda t: STATES.ratio(torch.zeros(20, 2, dtype=torch.int64), t),
    "map": lambda t: AVERAGE.jump(X, t, 0.1),
}


@pytest.mark.parametrize("door", TIMED)
def test_times_in_every_form(door):
    expected = TIMED[door](0.5)
    for t in (torch.full((20,), 0.5), [0.5] * 20, np.full(20, 0.5), np.float32(0.5)):
        torch.testing.assert_close(TIMED[door](t), expected)
    for t, words in (
        (torch.full((20, 1), 0.5), "t has shape"),
        ([0.5] * 3, "t has shape"),
        (None, "t: NoneType holds no numbers"),
        ("late", "t: str holds no numbers"),
        (torch.tensor(0.5, device="meta"), "t is a tensor of torch.float32 on meta"),
        (0.5j, "t is a tensor of torch.complex"),
    ):
        with pytest.raises(ValueError, match=words):
            TIMED[door](t)


def test_the_law_of_a_table_and_of_a_prior_is_that_of_one_time():
    with pytest.raises(ValueError, match="the law is that of one time"):
        discrete.Table(torch.ones(3, 3), discrete.Uniform(3)).law(torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match="t has shape"):
        diagnose.fit_prior(VP, X, torch.tensor([0.1, 0.2]))


def test_grids_that_rise_in_between():
    """Noise is added by the kernel of the process, folded back where there are walls; without one it is refused."""
    up = torch.tensor([1.0, 0.2, 0.5, 0.0])
    model = sf.ScoreModel(lambda x, t: 0 * x, BOX, shape=(2,))
    found = sf.sample(model, 4, sf.EulerMaruyama(), grid=up, seed=0)
    assert bool(((found >= 0) & (found <= 1)).all())
    with pytest.raises(ValueError, match="give times that only fall"):
        sf.sample(PHASE, 4, phase.SSCS(), grid=up, seed=0)


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3), True])
def test_seeds_are_integers_of_any_kind(seed):
    torch.testing.assert_close(sf.dsm_loss(MODEL, X, seed=seed), sf.dsm_loss(MODEL, X, seed=int(seed)))
    fitted = [
        dynamics.learn_flow_map(X, X.sin(), 0.1, labels=10, steps=1, progress=False, seed=s) for s in (seed, int(seed))
    ]
    torch.testing.assert_close(*[f.body[0].weight for f in fitted])


@pytest.mark.parametrize("seed", [1.5, "a", -1, 2**63, [1, 2]])
def test_other_seeds_are_refused(seed, tmp_path):
    for door in (
        lambda: sf.dsm_loss(MODEL, X, seed=seed),
        lambda: dynamics.learn_flow_map(X, X, 0.1, seed=seed),
        lambda: sf.bsde.solve(lambda t, y, z: y, torch.sin, steps=1, paths=4, seed=seed),
        lambda: sf.fit(X, out=tmp_path, steps=1, seed=seed),
        lambda: sf.train(MODEL, X, out=tmp_path, steps=1, seed=seed),
    ):
        with pytest.raises(ValueError, match="seed="):
            door()


COUNTS = {
    "order": lambda n: sf.polynomial_score(X, VP, n),
    "neighbours": lambda n: sf.Empirical(X, VP, given=X, bandwidth=1.0, neighbours=n),
    "samples": lambda n: discrete.bound(STATES, torch.zeros(2, 2, dtype=torch.int64), n),
    "steps": lambda n: sf.bsde.solve(lambda t, y, z: y, torch.sin, steps=n),
    "width": lambda n: dynamics.learn_flow_map(X, X.sin(), 0.1, width=n),
    "pairs": lambda n: bridge.schrodinger_bridge(lambda n, g: X, lambda n, g: X, (Net(), Net()), pairs=n),
    "n": lambda n: diagnose.report(MODEL, X, n=n),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.5, "3", 0, float("nan")])
def test_counts_are_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        COUNTS[name](value)


def test_what_functions_return_is_checked():
    with pytest.raises(ValueError, match="what terminal returned is a ndarray"):
        sf.bsde.solve(lambda t, y, z: y, lambda w: w.numpy(), steps=1, paths=4)
    with pytest.raises(ValueError, match="what driver returned is a NoneType"):
        sf.bsde.solve(lambda t, y, z: None, torch.sin, steps=1, paths=4)
    with pytest.raises(ValueError, match="reward is a int; give a function"):
        sf.reward.finetune(MODEL, 3)
    with pytest.raises(ValueError, match="source is a NoneType; give a model"):
        diagnose.report(None)
