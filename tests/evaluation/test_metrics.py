"""Distances between sets of features."""

import math

import numpy as np
import pytest
import torch

from scorefield.errors import InputError
from scorefield.evaluation import frechet, inception_score, kid, mean_of, precision_recall

RNG = np.random.default_rng(0)
A = torch.from_numpy(RNG.standard_normal((200, 16)))
B = torch.from_numpy(RNG.standard_normal((150, 16)) * 1.2 + 0.3)
LOGITS = torch.from_numpy(3 * RNG.standard_normal((200, 10)))

# torch-fidelity 0.4.0 on A, B and LOGITS, float64: metric_fid, metric_kid (one subset of 150 of each), metric_isc (10
# splits, no shuffling), metric_prc (A generated, 3 neighbours). It needs torchvision, so its figures are kept here.
TORCH_FIDELITY = {
    "frechet": 3.7941545964032883,
    "kid": 0.5092777030993898,
    "inception": 3.5846629511358956,
    "precision": 0.89,
    "recall": 0.42,
}


def test_figures_are_those_of_torch_fidelity():
    prc = precision_recall(B, A, k=3)
    found = {
        "frechet": frechet(A, B).value,
        "kid": kid(A[:150], B).value,
        "inception": inception_score(LOGITS).value,
        "precision": prc["precision"].value,
        "recall": prc["recall"].value,
    }
    assert found == pytest.approx(TORCH_FIDELITY, abs=1e-6)


class Identity(torch.nn.Module):
    """A network whose features are its input, for torchmetrics."""

    num_features = 16

    def forward(self, x):
        return x.flatten(1)


def test_figures_are_those_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    mmd = pytest.importorskip("torchmetrics.image.kid")
    distance = fid.FrechetInceptionDistance(feature=Identity(), normalize=False, input_img_size=(1, 4, 4))
    distance.set_dtype(torch.float64)
    kernel = mmd.KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=150, normalize=False)
    for real, x in ((True, A[:150]), (False, B)):
        for metric in (distance, kernel):
            metric.update(x.reshape(-1, 1, 4, 4), real=real)
    assert frechet(A[:150], B).value == pytest.approx(float(distance.compute()), abs=1e-6)
    assert kid(A[:150], B).value == pytest.approx(float(kernel.compute()[0]), abs=1e-6)


@pytest.mark.parametrize("k", [1, 5])
def test_figures_are_those_of_prdc(k, capsys):
    prdc = pytest.importorskip("prdc")
    expected = prdc.compute_prdc(A.numpy(), B.numpy(), nearest_k=k)
    found = precision_recall(A, B, k)
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(expected, abs=1e-6)


def test_frechet_of_gaussians_is_the_closed_form():
    # Samples whose mean and covariance are exactly those wanted: commuting covariances have distance sum (s - r)^2.
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T
    s, r, shift = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([1.5, 0.5, 1.0]).double(), 0.7
    expected = float((s - r).square().sum()) + 3 * shift**2
    assert frechet(z * s, z * r + shift).value == pytest.approx(expected, abs=1e-9)


def draws(seed, n=200):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, 3, generator=generator, dtype=torch.float64)
    return a, 1.4 * b + 0.5


@pytest.mark.parametrize("metric", [frechet, kid, lambda a, b: inception_score(b * 2, splits=1)])
def test_standard_error_is_the_spread_over_repetitions(metric):
    repeated = [metric(*draws(seed)) for seed in range(200)]
    spread = np.std([e.value for e in repeated], ddof=1)
    # 200 repetitions know a standard deviation to 1 / sqrt(400) = 5 %
    assert np.mean([e.stderr for e in repeated]) == pytest.approx(spread, rel=0.2)


def test_same_features_have_no_distance():
    assert frechet(A, A).value == pytest.approx(0, abs=1e-9)
    assert [e.value for e in precision_recall(A, A).values()][:2] == [1, 1]


def test_more_dimensions_than_samples_are_allowed():
    wide = torch.randn(2, 10, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = frechet(*wide)
    cov = [torch.cov(x.T).numpy() for x in wide]
    scipy = pytest.importorskip("scipy.linalg")
    root = scipy.sqrtm(cov[0] @ cov[1]).real.trace()
    expected = float((wide[0].mean(0) - wide[1].mean(0)).square().sum()) + cov[0].trace() + cov[1].trace() - 2 * root
    assert found.value == pytest.approx(float(expected), abs=1e-5)
    assert math.isfinite(found.stderr)


def test_interval_of_a_mean_is_two_standard_errors_wide():
    estimate = mean_of(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert estimate.interval == pytest.approx((2.5 - 1.96 * math.sqrt(5 / 12), 2.5 + 1.96 * math.sqrt(5 / 12)))


def test_bad_features_are_named():
    with pytest.raises(InputError, match="shapes"):
        frechet(A, B[:, :3])
    with pytest.raises(InputError, match="second features hold a value that is not finite"):
        kid(A, B * math.nan)
    with pytest.raises(InputError, match="k=200"):
        precision_recall(A, B, 200)
    with pytest.raises(InputError, match="logits have shape"):
        inception_score(LOGITS[:5])
