"""ScoreDensity: scikit-learn's contract, exact densities, and a correction that is kept only where it helps."""

import math
import pickle

import numpy as np
import pytest
import torch

import scorefield as sf

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from scorefield.analytic import GaussianMixture
from scorefield.data.scale import Scale
from scorefield.data.yeo_johnson import Powers
from scorefield.density.corrected import Corrected, Ensemble, Plan, correct
from scorefield.density.estimator import ScoreDensity, TableNoise
from scorefield.errors import ScorefieldWarning
from scorefield.sdes import VE

QUICK = {"steps": 0, "members": 2, "random_state": 0}
NO_EXCEPTIONS: dict[str, str] = {}


@parametrize_with_checks([ScoreDensity(**QUICK)], expected_failed_checks=lambda _: NO_EXCEPTIONS)
def test_scikit_learns_contract(estimator, check):
    check(estimator)


def bent(n=300, seed=0):
    """Correlated columns, one of them log-normal, of unlike units."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.5]])
    return np.stack([5 + 100 * z[:, 0], np.exp(z[:, 1]), 0.01 * z[:, 2]], 1)


def half_moon(n, seed):
    """A noisy arc, whose law no small mixture has."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], 1) + 0.05 * rng.normal(size=(n, 2))


def test_a_density_integrates_to_one():
    """Over a grid around a skewed fit in two dimensions: mixture, network and change of variables together."""
    z = np.random.default_rng(0).normal(size=(80, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    density = ScoreDensity(**QUICK, tolerance=1e-2).fit(np.stack([3 * z[:, 0], np.exp(0.4 * z[:, 1])], 1))
    density.model_ = Corrected(density.mixture_, awake(2, 2))
    axes = [np.linspace(-14, 14, 25), np.linspace(-1.5, 6, 26)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    assert np.exp(density.score_samples(grid)).sum() * cell == pytest.approx(1, abs=0.03)


def awake(members, features):
    """A network that says something; a fresh one is silent."""
    draws = torch.Generator().manual_seed(0)
    net = Ensemble(members, features, 8, 1, draws)
    net.exit.data = 0.1 * torch.randn(net.exit.shape, generator=draws)
    return net.requires_grad_(False)


def test_a_silent_network_is_the_mixture(mixture2):
    model = Corrected(mixture2, Ensemble(2, 2, 8, 1, torch.Generator().manual_seed(0)))
    x, t = mixture2.sample(4, t=0.5, seed=0), torch.tensor([0.0, 0.2, 0.5, 1.0])
    for view in ("denoise", "noise", "score", "velocity"):
        assert torch.allclose(getattr(model, view)(x, t), getattr(mixture2, view)(x, t), atol=1e-9)


@pytest.fixture
def mixture2():
    means = torch.tensor([[1.0, -0.5], [-1.0, 0.5]], dtype=torch.float64)
    return sf.GaussianMixture(means, torch.tensor([0.1, 0.4]).double(), [0.3, 0.7], VE(0.01, 10.0))


def test_members_apart_are_the_members_of_the_mean():
    net = awake(3, 2).double()
    x, level = torch.randn(4, 2).double(), torch.randn(4).double()
    mean = net(x, level)
    net.apart = True
    each = net(x.repeat(3, 1), level.repeat(3)).reshape(3, 4, 2)
    assert torch.allclose(each.mean(0), mean)
    assert float((each[0] - each[1]).abs().max()) > 0


def test_the_correction_learns_what_the_mixture_lacks_and_keeps_nothing_where_it_lacks_nothing():
    """A wide Gaussian beneath an arc gains; the exact mixture of its own data gains next to nothing, and never loses."""
    plan = Plan(32, 1, 300, 64, 5e-3, 0.0, 600.0)
    arc = torch.from_numpy(half_moon(400, 0)).float()
    arc = (arc - arc.mean(0)) / arc.std(0)
    wide = sf.GaussianMixture(torch.zeros(1, 2).double(), 1.0, None, VE(0.01, 10.0))
    folds = torch.randperm(400, generator=torch.Generator().manual_seed(1)).reshape(2, 200)
    found = correct(wide, arc, folds, plan, torch.Generator().manual_seed(0), lambda _: None)
    assert float(found.gains.min()) > 0.1
    own = wide.sample(400, seed=3).float()
    kept = correct(wide, own, folds, plan, torch.Generator().manual_seed(0), lambda _: None)
    assert 0 <= float(kept.gains.min()) <= float(kept.gains.max()) < 0.05


def test_columns_of_few_values_are_named():
    rows = np.stack([bent(100)[:, 1], np.arange(100) % 4], 1)
    with pytest.warns(ScorefieldWarning, match=r"X: column 1 \(4 different values\) of 100 rows"):
        ScoreDensity(**QUICK).fit(rows)


def test_kernels_join_where_held_out_rows_gain():
    """A board of sixteen squares, which no small mixture has; kernels on a normal table bring nothing to speak of."""
    rng = np.random.default_rng(0)
    board = np.stack([rng.uniform(-2, 2, 400), rng.uniform(size=400) + 2 * rng.integers(-1, 1, 400)], 1)
    board[:, 1] += np.floor(board[:, 0]) % 2
    density = ScoreDensity(**QUICK).fit(board)
    assert density.gain_ > 0.01
    assert len(density.mixture_.means) > 400
    low, high = board.min(0) - 1, board.max(0) + 1
    axes = [np.linspace(a, b, 121) for a, b in zip(low, high, strict=True)]
    cell = math.prod(float(a[1] - a[0]) for a in axes)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    assert np.exp(density.score_samples(grid)).sum() * cell == pytest.approx(1, abs=0.01)
    assert ScoreDensity(**QUICK).fit(rng.normal(size=(400, 2))).gain_ < 0.02


def test_the_flow_of_a_silent_correction_has_the_density_of_the_mixture():
    train, test = half_moon(200, 0), half_moon(50, 1)
    base = ScoreDensity(**QUICK, tolerance=1e-5).fit(train)
    base.model_ = Corrected(base.mixture_, Ensemble(2, 2, 8, 1, torch.Generator()))
    rows = torch.from_numpy(test)
    exact = base.mixture_.log_prob(base.scale_.forward(rows)) - base.scale_.log_volume(rows)
    assert np.allclose(base.score_samples(test), exact.numpy(), atol=0.01)


def test_a_normal_table_has_the_density_of_its_law():
    """N(m, S) in 3 dimensions from 2000 rows: the error of its 9 parameters costs about 9 / (2 n) nats a row."""
    rng = np.random.default_rng(0)
    root = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-3.0, 1.0, 4.0]])
    x, test = (rng.normal(size=(n, 3)) @ root.T + [1, -5, 100] for n in (2000, 2000))
    law = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -5.0, 100.0]).double(), scale_tril=torch.from_numpy(root)
    )
    found = ScoreDensity(**QUICK).fit(x).score_samples(test)
    gap = law.log_prob(torch.from_numpy(test)).numpy() - found
    assert gap.mean() < 9 / (2 * 2000) + 4 * gap.std() / math.sqrt(2000)


