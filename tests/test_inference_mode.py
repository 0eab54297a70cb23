"""Whatever differentiates leaves `torch.inference_mode()` by itself, and gives there what it gives outside."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield import guide, inverse
from scorefield.solve import AnalyticAncestral

torch.set_num_threads(1)
MEANS = torch.tensor([[2.0, 0.5, -0.3, 0.0], [-1.0, -0.5, 0.4, 0.2]], dtype=torch.float64)
BLUR = inverse.Blur(torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64), "circular")


class Square:
    """A measurement that is neither linear nor ours."""

    def __call__(self, x):
        return x**2


def model() -> sf.GaussianMixture:
    return sf.GaussianMixture(MEANS, 0.3, None, sf.VP())


def classified(gm: sf.GaussianMixture) -> sf.ScoreModel:
    return gm | guide.ClassifierGuidance(lambda x, t: torch.log(gm.posterior(x, t)), 0)


def posterior(method: str):
    return lambda gm, y: sf.sample(gm | inverse.Posterior(BLUR, y, 0.2, method), 3, sf.DDIM(), steps=3, seed=0)


CASES = {
    "classifier": lambda gm, y: sf.sample(classified(gm), 3, sf.Heun(), steps=3, seed=0),
    "autoguidance": lambda gm, y: sf.sample(gm | guide.Autoguidance(classified(gm)), 3, sf.Heun(), steps=3, seed=0),
    **{method: posterior(method) for method in ("dps", "pigdm", "tmpd", "mmps", "diffpir")},
    "nonlinear": lambda gm, y: sf.sample(gm | inverse.Posterior(Square(), y**2, 0.2), 3, sf.DDIM(), steps=3, seed=0),
    "smc full": lambda gm, y: inverse.twisted_smc(gm, Square(), y**2, 0.3, particles=8, steps=3, seed=0).x,
    "smc isotropic": lambda gm, y: (
        inverse.twisted_smc(gm, Square(), y**2, 0.3, particles=8, steps=3, seed=0, covariance="isotropic").x
    ),
    "analytic": lambda gm, y: sf.sample(gm, 3, AnalyticAncestral(), steps=3, seed=0),
    "analytic full": lambda gm, y: sf.sample(gm, 3, AnalyticAncestral("full"), steps=3, seed=0),
    "restore": lambda gm, y: inverse.restore(gm, BLUR, y, 0.2, n=2, steps=3).samples,
    "ddrm": lambda gm, y: inverse.restore(gm, BLUR, y, 0.2, n=2, steps=3, method="ddrm").samples,
    "replace": lambda gm, y: sf.sample(gm, 3, sf.Ancestral(), steps=3, seed=0, hooks=[inverse.Replace(BLUR, y)]),
    "likelihood": lambda gm, y: sf.log_prob(classified(gm), gm.sample(2, seed=1), "exact").nats,
    "score of x": lambda gm, y: classified(gm).score(gm.sample(2, seed=1), 0.3),
    "start": lambda gm, y: sf.sample(
        gm | inverse.Posterior(BLUR, y, 0.2), 3, sf.DDIM(), steps=3, x_init=torch.ones(3, 4, dtype=torch.float64)
    ),
}


def measured() -> torch.Tensor:
    return BLUR(torch.tensor([[1.0, 0.2, -0.4, 0.1]], dtype=torch.float64))


@pytest.mark.parametrize("case", CASES)
def test_inference_mode_changes_nothing(case):
    """Model and measurement are made before, or in inference mode themselves."""
    gm, y = model(), measured()
    expected = CASES[case](gm, y)
    with torch.inference_mode():
        torch.testing.assert_close(CASES[case](gm, y).clone(), expected.clone())
        torch.testing.assert_close(CASES[case](model(), measured()).clone(), expected.clone())


def test_what_was_made_in_inference_mode_may_be_used_outside():
    with torch.inference_mode():
        x, y, kernel, mask = torch.ones(2, 4).double(), measured(), BLUR.kernel.clone(), torch.tensor([1, 0, 1, 1])
    gm = model()
    blur = inverse.Blur(kernel, "circular")
    guided = classified(gm) | inverse.Posterior(blur, y, 0.2) | inverse.Posterior(inverse.Mask(mask), y, 0.4)
    expected = classified(gm) | inverse.Posterior(BLUR, measured(), 0.2)
    expected = expected | inverse.Posterior(inverse.Mask(mask.clone()), measured(), 0.4)
    torch.testing.assert_close(guided.velocity(x, 0.4), expected.velocity(torch.ones(2, 4).double(), 0.4))
    found = sf.sample(guided, 2, sf.DDIM(), steps=2, x_init=x)
    torch.testing.assert_close(found, sf.sample(expected, 2, sf.DDIM(), steps=2, x_init=torch.ones(2, 4).double()))
