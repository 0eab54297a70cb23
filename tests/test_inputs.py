"""Arrays, data frames and lists in place of tensors; NaN, infinity and wrong shapes refused by the name of the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield import guide, inverse

NAN, INF = float("nan"), float("inf")
X = np.array([[1.0, -1.0], [0.9, -0.8]])
BOTH = inverse.Mask(torch.ones(2))


class Frame:
    """What pandas has of a data frame that matters here."""

    def __array__(self, dtype=None, copy=None):
        return X if dtype is None else X.astype(dtype)


def mixture() -> sf.GaussianMixture:
    return sf.GaussianMixture(np.array([[1.0, -1.0]]), 0.05, None, sf.VP())


@pytest.mark.parametrize("form", [X, Frame(), X.tolist()], ids=["array", "frame", "list"])
@pytest.mark.parametrize(
    "door",
    [
        lambda x: mixture().score(x, 0.5),
        lambda x: mixture().velocity(x, 0.5),
        lambda x: mixture().log_prob(x),
        lambda x: mixture().posterior(x),
        lambda x: sf.log_prob(mixture(), x, "exact").nats,
        lambda x: sf.encode(mixture(), x),
        lambda x: sf.sample(mixture(), 2, sf.DDIM(), steps=3, x_init=x),
        lambda x: inverse.restore(mixture(), BOTH, x, 0.1, steps=3).samples,
        lambda x: inverse.twisted_smc(mixture(), BOTH, x, 0.3, particles=4, steps=3).x,
        lambda x: sf.sample(mixture(), 2, inverse.DDRM(BOTH, x, 0.1), steps=3, seed=0),
    ],
)
def test_arrays_are_taken_as_tensors(door, form):
    assert torch.equal(door(form), door(torch.from_numpy(X)))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: guide.ClassifierGuidance(lambda x, t: x, [0, NAN]), "label: 1 of 2 entries"),
        (lambda: inverse.Mask(np.array([0.0, NAN])), "mask: 1 of 2 entries"),
        (lambda: inverse.Blur(torch.tensor([0.5, INF])), "kernel: 1 of 2 entries"),
        (lambda: inverse.Downsample(2, (0.5, NAN)), "kernel: 1 of 2 entries"),
        (lambda: inverse.Dense(torch.full((1, 2), NAN), (2,)), "matrix: 2 of 2 entries"),
        (lambda: inverse.Grayscale((NAN, 0.5, 0.5)), "weights: 1 of 3 entries"),
        (lambda: inverse.Clip(NAN), "gain=nan"),
        (lambda: inverse.Posterior(BOTH, X, NAN), "noise: 1 of 1 entries"),
        (lambda: inverse.Posterior(BOTH, X, INF), "noise: 1 of 1 entries"),
        (lambda: inverse.Posterior(BOTH, [0.0, INF], 0.1), "y: 1 of 2 entries are NaN or infinite; hide what"),
        (lambda: inverse.Posterior(BOTH, X, 0.1, weight=NAN), "weight=nan"),
        (lambda: inverse.Posterior(BOTH, X, 0.1, zeta=NAN), "zeta=nan"),
        (lambda: inverse.DDRM(BOTH, X, NAN), "noise=nan"),
        (lambda: inverse.DDRM(BOTH, X, 0.1, eta=NAN), "eta=nan"),
        (lambda: inverse.twisted_smc(mixture(), BOTH, X, INF), "noise=inf"),
        (lambda: sf.GaussianMixture([[NAN, 1.0]], 1.0, None, sf.VP()), "means: 1 of 2 entries"),
        (lambda: sf.GaussianMixture([[0.0, 1.0]], INF, None, sf.VP()), "covs: 1 of 1 entries"),
        (lambda: inverse.Posterior(BOTH, "abc", 0.1), "y: str holds no numbers"),
        (
            lambda: inverse.restore(mixture(), BOTH, np.zeros((1, 5)), 0.1),
            r"y has shape \(1, 5\) where a sample \(2,\) is measured as \(2,\); give that shape for all samples, or \(n, 2\)",
        ),
        (lambda: mixture().score(X, 0.5, label=3), "a mixture takes no condition, but label was given"),
    ],
)
def test_what_cannot_be_used_is_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