def test_draws_follow_the_density():
    density = ScoreDensity(**QUICK, tolerance=1e-2).fit(bent(150))
    density.model_ = Corrected(density.mixture_, awake(2, 3))
    x = density.sample(80, random_state=1)
    assert np.allclose(x[:20], density.sample(20, random_state=1), rtol=1e-4)
    own, drawn = density.score_samples(bent(80, 5)), density.score_samples(x)
    error = math.sqrt(own.var() / 80 + drawn.var() / 80)
    assert abs(own.mean() - drawn.mean()) < 0.2 + 4 * error


def test_fits_repeat_clone_travel_and_live_in_pipelines():
    x = half_moon(60, 0)
    options = {"steps": 30, "width": 8, "members": 2, "random_state": 3}
    first, second = (ScoreDensity(**options).fit(x) for _ in range(2))
    assert np.array_equal(first.score_samples(x[:5]), second.score_samples(x[:5]))
    assert clone(first).get_params() == ScoreDensity(**options).get_params()
    assert np.array_equal(pickle.loads(pickle.dumps(first)).score_samples(x[:5]), first.score_samples(x[:5]))
    piped = make_pipeline(StandardScaler(), ScoreDensity(**options)).fit(x)
    assert piped.score_samples(x[:5]).shape == (5,)
    assert piped.score(x) == pytest.approx(piped.score_samples(x).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"members": 1}, "members=1"),
        ({"minutes": 0}, "minutes=0"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreDensity(**options).fit(half_moon(20, 0))


def test_a_constant_column_is_named():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = bent(20)
    x[:, 1] = 7.0
    with pytest.raises(ValueError, match="column 1 is constant"):
        ScoreDensity(**QUICK).fit(x)
    with pytest.raises(ValueError, match="column 'dose' is constant"):
        ScoreDensity(**QUICK).fit(pandas.DataFrame(x, columns=["age", "dose", "size"]))


@pytest.mark.parametrize("rows", [5, 6])
def test_the_fewest_rows(rows):
    x = np.random.default_rng(0).normal(size=(rows, 2))
    assert np.isfinite(ScoreDensity(steps=1, width=4, depth=1, random_state=0).fit(x).score_samples(x)).all()
    with pytest.raises(ValueError, match="minimum of 5"):
        ScoreDensity().fit(x[:4])


@pytest.mark.parametrize(
    "options",
    [{"steps": 1.5}, {"width": None}, {"members": "four"}, {"tolerance": "x"}, {"weight_decay": float("nan")}],
)
def test_options_that_are_no_numbers_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is needed"):
        ScoreDensity(**options).fit(np.eye(6))


@pytest.mark.parametrize("count", [0, -1, 2.5, None])
def test_rows_are_counted_in_whole_numbers(count):
    fitted = ScoreDensity(steps=0, random_state=0).fit(np.random.default_rng(0).normal(size=(20, 1)))
    with pytest.raises(ValueError, match="n_samples="):
        fitted.sample(count)


def set_by_hand(mixture, scale, names=None):
    """A density that was not fitted, so that its law is known."""
    density = ScoreDensity(**QUICK)
    density.model_ = density.mixture_ = GaussianMixture(*mixture, TableNoise())
    density.scale_, density.n_features_in_ = scale, len(scale.mean)
    if names:
        density.feature_names_in_ = np.array(names, dtype=object)
    return density


def test_rows_given_some_columns_follow_the_law_of_a_correlated_normal():
    """log-normal first column, given at x: the others are N(m_f + S_fg S_gg^-1 (log x - m_g), S_ff - S_fg S_gg^-1 S_gf)."""
    mean = torch.tensor([0.5, -2.0, 30.0], dtype=torch.float64)
    root = torch.tensor([[0.4, 0.0, 0.0], [0.5, 0.3, 0.0], [-6.0, 2.0, 4.0]], dtype=torch.float64)
    noise, one = TableNoise().sigma_min ** 2, torch.eye(3, dtype=torch.float64)
    unit = (torch.zeros(1, 3).double(), ((1 - noise) * one)[None], torch.ones(1).double())
    log = Powers(
        torch.zeros(3).double(), torch.ones(3).double(), torch.tensor([0.0, 1.0, 1.0]).double()
    )  # log(1 + x), x > 0
    density = set_by_hand(unit, Scale(mean, root, log), ["income", "debt", "age"])
    value, cov = 4.0, root @ root.T
    slope = cov[1:, 0] / cov[0, 0]
    centre = mean[1:] + slope * (math.log1p(value) - mean[0])
    left = cov[1:, 1:] - torch.outer(slope, cov[0, 1:])
    n = 4000
    x = density.sample(n, random_state=0, given={"income": value})
    assert (x[:, 0] == value).all()
    gap = torch.from_numpy(x[:, 1:]).mean(0) - centre
    assert bool((gap.abs() < 4 * (left.diagonal() / n).sqrt()).all())
    found = torch.from_numpy(np.cov(x[:, 1:].T))
    error = ((left.diagonal().outer(left.diagonal()) + left.square()) / n).sqrt()
    assert bool(((found - left).abs() < 4 * error).all())


@pytest.mark.parametrize("corrected", [False, True])
def test_rows_given_a_column_follow_the_density_along_the_others(corrected):
    """A mixture in decorrelated units, with and without what networks correct: the shares below seven places by quadrature."""
    means = torch.tensor([[-1.0, 0.5], [0.8, -0.6], [0.2, 1.0]], dtype=torch.float64)
    covs = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.4, -0.2], [-0.2, 0.2]], [[0.1, 0.0], [0.0, 0.1]]]).double()
    scale = Scale(torch.tensor([3.0, -1.0]).double(), torch.tensor([[2.0, 0.0], [1.5, 0.7]]).double())
    density = set_by_hand((means, covs, torch.tensor([0.3, 0.5, 0.2]).double()), scale)
    if corrected:  # by what networks might add to a log-density
        plain, density.model_ = density._log_prob, "networks"
        density._log_prob = lambda rows, model: (
            plain(rows, density.mixture_) + np.where(model == "networks", 0.6 * rows[:, 1].numpy(), 0.0)
        )
    line = np.linspace(-6, 5, 111)
    cells = np.exp(density._log_prob(torch.from_numpy(np.stack([np.full(111, 3.6), line], 1)), density.model_))
    below = np.cumsum(cells) / cells.sum()
    n = 4000
    x = density.sample(n, random_state=1, given={0: 3.6})[:, 1]
    places = np.searchsorted(below, [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
    exact = below[places]
    found = np.array([(x <= line[i] + 0.05).mean() for i in places])
    variance = (
        exact * (1 - exact) * (1 + 1 / 4 if corrected else 1) / n
    )  # resampling adds that of the four times as many
    assert (np.abs(found - exact) < 4.5 * np.sqrt(variance) + 0.005).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": 1.0}, "no column 'weight'; name one of a, b"),
        ({2: 1.0}, "no column 2; name one of a, b"),
        ({"a": 1.0, 0: 1.0}, "column 0 is named twice"),
        ({"a": "tall"}, "column 'a' is 'tall'; give a finite number"),
        ({0: 1.0, 1: 2.0}, "all 2 columns are given"),
    ],
)
def test_given_columns_that_cannot_be_are_named(given, message):
    one = (torch.zeros(1, 2).double(), torch.eye(2).double()[None], torch.ones(1).double())
    density = set_by_hand(one, Scale(torch.zeros(2).double(), torch.ones(2).double()), ["a", "b"])
    with pytest.raises(ValueError, match=message):
        density.sample(3, given=given)
